"""Names of parameters in error messages, replaced by config keys.

The rooms below orchestrator name parameters in backticks; users know their config keys.
"""

import re
from collections import Counter
from collections.abc import Mapping

from orchestrator.config.parse import dotted_keys


def unique_keys() -> dict[str, str]:
    """Map the last part of each dotted key to the key, where no other key ends alike.

    Keys without a dot are left out: `evaluate` is the operation before it is a section.
    """
    keys = {key: key.rpartition(".")[2] for key in dotted_keys()}
    counts = Counter(keys.values())
    return {leaf: key for key, leaf in keys.items() if counts[leaf] == 1 and leaf != key}


def replace_names(text: str, names: Mapping[str, str]) -> str:
    """Replace every `name` in backticks that has another name; leave the others as they are."""
    return re.sub(r"`(\w+)`", lambda match: names.get(match[1], match[0]), text)


def explain(error: Exception) -> str:
    """Format an error with the config keys of its parameters."""
    return replace_names(str(error), unique_keys())
