"""The schema of a config: frozen dataclasses, whose bounds hold without anything but the config.

The numbers live in `conf/`; here are their names and types. A key that came after others has here
what it means where it is missing, so that runs from before it was there can go on and keep their
ids; such a value is never changed.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from data_sharding.transforms.eval_protocol import parse_protocol
from orchestrator.config.recipe import Recipe, Share, Size, schema_dataclass
from orchestrator.metrics import VAL_METRICS
from slurm.sbatch import SbatchOptions

_INTERFACES = re.compile(r"[\w.:@\-]+(,[\w.:@\-]+)*")


@schema_dataclass
class Reference:
    """What a paper reports of a system.

    The errors are a single network's on the validation images, in percent, under `protocol`; those
    of an ensemble are the challenge's own, on test images whose labels are not public. `gmacs` are
    multiply-adds of one image in 10**9, `petaflop` the operations of the whole training.
    `verified`: somebody read the errors in that source; `recipe`: the config that trains so.
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
    """The training view; see data_sharding.transforms.crops for the meaning of the numbers."""

    mode: Literal["random_resized_crop", "random_crop_padded", "resize_crop"]
    scale: tuple[Share, Share]
    ratio: tuple[PositiveFloat, PositiveFloat]
    padding: NonNegativeInt
    hflip_prob: Share
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
    """What the images of a known set are; it holds while data.name is that of the set.

    `size` is (width, height) in pixels, null where they differ.
    """

    name: str
    num_classes: PositiveInt
    coloured: bool
    size: tuple[Size, Size] | None


@schema_dataclass
class Cache:
    """Where a node keeps the shards of remote data sets; see data_sharding.storage.cache."""

    dir: str | None  # resolved on the node, by data_sharding.storage.cache.cache_directory
    max_gb: PositiveFloat
    max_concurrent_requests: PositiveInt
    chunk_mb: PositiveFloat
    request_timeout_s: PositiveFloat
    retry_timeout_s: PositiveFloat


@schema_dataclass
class Data:
    """A data set and how it is read."""

    name: str
    url: str
    image_size: Size
    in_channels: Literal[1, 3]
    mean: tuple[float, ...]
    std: tuple[PositiveFloat, ...]
    crop: Crop
    eval_protocol: str
    num_lanes: PositiveInt
    shuffle_block_size: Annotated[int, Field(ge=2)]
    num_workers: NonNegativeInt
    max_bad_fraction: Share
    cache: Cache | Literal["none"]
    expected: Expected | None = None

    def __post_init__(self) -> None:
        numbers = {"mean": len(self.mean), "std": len(self.std)}
        wrong = [f"{name} has {n}" for name, n in numbers.items() if n != self.in_channels]
        if wrong:
            raise ValueError(f"{' and '.join(wrong)} numbers for in_channels={self.in_channels}")
        parse_protocol(self.eval_protocol)
        if self.crop.mode == "resize_crop" and self.crop.resize_range[0] < self.image_size:
            raise ValueError(
                f"crop.resize_range={self.crop.resize_range}: images of that height have no crop "
                f"of image_size={self.image_size}. Make the range larger, or the crop smaller"
            )


@schema_dataclass
class Evaluate:
    """When the validation split is run, and in batches of how many."""

    every_epochs: PositiveFloat
    batch_size: PositiveInt


@schema_dataclass
class Checkpoint:
    """Where and how often the state is saved, and what is kept of it.

    It is also saved when training stops, and after each evaluation if the best is kept.
    """

    url: str | None
    every_steps: PositiveInt | None
    every_minutes: PositiveFloat | None = None
    keep_last: Annotated[int, Field(ge=2)]  # the newest may be the one found damaged
    keep_best: Literal[VAL_METRICS] | None = "val/top1"  # type: ignore[valid-type]
    keep_every_steps: PositiveInt | None
    max_failed_saves: PositiveInt = 3

    def __post_init__(self) -> None:
        if self.every_steps is None and self.every_minutes is None:
            raise ValueError(
                "every_steps and every_minutes are both null: what a crash costs would have no "
                "bound. Give one of them"
            )


@schema_dataclass
class Launcher:
    """How the ranks are started; `nproc_per_node` and `grace_period_s` are those of this "
    "machine."""

    name: Literal["local", "slurm"]
    nproc_per_node: PositiveInt
    grace_period_s: PositiveFloat


@schema_dataclass
class Runtime:
    """The device of a rank, its threads, its connections, and how long it waits."""

    device: Literal["auto", "cpu", "cuda"]
    threads_per_rank: PositiveInt | None
    process_group_timeout_s: PositiveFloat
    hang_timeout_s: PositiveFloat | None
    network_interface: str | None
    peak_tflops_per_device: PositiveFloat | None = None

    def __post_init__(self) -> None:
        if self.network_interface is not None and not _INTERFACES.fullmatch(self.network_interface):
            raise ValueError(
                f"network_interface={self.network_interface!r}: gloo, which carries the decisions, "
                "takes names alone, not NCCL's ^ and =. Give the name of an interface, e.g. ib0, "
                "or several with commas"
            )


@schema_dataclass
class Slurm(SbatchOptions):
    """The job of a run, and when the run is given up."""

    max_consecutive_failures: NonNegativeInt
    code_snapshot_max_mb: PositiveFloat | None


@schema_dataclass
class Tracking:
    """The MLflow store that shows the run."""

    enabled: bool
    uri: str
    experiment: str
    flush_interval_s: PositiveFloat
    system_metrics_interval_s: PositiveFloat | None = None
    flush_timeout_s: NonNegativeFloat


@schema_dataclass
class Logging:
    """How often a step is logged, and what else is: sample ids, a profiler's trace, plots."""

    every_steps: PositiveInt
    log_sample_ids: bool
    profile_steps: tuple[PositiveInt, PositiveInt] | None = None
    plots: bool = True
    weight_histograms: bool = False

    def __post_init__(self) -> None:
        if self.profile_steps and self.profile_steps[0] > self.profile_steps[1]:
            raise ValueError(f"profile_steps={self.profile_steps} must be given as (first, last)")


@schema_dataclass
class Config:
    """Everything that a run is told."""

    seed: NonNegativeInt
    strategy: Literal["ddp", "ddp_zero1"] = "ddp"
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

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        if self.launcher.name == "local":
            return self.launcher.nproc_per_node
        return self.slurm.nodes * self.slurm.ranks_per_node
