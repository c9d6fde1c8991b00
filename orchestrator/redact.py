"""Redact secrets, and shorten texts and names to what a tracking server accepts.

A config has URLs of data sets and stores, which may have a password or a signature. Others read the
tracking server, and nothing sent there can be taken back.
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
_URL = re.compile(r"\w+://[^\s'\"]+")
# A word of a URL that people rarely choose, if it has digits and letters; or a UUID.
_AUTHORIZATION = re.compile(r"\b(?:bearer|basic|token)[ :]+([\w\-.=+/]{8,})", re.IGNORECASE)
_LONG_WORD = re.compile(r"[0-9A-Za-z]{20,}|[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")
_FORBIDDEN = re.compile(r"[^/\w.\- :]")


def has_credentials(url: str) -> bool:
    """Check whether a URL has a password or a signature; a user name alone is none."""
    return _PASSWORD.search(url) is not None or _SECRET_QUERY.search(url) is not None


def has_token(text: str) -> bool:
    """Check whether a text has a URL with a password or a token, or a header with one.

    A variable in its place, `$NAME` or `${NAME}`, is none.
    """
    plain = _VARIABLE.sub("", text)
    return any(map(_is_random, _AUTHORIZATION.findall(plain))) or any(
        has_credentials(url) or any(map(_is_random, _LONG_WORD.findall(url)))
        for url in _URL.findall(plain)
    )


def _is_random(word: str) -> bool:
    return any(map(str.isdigit, word)) and any(map(str.isalpha, word))


def redact_urls(text: str) -> str:
    """Remove `user:password@` and signatures from the URLs in a text."""
    return _SECRET_QUERY.sub(r"\1***", _USERINFO.sub("://", text))


def one_line_error(error: Exception) -> str:
    """Format an error as one line without secrets."""
    return one_line(redact_urls(str(error))) or repr(error)


def one_line(text: str) -> str:
    """Shorten a text to one line.

    Some errors fill a page: the failure is named at the beginning, and its cause at the end.
    """
    text = " ".join(text.split())
    return text if len(text) <= 400 else f"{text[:150]} … {text[-250:]}"


def redact(value: Any, key: str = "") -> Any:
    """Replace the secrets in a config, or a part of one."""
    if isinstance(value, Mapping):
        return {name: redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [redact(item, key) for item in value]
    if not isinstance(value, str):
        return value
    return "***" if _SECRET_KEY.search(key) else redact_urls(value)


def truncate_json(value: Any, max_characters: int) -> str:
    """Return a string as it is and anything else as JSON, truncated with an ellipsis."""
    return cut(value if isinstance(value, str) else json.dumps(value, default=str), max_characters)


def cut(text: str, max_characters: int) -> str:
    """Truncate a text with an ellipsis."""
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"


def mlflow_safe_name(name: str) -> str:
    """Convert a name of a metric, param or tag to one that MLflow accepts.

    MLflow takes word characters and `/.-: `, and names that are clean relative paths:
    https://mlflow.org/docs/latest/ml/tracking/
    """
    parts = _FORBIDDEN.sub("_", name).split("/")
    legal = "/".join(part for part in parts if part.strip(".")).lstrip(".")
    return legal[:MAX_NAME_CHARACTERS].rstrip("/") or "_"


def of_the_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without published results and the properties of a known data set."""
    excluded = {("model", "published"), ("data", "expected")}
    return {
        section: {key: value for key, value in values.items() if (section, key) not in excluded}
        if isinstance(values, Mapping)
        else values
        for section, values in config.items()
    }
