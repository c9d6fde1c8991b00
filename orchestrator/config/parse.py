"""What a run is told: a dictionary that Hydra composed -> a `Config`, or what is wrong with it.

No torch and no Hydra here, since the login node and every worker read configs.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from data_sharding.errors import UserError
from orchestrator.config.schema import Config
from orchestrator.redact import has_credentials, redact_urls


class ConfigError(UserError):
    """The config cannot be run; the message lists what would be valid."""


# Keys that change where and how fast a run goes, not what comes out of it. A run may be continued
# with other values of these; all others are its identity.
MUTABLE_KEYS = (
    "run_dir",
    "runs_dir",
    "if_finished",
    "launcher",
    "runtime",
    "slurm",
    "logging",
    "tracking",
    "strategy",
    "checkpoint.every_steps",
    "checkpoint.every_minutes",
    "checkpoint.keep_last",
    "checkpoint.keep_best",
    "checkpoint.keep_every_steps",
    "checkpoint.max_failed_saves",
    "model.published",  # a corrected quotation does not make another run
    "data.url",  # the data set may have moved; its fingerprint is checked
    "data.num_workers",
    "data.cache",
    "data.expected",  # looked at when the run is made
)


def parse(values: Mapping[str, Any]) -> Config:
    """Return the config that a composed dictionary describes.

    Raises:
        ConfigError: unknown or missing keys, wrong types, values out of bounds; all of them, each
            with what would be valid.
    """
    try:
        # By way of JSON: its lists may become tuples while "3" may not become 3.
        config = _ADAPTER.validate_json(json.dumps(values))
    except ValidationError as error:
        lines = [_explain(e["loc"], e["type"], e["msg"], e["input"]) for e in error.errors()]
        raise ConfigError(
            "the config cannot be run:\n" + "\n".join(f"  {x}" for x in lines)
        ) from None
    _check_secrets(config)
    return config


def _check_secrets(config: Config) -> None:
    """Refuse a password before it is written to config.yaml, which others may read."""
    urls = {
        "data.url": config.data.url,
        "checkpoint.url": config.checkpoint.url,
        "tracking.uri": config.tracking.uri,
        "init_from": config.init_from,
    }
    for key, url in urls.items():
        if url and has_credentials(url):
            raise ConfigError(
                f"{key}={redact_urls(url)} carries a password or a signature, which would lie "
                "in config.yaml and in logs. Give it where the store looks for it: AWS_* or "
                "~/.aws, FSSPEC_PROTOCOL_* or ~/.config/fsspec, MLFLOW_TRACKING_USERNAME and "
                "_PASSWORD, ~/.pgpass, ~/.netrc."
            )


def to_dict(config: Config) -> dict[str, Any]:
    """Return the config as plain values, as they go into config.yaml."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(cast(Any, config))))
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def is_mutable_key(key: str) -> bool:
    """Whether a dotted key may differ between the attempts of one run."""
    return any(key == safe or key.startswith(safe + ".") for safe in MUTABLE_KEYS)


def immutable_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys that make two configs different runs, each with `OLD there, NEW now`."""
    old, new = flatten(before), flatten(after)
    return {
        key: f"{old.get(key, 'absent')} there, {new.get(key, 'absent')} now"
        for key in dict.fromkeys((*new, *old))
        if not is_mutable_key(key) and old.get(key, _ABSENT) != new.get(key, _ABSENT)
    }


def config_hash(config: Config) -> str:
    """Return a digest of all that decides what comes out of a run; 8 hex digits.

    A key with the value that it has where it is missing is left out: one that is new in the schema
    leaves the identities from before it was there as they are.
    """
    kept = _decisive(config)
    return sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def _decisive(value: Any, key: str = "") -> Any:
    """Return a value for `config_hash`: no mutable keys, and none with the schema's default."""
    if isinstance(value, tuple):
        return [_decisive(one, key) for one in value]
    if not dataclasses.is_dataclass(value):
        return value
    keys = {field.name: f"{key}.{field.name}".lstrip(".") for field in dataclasses.fields(value)}
    return {
        field.name: _decisive(getattr(value, field.name), keys[field.name])
        for field in dataclasses.fields(value)
        if not is_mutable_key(keys[field.name]) and getattr(value, field.name) != field.default
    }


def unknown_key_message(parts: Sequence[str]) -> str:
    """Say that a dotted key does not exist, which one was probably meant, and which there are."""
    key, parent = ".".join(parts), ".".join(parts[:-1])
    schema: Any = Config
    for part in parts[:-1]:
        schema = {f.name: f.type for f in dataclasses.fields(schema)}[part]
        if getattr(schema, "__origin__", None) is dict:  # of keys that the user chooses
            return f"{key}: there is no such key yet; add it with a plus: +{key}=VALUE"
        schema = _section(schema)
        if schema is None:
            return f"{key}: there is no such key; {parent} is a single value"
    valid = [field.name for field in dataclasses.fields(schema)]
    if parts[-1] in valid:
        whole = ", ".join(f"{name}: VALUE" for name in valid)
        return f"{key}: {parent} is null and has no keys. Give all of it: '{parent}={{{whole}}}'"
    meant = " or ".join(f"'{name}'" for name in _meant(key))
    hint = f"did you mean {meant}? " if meant else ""
    return f"{key}: there is no such key; {hint}valid: {', '.join(valid)}"


def _section(kind: Any) -> Any:
    """Return the dataclass that a key's value is of, `Published | None` as well, or None."""
    parts = (kind,) if dataclasses.is_dataclass(kind) else getattr(kind, "__args__", ())
    is_list = getattr(kind, "__origin__", None) is tuple
    return next((one for one in parts if dataclasses.is_dataclass(one) and not is_list), None)


def dotted_keys(schema: Any = Config, above: str = "") -> Iterator[str]:
    """Yield all dotted keys."""
    for field in dataclasses.fields(schema):
        yield above + field.name
        section = _section(field.type)
        if section is not None:
            yield from dotted_keys(section, f"{above}{field.name}.")


def _meant(key: str) -> list[str]:
    """Return the one or two keys that are nearest, by their last part and as a whole."""

    def nearness(known: str) -> float:
        pairs = ((key, known), (key.rpartition(".")[2], known.rpartition(".")[2]))
        whole, last = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return (last + max(whole, float(last == 1) / 2)) / 2

    near = {known: nearness(known) for known in dotted_keys()}
    best = sorted(near, key=lambda known: -near[known])[:2]
    return [known for known in best if near[known] > max(0.6, near[best[0]] - 0.1)]


def did_you_mean(wrong: str, valid: Sequence[str]) -> str:
    """Return the valid names, after the one that was probably meant."""
    near = difflib.get_close_matches(wrong, valid, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}valid: {', '.join(valid)}"


def _explain(loc: Sequence[str | int], kind: str, message: str, value: Any) -> str:
    """Say what is wrong with one key, and what would be valid in its place."""
    key = ".".join(str(part) for part in loc)
    if kind == "unexpected_keyword_argument":
        return unknown_key_message([str(part) for part in loc])
    if kind == "missing":
        return f"{key}: is missing; give it a value"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f"{key}: {value!r} is not text; quote it twice: {key}=\"'{value}'\""
    if kind == "literal_error" and isinstance(value, str):
        near = difflib.get_close_matches(value, re.findall(r"'([^']+)'", message), n=1)
        message += "".join(f"; did you mean '{name}'?" for name in near)
    shown = f" (given: {value!r})" if not isinstance(value, dict) else ""
    return f"{key}: {message.removeprefix('Value error, ')}{shown}"


_ABSENT = object()
_ADAPTER = TypeAdapter(Config)
