"""Patterns of shards on the command line: braces and globs, which Hydra would read as its own.

`data.train=s3://bucket/train-{0000..1023}.tar` is taken as it is written; Hydra alone would need
quotes inside those of the shell.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from orchestrator.config.parse import ConfigError

_KEYS = ("train", "val")
_OVERRIDE = re.compile(  # and the members of a sample, such as jpg;png
    r"(\+{0,2}data\.(?:(?:train|val)=(?=.*[{*?])|image=(?=.*;)))(.+)", re.DOTALL
)


def quote_patterns(overrides: Iterable[str]) -> Iterator[str]:
    """Quote patterns for Hydra: data.train and data.val, alone or in a list, and data.image."""
    for override in overrides:
        match = _OVERRIDE.fullmatch(override)
        yield match[1] + _quote(match[2]) if match else override


def _quote(value: str) -> str:
    if value[0] in "'\"":
        return value
    is_list = value[0] == "[" and value[-1] == "]"
    items = _split(value[1:-1] if is_list else value)
    quoted = [
        item if item[0] in "'\"" else QuotedString(item, Quote.single).with_quotes()
        for item in items
    ]
    return f"[{','.join(quoted)}]" if is_list else ",".join(quoted)


def _split(text: str) -> list[str]:
    """Split at the commas that are outside of braces."""
    depths = accumulate((char == "{") - (char == "}") for char in text)
    parts = "".join(
        "\0" if char == "," and depth <= 0 else char
        for char, depth in zip(text, depths, strict=True)
    )
    return [part.strip() for part in parts.split("\0") if part.strip()]


def refuse_expanded(overrides: Iterable[str]) -> None:
    """Refuse a pattern that the shell has expanded: Hydra would take the last shard alone."""
    counts = Counter(override.lstrip("+").partition("=")[0] for override in overrides)
    for key in (f"data.{name}" for name in _KEYS):
        if counts[key] > 1:
            raise ConfigError(
                f"{key} is given {counts[key]:,} times, and only the last would count: the shell "
                "may have expanded braces",
                value=key,
                hint=f"Quote the pattern for the shell: '{key}=...'; several go into a list: "
                f"'{key}=[...,...]'.",
            )


def resolve_patterns(
    values: Mapping[str, Any], overrides: Iterable[str], absolute: Callable[[str], str]
) -> None:
    """Make the paths of patterns absolute; with patterns, data.url need not be given.

    Without the place of the validation split, it is that of the first data set of a mixture.

    Raises:
        ConfigError: data.url is among the overrides, and would not be used.
    """
    data = values.get("data")
    if not isinstance(data, dict):
        return
    urls = [o for o in overrides if re.match(r"\+*data\.url=(?!null$)", o)]
    if urls and (data.get("train") or data.get("val")):
        raise ConfigError(
            f"{urls[-1]} has no effect: data.train and data.val say where the shards are",
            value=data.get("url"),
            hint="Give the place in data.train and data.val, or set both to null.",
        )
    sources = [source for source in data.get("mix") or () if isinstance(source, dict)]
    for source in sources:
        _make_absolute(source, ("url", "train"), absolute)
    if sources and data.get("url") == "???" and not data.get("val"):
        data["url"] = sources[0].get("url")
    _make_absolute(data, _KEYS, absolute)
    for name in _KEYS:
        if data.get(name) and data.get("url") == "???":
            data["url"] = None


def _make_absolute(
    holder: dict[str, Any], keys: Iterable[str], absolute: Callable[[str], str]
) -> None:
    for key in keys:
        value = holder.get(key)
        if isinstance(value, str):
            holder[key] = absolute(value)
        elif isinstance(value, list):
            holder[key] = [absolute(item) if isinstance(item, str) else item for item in value]
