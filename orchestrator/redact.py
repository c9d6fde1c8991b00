"""What may leave the run directory: no secrets, names and lengths that a tracking server accepts.

A config names data sets and stores by URL, and a URL may carry a password or a signature. The run
directory is the user's own; a tracking server is read by others, and nothing sent there can be
taken back.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

MAX_NAME_CHARACTERS = 250
_USERINFO = re.compile(r"://[^/?#\s'\"]*@")
_PASSWORD = re.compile(r"://[^/?#\s@:]*:[^/?#\s@]+@")
_SECRET_QUERY = re.compile(
    r"([?&][^?&=\s]{0,60}(?:sig|token|secret|password|credential)[^?&=\s]{0,60}=)[^&\s'\"]+",
    re.IGNORECASE,
)
_SECRET_KEY = re.compile(
    r"(^|_)(password|passwd|secret|token|credentials?|api_key|access_key)$", re.IGNORECASE
)
_FORBIDDEN = re.compile(r"[^/\w.\- :]")


def has_credentials(url: str) -> bool:
    """Whether a URL carries a password or a signature; a user's name alone is none."""
    return _PASSWORD.search(url) is not None or _SECRET_QUERY.search(url) is not None


def redact_urls(text: str) -> str:
    """Return a text whose URLs have lost their `user:password@` and their signatures."""
    return _SECRET_QUERY.sub(r"\1***", _USERINFO.sub("://", text))


def one_line_error(error: Exception) -> str:
    """Return an error as one line of a log, without secrets."""
    return one_line(redact_urls(str(error))) or repr(error)


def one_line(text: str) -> str:
    """Return a text as a line of a bounded length.

    Some errors fill a page: what failed is said at the beginning, and why at the end.
    """
    text = " ".join(text.split())
    return text if len(text) <= 400 else f"{text[:150]} … {text[-250:]}"


def redact(value: Any, key: str = "") -> Any:
    """Return a config, or a part of one, without secrets; everything else stays as it is."""
    if isinstance(value, Mapping):
        return {name: redact(part, str(name)) for name, part in value.items()}
    if isinstance(value, list):
        return [redact(part, key) for part in value]
    if not isinstance(value, str):
        return value
    return "***" if _SECRET_KEY.search(key) else redact_urls(value)


def truncate_json(value: Any, max_characters: int) -> str:
    """Return a string as it is and anything else as JSON, cut visibly where it is too long."""
    return cut(value if isinstance(value, str) else json.dumps(value, default=str), max_characters)


def cut(text: str, max_characters: int) -> str:
    """Return a text, cut visibly if it is too long."""
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"


def mlflow_safe_name(name: str) -> str:
    """Return a name of a metric, param or tag as MLflow accepts it.

    MLflow takes word characters and `/.-: `, and names that are clean relative paths:
    https://mlflow.org/docs/latest/ml/tracking/
    """
    parts = _FORBIDDEN.sub("_", name).split("/")
    legal = "/".join(part for part in parts if part.strip(".")).lstrip(".")
    return legal[:MAX_NAME_CHARACTERS].rstrip("/") or "_"


def of_the_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without what it says of the model's paper and of a known data set."""
    of_others = {("model", "published"), ("data", "expected")}
    return {
        section: {key: value for key, value in values.items() if (section, key) not in of_others}
        if isinstance(values, Mapping)
        else values
        for section, values in config.items()
    }
