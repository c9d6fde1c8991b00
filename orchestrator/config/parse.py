"""Parse and validate a composed Hydra config into a `Config`, and report all errors at once.

Imports neither torch nor Hydra, since the login node and every worker read configs.
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
from orchestrator.redact import has_credentials, has_token, redact_urls


class ConfigError(UserError):
    """The config cannot be run; `value` is the wrong value, or the list of wrong keys."""


# Keys that change where and how fast a run trains, not its result. A run may be continued with
# other values of these; all others are its identity.
MUTABLE_KEYS = (
    "run_dir",
    "runs_dir",
    "if_finished",
    "launcher",
    "runtime",
    "slurm",
    "logging",
    "profile",
    "tracking",
    "notify",
    "strategy.name",
    "strategy.bucket_cap_mb",
    "checkpoint.every_steps",
    "checkpoint.every_minutes",
    "checkpoint.keep_last",
    "checkpoint.keep_best",
    "checkpoint.keep_every_steps",
    "checkpoint.max_failed_saves",
    "recipe.grad_checkpointing",  # the same bits, in less memory
    "model.published",  # a corrected quotation does not make another run
    "data.url",  # the data set may have moved; its fingerprint is checked
    "data.train",
    "data.val",
    "data.manifest",
    "data.mix.url",
    "data.mix.train",
    "data.mix.name",
    "data.num_workers",
    "data.keep_decoded_mb",
    "data.cache",
    "data.expected",  # checked when the run is created
)


def parse(values: Mapping[str, Any]) -> Config:
    """Parse a composed Hydra config into a `Config`."""
    _check_text(values)
    try:
        # By way of JSON: its lists may become tuples while "3" may not become 3.
        config = _ADAPTER.validate_json(json.dumps(values))
    except ValidationError as error:
        errors = [(_keys(e["loc"]), e["type"], e["msg"], e["input"]) for e in error.errors()]
        lines = "\n".join(f"  {_explain(*details)}" for details in errors)
        keys = [".".join(map(str, location)) for location, *_ in errors]
        raise ConfigError(f"the config cannot be run:\n{lines}", value=keys) from None
    _check_secrets(config)
    _check_powersgd(config)
    return config


def _check_text(values: Mapping[str, Any]) -> None:
    """Refuse names of files in another encoding, which JSON, YAML and MLflow cannot have."""
    for key, value in flatten(values).items():
        try:
            str(value).encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{key}={value!a} is not UTF-8, so config.yaml cannot have it",
                value=[key],
                hint="Rename the directory or file. If it is UTF-8, set PYTHONUTF8=1: this locale "
                "is not.",
            ) from None


def refuse_password(key: str, url: str | None) -> None:
    """Refuse the URL of a key if it has a password, which the error does not repeat."""
    if url and has_credentials(url):
        raise ConfigError(
            f"{key}={redact_urls(url)} has a password or a signature, which config.yaml and logs "
            "would show",
            value=[key],
            hint="Give it where the store looks for it: AWS_* or ~/.aws, FSSPEC_PROTOCOL_* or "
            "~/.config/fsspec, MLFLOW_TRACKING_USERNAME and _PASSWORD, ~/.pgpass, ~/.netrc.",
        )


def _check_secrets(config: Config) -> None:
    """Refuse a password before it is written to config.yaml, which others may read."""
    refuse_password("data.class_map", config.data.class_map)  # before the file is read
    urls = {
        "data.url": config.data.url,
        "data.train": " ".join(config.data.location.train),
        "data.val": " ".join(config.data.location.val),
        "data.manifest": config.data.manifest,
        "data.mix": " ".join(" ".join((s.url or "", *s.patterns)) for s in config.data.mix),
        "checkpoint.url": config.checkpoint.url,
        "tracking.uri": config.tracking.uri,
        "init_from": config.init_from,
    }
    for key, url in urls.items():
        refuse_password(key, url)
    receivers = {"notify.url": config.notify.url, "notify.command": config.notify.command}
    for key, text in receivers.items():
        if text and has_token(text):
            raise ConfigError(
                f"{key} has a password or a token in a URL, which config.yaml and logs would show",
                value=[key],
                hint="Put it into an environment variable of the machine that sends, and give its "
                f"name: {key}='$NAME'.",
            )


def _check_powersgd(config: Config) -> None:
    """Refuse what would spoil the gradients that PowerSGD keeps from step to step."""
    if config.strategy.comm_hook != "powersgd":
        return
    reasons = {
        "recipe.precision": config.recipe.precision == "fp16"
        and "the loss scaler skips steps whose gradients are infinite, and PowerSGD would keep "
        "them for every later step. Set recipe.precision=bf16",
        "recipe.phases": config.recipe.phases
        and "PowerSGD would add what is left of a phase to the gradients of the next. Set "
        "recipe.phases=[]",
    }
    for key, reason in reasons.items():
        if reason:
            raise ConfigError(
                f"strategy.comm_hook=powersgd does not work with this {key}",
                value=[key],
                hint=f"{reason}, or strategy.comm_hook=null or bf16_compress.",
            )


def to_dict(config: Config) -> dict[str, Any]:
    """Convert a config to the plain values of config.yaml."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(cast(Any, config))))
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into one mapping of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def is_mutable_key(key: str) -> bool:
    """Check whether a dotted key may differ between the attempts of one run."""
    return any(key == mutable or key.startswith(mutable + ".") for mutable in MUTABLE_KEYS)


def immutable_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys that make two configs different runs, each with `OLD there, NEW now`."""
    old, new = flatten(before), flatten(after)
    return {
        key: f"{old.get(key, 'absent')} there, {new.get(key, 'absent')} now"
        for key in dict.fromkeys((*new, *old))
        if not is_mutable_key(key)
        and _immutable(key, old.get(key, _ABSENT)) != _immutable(key, new.get(key, _ABSENT))
    }


def _immutable(key: str, value: Any) -> Any:
    """Return a value without the mutable keys of the mappings that it lists."""
    if isinstance(value, list):
        return [_immutable(key, item) for item in value]
    if isinstance(value, Mapping):
        return {name: x for name, x in value.items() if not is_mutable_key(f"{key}.{name}")}
    return value


def config_hash(config: Config) -> str:
    """Return a digest of all keys that determine the result of a run: 8 hex digits.

    Values equal to the schema's default are left out, so a new key with a default does not change
    the hash of an existing config.
    """
    values = _hashed(config)
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _hashed(value: Any, prefix: str = "") -> Any:
    if isinstance(value, tuple):
        return [_hashed(item, prefix) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    hashed = {}
    for field in dataclasses.fields(value):
        key = prefix + field.name
        item = _hashed(getattr(value, field.name), f"{key}.")
        if item != _hashed(field.default, f"{key}.") and not is_mutable_key(key):
            hashed[field.name] = item
    return hashed


def unknown_key_message(parts: Sequence[str]) -> str:
    """Explain that a dotted key does not exist, with the nearest and the valid keys."""
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
        values = ", ".join(f"{name}: VALUE" for name in valid)
        return f"{key}: {parent} has no keys as it is; give all of it: '{parent}={{{values}}}'"
    nearest = " or ".join(f"'{name}'" for name in _nearest_keys(key))
    hint = f"did you mean {nearest}? " if nearest else ""
    return f"{key}: there is no such key; {hint}valid: {', '.join(valid)}"


def _section(kind: Any) -> Any:
    """Return the dataclass in the type of a key, e.g. of `Reference | None`, or None."""
    if hasattr(kind, "__metadata__"):  # Annotated
        return _section(kind.__origin__)
    if dataclasses.is_dataclass(kind):
        return kind
    is_list = getattr(kind, "__origin__", None) is tuple
    members = () if is_list else getattr(kind, "__args__", ())
    return next(filter(None, map(_section, members)), None)


def dotted_keys(schema: Any = Config, prefix: str = "") -> Iterator[str]:
    """Yield all dotted keys."""
    for field in dataclasses.fields(schema):
        yield prefix + field.name
        section = _section(field.type)
        if section is not None:
            yield from dotted_keys(section, f"{prefix}{field.name}.")


def _nearest_keys(key: str) -> list[str]:
    """Return the one or two most similar keys, by their last part and as a whole."""

    def similarity(known: str) -> float:
        pairs = ((key, known), (key.rpartition(".")[2], known.rpartition(".")[2]))
        whole, last = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return (last + max(whole, float(last == 1) / 2)) / 2

    scores = {known: similarity(known) for known in dotted_keys()}
    best = sorted(scores, key=lambda known: -scores[known])[:2]
    return [known for known in best if scores[known] > max(0.6, scores[best[0]] - 0.1)]


def did_you_mean(wrong: str, valid: Sequence[str]) -> str:
    """List the valid names, after the most similar one."""
    matches = difflib.get_close_matches(wrong, valid, n=1)
    hint = f"did you mean '{matches[0]}'? " if matches else ""
    return f"{hint}valid: {', '.join(valid)}"


def _keys(location: Sequence[str | int]) -> tuple[str | int, ...]:
    """Leave out the type that pydantic names where a key has several."""
    return tuple(part for part in location if part not in ("bool", "Cache", "Compile"))


def _explain(location: Sequence[str | int], kind: str, message: str, value: Any) -> str:
    """Explain what is wrong with one key, and what would be valid."""
    key = ".".join(map(str, location))
    if kind == "unexpected_keyword_argument":
        return unknown_key_message([str(part) for part in location])
    if kind == "missing":
        return f"{key}: is missing; give it a value"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f"{key}: {value!r} is not text; quote it twice: {key}=\"'{value}'\""
    if kind == "literal_error" and isinstance(value, str):
        matches = difflib.get_close_matches(value, re.findall(r"'([^']+)'", message), n=1)
        message += "".join(f"; did you mean '{name}'?" for name in matches)
    shown = f" (given: {value!r})" if not isinstance(value, dict) else ""
    return f"{key}: {message.removeprefix('Value error, ')}{shown}"


_ABSENT = object()
_ADAPTER = TypeAdapter(Config)
