"""The schema of a config: frozen dataclasses that check the type and the bounds of each value.

The values are in `conf/`. A key with a default here was added later: the default is its meaning in
configs without it, so that their runs can be continued and keep their ids. It never changes.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from data_sharding.format.class_map import digest_of
from data_sharding.format.location import Location
from data_sharding.format.sample_rule import SampleChoice, make_rule
from data_sharding.transforms.eval_protocol import parse_protocol
from orchestrator.config.profile import Profile
from orchestrator.config.recipe import CountOrAuto, Fraction, Recipe, Size, schema_dataclass
from orchestrator.config.strategy import Strategy
from orchestrator.metrics import VAL_METRICS
from orchestrator.redact import redact_urls
from slurm.sbatch import SbatchOptions

_INTERFACES = re.compile(r"[\w.:@\-]+(,[\w.:@\-]+)*")


@schema_dataclass
class Reference:
    """The published results of a network.

    The errors are those of a single network on the validation images, in percent, under `protocol`;
    those of an ensemble are the challenge's, on test images whose labels are not public. `gmacs`
    are multiply-adds of one image in 10**9, `petaflop` the operations of the whole training.
    `verified`: somebody read the errors in `source`; `recipe`: the config that reproduces them.
    """

    title: str = ""
    year: int
    venue: str | None = None
    ilsvrc_place: PositiveInt | None = None
    dataset: str
    protocol: str | None
    top1_err: NonNegativeFloat | None
    top5_err: NonNegativeFloat | None
    ensemble_size: PositiveInt | None = None
    ensemble_top5_err: NonNegativeFloat | None = None
    num_params: PositiveInt | None
    gmacs: NonNegativeFloat | None
    hardware: str | None = None
    training_time: str | None = None
    petaflop: NonNegativeFloat | None = None
    source: str
    verified: bool
    recipe: str | None = None
    caveats: tuple[str, ...] = ()


@schema_dataclass
class Model:
    """A network: one of ours, `timm/NAME`, `torchvision/NAME` or `package.module:function`."""

    name: str
    kwargs: dict[str, Any]
    published: Reference | None


@schema_dataclass
class Crop:
    """The crop of a training image; see data_sharding.transforms.crops."""

    mode: Literal["random_resized_crop", "random_crop_padded", "resize_crop"]
    scale: tuple[Fraction, Fraction]
    ratio: tuple[PositiveFloat, PositiveFloat]
    padding: NonNegativeInt
    hflip_prob: Fraction
    resize_range: tuple[Size, Size] = (256, 256)
    center_square_first: bool = False
    samples_per_crop: PositiveInt = 1

    def __post_init__(self) -> None:
        for name in ("scale", "ratio", "resize_range"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}={low, high} must be given as (from, to)")


@schema_dataclass
class Expected:
    """The properties of a known data set, checked if data.name is its name.

    `size` is (width, height) in pixels, null if the images differ. `num_train` is the number of
    training images, by which the set is recognised; a part of them is accepted too.
    """

    name: str
    num_classes: PositiveInt
    coloured: bool
    size: tuple[Size, Size] | None
    num_train: PositiveInt | None = None


@schema_dataclass
class Cache:
    """The cache of a node for remote shards; see data_sharding.storage.cache."""

    dir: str | None  # resolved on the node, by data_sharding.storage.cache.cache_directory
    max_gb: PositiveFloat
    max_concurrent_requests: PositiveInt
    chunk_mb: PositiveFloat
    request_timeout_s: PositiveFloat
    retry_timeout_s: PositiveFloat
    max_hedged_fraction: Fraction = 0.03


@schema_dataclass
class MixSource:
    """A data set that a part of the training samples is from.

    `weight` is relative to those of the others. `name` is used in messages; null: where it is.
    """

    url: str | None = None
    train: str | tuple[str, ...] | None = None
    weight: PositiveFloat
    name: str | None = None

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.train):
            raise ValueError("the shards are in url, or where train says: give one of them")

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.train,) if isinstance(self.train, str) else self.train or ()

    @property
    def label(self) -> str:
        return self.name or self.url or ", ".join(self.patterns)


@schema_dataclass
class Data:
    """A data set and its loading.

    The shards are in `url`, or where the patterns `train` and `val` say; see
    data_sharding.format.location.
    """

    name: str
    url: str | None
    image_size: Size
    in_channels: Literal[1, 3]
    mean: tuple[float, ...]
    std: tuple[PositiveFloat, ...]
    crop: Crop
    eval_protocol: str
    num_lanes: CountOrAuto
    shuffle_block_size: Annotated[int, Field(ge=2)]
    num_workers: NonNegativeInt
    max_bad_fraction: Fraction
    cache: Cache | Literal["none"]
    expected: Expected | None = None
    train: str | tuple[str, ...] | None = None
    val: str | tuple[str, ...] | None = None
    manifest: str | None = None
    image: str | None = None
    label: str | None = None
    multi_label: bool = False
    class_map: str | None = None
    mix: tuple[MixSource, ...] = ()
    fold: NonNegativeInt | None = None
    keep_decoded_mb: NonNegativeInt = 1000

    @property
    def location(self) -> Location:
        """The place of the shards and of their manifests."""
        train, val = ((p,) if isinstance(p, str) else p or () for p in (self.train, self.val))
        url = None if train or val else self.url
        return Location(url, train, val, self.manifest, self.samples.to_text(), self.fold)

    @property
    def samples(self) -> SampleChoice:
        """The members of the samples that are chosen, and their classes."""
        chosen = None if self.class_map is None else digest_of(self.class_map)
        return SampleChoice(self.image, self.label, self.multi_label, chosen)

    @property
    def train_locations(self) -> tuple[Location, ...]:
        """The places of the training samples: one, or those that are mixed."""
        whole = self.location
        mixed = (
            dataclasses.replace(whole, url=source.url, train=source.patterns, val=())
            for source in self.mix
        )
        return (*mixed,) or (whole,)

    @property
    def is_train_local(self) -> bool:
        """True if all training shards are files of this machine."""
        return all(location.is_local("train") for location in self.train_locations)

    def __post_init__(self) -> None:
        rule = make_rule(self.image, self.label, multi_label=self.multi_label)
        if self.class_map is not None and rule.labels.kind == "none":
            raise ValueError("class_map chooses classes, and label=none: samples have none")
        if self.train and self.mix:
            raise ValueError("train and mix both say where the training samples are: give one")
        if self.mix and not (self.url or self.val):
            raise ValueError(
                "mix says where the training samples are, and nothing where those of "
                "the validation split are: give val"
            )
        if not (self.url or self.train or self.val):
            raise ValueError("the shards are in url, or where train and val say: give one of them")
        numbers = {"mean": len(self.mean), "std": len(self.std)}
        wrong = [f"{name} has {n}" for name, n in numbers.items() if n != self.in_channels]
        if wrong:
            raise ValueError(f"{' and '.join(wrong)} numbers for in_channels={self.in_channels}")
        parse_protocol(self.eval_protocol)
        if self.crop.mode == "resize_crop" and self.crop.resize_range[0] < self.image_size:
            raise ValueError(
                f"crop.resize_range={self.crop.resize_range}: images of that height have no crop "
                f"of image_size={self.image_size}. Increase the range, or reduce the size"
            )


@schema_dataclass
class Evaluate:
    """The interval and the batch size of evaluations on the validation split.

    `threshold` is for images with several labels: a class is predicted above that probability.
    """

    every_epochs: PositiveFloat
    batch_size: PositiveInt
    threshold: Fraction = 0.5


@schema_dataclass
class Checkpoint:
    """Where and how often the state is saved, and which checkpoints are kept.

    It is also saved when training stops, and after each evaluation if the best is kept.
    """

    url: str | None
    every_steps: PositiveInt | None
    every_minutes: PositiveFloat | None = None
    keep_last: Annotated[int, Field(ge=2)]  # the newest may be damaged
    keep_best: Literal[VAL_METRICS] | None = "val/top1"  # type: ignore[valid-type]
    keep_every_steps: PositiveInt | None
    max_failed_saves: PositiveInt = 3

    def __post_init__(self) -> None:
        if self.every_steps is None and self.every_minutes is None:
            raise ValueError(
                "every_steps and every_minutes are both null, so a crash could lose the whole "
                "training. Set one of them"
            )


@schema_dataclass
class Launcher:
    """The start of the ranks; `nproc_per_node` and `grace_period_s` apply to this machine."""

    name: Literal["local", "slurm"]
    nproc_per_node: PositiveInt
    grace_period_s: PositiveFloat


@schema_dataclass
class Runtime:
    """The device, threads, network interface and timeouts of a rank."""

    device: Literal["auto", "cpu", "cuda"]
    threads_per_rank: PositiveInt | None
    process_group_timeout_s: PositiveFloat
    hang_timeout_s: PositiveFloat | None
    network_interface: str | None
    peak_tflops_per_device: PositiveFloat | None = None
    deterministic: bool = True
    max_images_per_device: PositiveInt | None = None

    def __post_init__(self) -> None:
        if self.network_interface is not None and not _INTERFACES.fullmatch(self.network_interface):
            raise ValueError(
                f"network_interface={self.network_interface!r}: gloo takes names alone, not NCCL's "
                "^ and =. Give the name of an interface, e.g. ib0, or several with commas"
            )


@schema_dataclass
class Slurm(SbatchOptions):
    """The Slurm job of a run, and the limits on its failures and its code snapshot."""

    max_consecutive_failures: NonNegativeInt
    code_snapshot_max_mb: PositiveFloat | None


@schema_dataclass
class Tracking:
    """The MLflow store of the run."""

    enabled: bool
    uri: str
    experiment: str
    flush_interval_s: PositiveFloat
    system_metrics_interval_s: PositiveFloat | None = None
    flush_timeout_s: NonNegativeFloat


@schema_dataclass
class Notify:
    """The receivers of a run's end: a command of the shell, a URL; see orchestrator.run.notify."""

    command: str | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        if self.url is not None and not re.match(r"https?://.|\$[A-Za-z_]\w*", self.url):
            raise ValueError(
                f"url={redact_urls(self.url)!r} is not a URL for http or https. Give one, or the "
                "environment variable that has it, e.g. '$NOTIFY_URL'"
            )


@schema_dataclass
class Logging:
    """The interval of logged steps; sample ids and plots."""

    every_steps: PositiveInt
    log_sample_ids: bool
    plots: bool = True
    weight_histograms: bool = False


@schema_dataclass
class Config:
    """The whole config of a run."""

    seed: NonNegativeInt
    strategy: Strategy = Strategy()
    init_from: str | None = None
    run_dir: str | None
    runs_dir: str
    if_finished: Literal["error", "skip", "rerun"]
    model: Model
    recipe: Recipe
    data: Data
    evaluate: Evaluate
    checkpoint: Checkpoint
    launcher: Launcher
    runtime: Runtime
    slurm: Slurm
    tracking: Tracking
    logging: Logging
    profile: Profile = Profile()
    notify: Notify = Notify()

    @property
    def world_size(self) -> int:
        """Number of ranks; the largest, where Slurm chooses the number of nodes."""
        return self.world_sizes[0]

    @property
    def world_sizes(self) -> tuple[int, ...]:
        """The possible numbers of ranks, the largest first."""
        if self.launcher.name == "local":
            return (self.launcher.nproc_per_node,)
        slurm = self.slurm
        nodes = range(slurm.max_nodes, slurm.min_nodes - 1, -1)
        return tuple(number * slurm.ranks_per_node for number in nodes)

    def replace(self, changes: Mapping[str, object]) -> Self:
        """Return a config with other values of some dotted keys, e.g. `{"data.url": "a"}`."""
        replaced: Self = _replace(self, changes)
        return replaced


def _replace(section: Any, changes: Mapping[str, object]) -> Any:
    values: dict[str, Any] = {}
    below: dict[str, dict[str, object]] = {}
    for key, value in changes.items():
        name, _, rest = key.partition(".")
        if rest:
            below.setdefault(name, {})[rest] = value
        else:
            values[name] = value
    values |= {name: _replace(getattr(section, name), part) for name, part in below.items()}
    return dataclasses.replace(section, **values)
