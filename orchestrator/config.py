"""What a run is told: frozen dataclasses, and every check that needs nothing but the config.

The numbers live in `conf/`; here are their names, types and bounds. Hydra composes a dictionary,
`parse` turns it into a `Config` or says what is wrong with it. No torch and no Hydra here, since
the login node and every worker read configs.
"""

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Annotated, Any, Literal, cast

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from data_sharding.protocol import parse_protocol


class ConfigError(Exception):
    """The config cannot be run; the message lists what would be valid."""


Share = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(gt=0, le=16384)]
_schema = dataclass(
    frozen=True,
    kw_only=True,
    config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False),
)


@_schema
class Published:
    """What a paper reports; `verified` says whether somebody read it in the source named."""

    year: int
    source: str
    verified: bool
    dataset: str
    protocol: str | None
    top1_err: NonNegativeFloat | None
    top5_err: NonNegativeFloat | None
    num_params: PositiveInt | None
    gmacs: NonNegativeFloat | None


@_schema
class Model:
    """A network: one of ours, `timm/NAME`, `torchvision/NAME` or `package.module:function`."""

    name: str
    options: dict[str, Any]
    published: Published | None


@_schema
class Augment:
    """The training view; see data_sharding.augment for the meaning of the numbers."""

    kind: Literal["random_resized_crop", "padded_crop"]
    scale: tuple[Share, Share]
    ratio: tuple[PositiveFloat, PositiveFloat]
    padding: NonNegativeInt
    flip_prob: Share

    def __post_init__(self) -> None:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}={low, high} must be given as (from, to)")


@_schema
class Distort:
    """What changes the pixels of a training image; see data_sharding.distort."""

    policy: Literal["randaugment", "trivialaugment", "augmix"] | None
    policy_options: dict[str, Any]
    jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]
    noise_std: NonNegativeFloat
    erase_prob: Share


@_schema
class Mix:
    """Mixing of images and labels inside a micro-batch; alphas of 0 switch it off."""

    mixup_alpha: NonNegativeFloat
    cutmix_alpha: NonNegativeFloat
    prob: Share


@_schema
class Progressive:
    """Progressive resizing: the first size grows to data.image_size between two epochs."""

    first_size: Size
    from_epoch: NonNegativeFloat
    to_epoch: PositiveFloat
    multiple_of: PositiveInt

    def __post_init__(self) -> None:
        if self.from_epoch >= self.to_epoch:
            raise ValueError(f"from_epoch={self.from_epoch} must be below to_epoch={self.to_epoch}")


@_schema
class Data:
    """A data set and how it is read."""

    name: str
    url: str
    image_size: Size
    channels: Literal[1, 3]
    mean: tuple[float, ...]
    std: tuple[PositiveFloat, ...]
    augment: Augment
    protocol: str
    lanes: PositiveInt
    block_size: Annotated[int, Field(ge=2)]
    num_workers: NonNegativeInt
    max_bad_share: Share

    def __post_init__(self) -> None:
        numbers = {"mean": len(self.mean), "std": len(self.std)}
        wrong = [f"{name} has {n}" for name, n in numbers.items() if n != self.channels]
        if wrong:
            raise ValueError(f"{' and '.join(wrong)} numbers for channels={self.channels}")
        parse_protocol(self.protocol)


@_schema
class Optimizer:
    """An optimizer by timm's name (`timm.optim.list_optimizers()`); "sgd" there is Nesterov's."""

    name: str
    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    momentum: Share
    decay_norm_and_bias: bool
    options: dict[str, Any]


@_schema
class Schedule:
    """The learning rate as a function of the step."""

    name: Literal["constant", "cosine", "linear", "step"]
    warmup_epochs: NonNegativeFloat
    final_share: Share
    drop_epochs: tuple[PositiveFloat, ...]
    drop_factor: PositiveFloat


@_schema
class Recipe:
    """How a network is trained. Exactly one of epochs, images and steps says how long."""

    epochs: PositiveFloat | None
    images: PositiveInt | None
    steps: PositiveInt | None
    global_batch_size: PositiveInt
    num_micro_batches: PositiveInt
    optimizer: Optimizer
    schedule: Schedule
    distort: Distort
    mix: Mix
    progressive: Progressive | None
    repeats: PositiveInt
    balanced: bool
    label_smoothing: Share
    clip_grad_norm: PositiveFloat | None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    precision: Literal["fp32", "bf16", "fp16"]
    channels_last: bool
    compile: bool

    def __post_init__(self) -> None:
        given = {k: getattr(self, k) for k in DURATIONS if getattr(self, k) is not None}
        if len(given) != 1:
            raise ValueError(
                f"the duration must be given once, as one of {', '.join(DURATIONS)}; "
                f"given: {given or 'none'}. Set the others to null"
            )
        if self.balanced and self.repeats > 1:
            raise ValueError(
                f"balanced=true draws samples as often as it needs, so repeats={self.repeats} "
                "means nothing with it. Set repeats to 1"
            )


DURATIONS = ("epochs", "images", "steps")


@_schema
class Evaluate:
    """When the validation split is run, and in batches of how many."""

    every_epochs: PositiveFloat
    batch_size: PositiveInt


@_schema
class Checkpoint:
    """Where and how often the state is saved, and what is kept of it."""

    url: str | None
    every_steps: PositiveInt
    keep_last: Annotated[int, Field(ge=2)]  # the newest may be the one found damaged
    keep_every_steps: PositiveInt | None


@_schema
class Launcher:
    """How the ranks are started."""

    name: Literal["local"]
    num_procs: PositiveInt
    stop_grace_s: PositiveFloat


@_schema
class Cache:
    """Where a node keeps the shards of remote data sets; see data_sharding.cache."""

    dir: str
    max_gb: PositiveFloat
    num_connections: PositiveInt
    part_mb: PositiveFloat
    part_timeout_s: PositiveFloat
    deadline_s: PositiveFloat


@_schema
class Cluster:
    """What the ranks run on."""

    device: Literal["auto", "cpu", "cuda"]
    threads_per_rank: PositiveInt | None
    collective_timeout_s: PositiveFloat
    network_interface: str | None
    cache: Cache | Literal["none"]


@_schema
class Tracking:
    """The MLflow store that shows the run."""

    enabled: bool
    uri: str
    experiment: str
    ship_every_s: PositiveFloat
    drain_timeout_s: NonNegativeFloat


@_schema
class Logging:
    """How often a step is logged, and whether the ids of its samples are."""

    every_steps: PositiveInt
    sample_ids: bool


@_schema
class Config:
    """Everything that a run is told."""

    seed: NonNegativeInt
    run_dir: str | None
    runs_dir: str
    if_finished: Literal["refuse", "reuse", "rerun"]
    model: Model
    recipe: Recipe
    data: Data
    evaluate: Evaluate
    checkpoint: Checkpoint
    launcher: Launcher
    cluster: Cluster
    tracking: Tracking
    logging: Logging


# Keys that change where and how fast a run goes, not what comes out of it. A run may be continued
# with other values of these; all others are its identity.
SAFE_KEYS = (
    "run_dir",
    "runs_dir",
    "if_finished",
    "launcher",
    "cluster",
    "logging",
    "tracking",
    "checkpoint.every_steps",
    "checkpoint.keep_last",
    "checkpoint.keep_every_steps",
    "model.published",  # a corrected quotation does not make another run
    "data.url",  # the data set may have moved; its fingerprint is checked
    "data.num_workers",
)


def parse(values: Mapping[str, Any]) -> Config:
    """Return the config that a composed dictionary describes.

    Raises:
        ConfigError: unknown or missing keys, wrong types, values out of bounds; all of them, each
            with what would be valid.
    """
    try:
        # By way of JSON: its lists may become tuples while "3" may not become 3.
        return _ADAPTER.validate_json(json.dumps(values))
    except ValidationError as error:
        lines = [_explain(e["loc"], e["type"], e["msg"], e["input"]) for e in error.errors()]
        raise ConfigError(
            "the config cannot be run:\n" + "\n".join(f"  {x}" for x in lines)
        ) from None


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


def is_safe(key: str) -> bool:
    """Whether a dotted key may differ between the attempts of one run."""
    return any(key == safe or key.startswith(safe + ".") for safe in SAFE_KEYS)


def unsafe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys that make two configs different runs, each with `OLD there, NEW now`."""
    old, new = flatten(before), flatten(after)
    return {
        key: f"{old.get(key, 'absent')} there, {new.get(key, 'absent')} now"
        for key in dict.fromkeys((*new, *old))
        if not is_safe(key) and old.get(key, _ABSENT) != new.get(key, _ABSENT)
    }


def identity(config: Config) -> str:
    """Return a digest of all that decides what comes out of a run; 8 hex digits."""
    kept = {k: v for k, v in flatten(to_dict(config)).items() if not is_safe(k)}
    return sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def explain_unknown(parts: Sequence[str]) -> str:
    """Say that a dotted key does not exist, and which keys do at its place."""
    key, parent = ".".join(parts), ".".join(parts[:-1])
    schema: Any = Config
    for part in parts[:-1]:
        schema = {f.name: f.type for f in dataclasses.fields(schema)}[part]
        schema = next(iter(getattr(schema, "__args__", ())), schema)  # `Published | None`
        if not dataclasses.is_dataclass(schema):
            return f"{key}: there is no such key; {parent} is a single value"
    valid = [field.name for field in dataclasses.fields(schema)]
    return f"{key}: there is no such key; {valid_instead(parts[-1], valid)}"


def valid_instead(wrong: str, valid: Sequence[str]) -> str:
    """Return the valid names, after the one that was probably meant."""
    near = difflib.get_close_matches(wrong, valid, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}valid: {', '.join(valid)}"


def _explain(loc: Sequence[str | int], kind: str, message: str, value: Any) -> str:
    """Say what is wrong with one key, and what would be valid in its place."""
    key = ".".join(str(part) for part in loc)
    if kind == "unexpected_keyword_argument":
        return explain_unknown([str(part) for part in loc])
    if kind == "missing":
        return f"{key}: is missing; give it a value"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f"{key}: {value!r} is not text; quote it twice: {key}=\"'{value}'\""
    shown = f" (given: {value!r})" if not isinstance(value, dict) else ""
    return f"{key}: {message.removeprefix('Value error, ')}{shown}"


_ABSENT = object()
_ADAPTER = TypeAdapter(Config)
