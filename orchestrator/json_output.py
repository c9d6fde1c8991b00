"""What verbs print for programs: strict JSON, which has no NaN and no infinity."""

import json
import math
from collections.abc import Mapping
from typing import Any


def strict_json(value: Any) -> str:
    """Return JSON that any reader takes; what is not finite is null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
