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
    time: str | None = None
    petaflop: NonNegativeFloat | None = None
    source: str
    verified: bool
    recipe: str | None = None
    traps: tuple[str, ...] = ()


@schema_dataclass
class Model:
    """A network: one of ours, `timm/NAME`, `torchvision/NAME` or `package.module:function`."""

    name: str
    options: dict[str, Any]
    published: Reference | None


@schema_dataclass
class Crop:
    """The training view; see data_sharding.transforms.crops for the meaning of the numbers."""

    kind: Literal["random_resized_crop", "padded_crop", "scaled_crop"]
    scale: tuple[Share, Share]
    ratio: tuple[PositiveFloat, PositiveFloat]
    padding: NonNegativeInt
    flip_prob: Share
    sides: tuple[Size, Size] = (256, 256)
    central_square: bool = False
    shared_by: PositiveInt = 1

    def __post_init__(self) -> None:
        for name in ("scale", "ratio", "sides"):
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
class Data:
    """A data set and how it is read."""

    name: str
    url: str
    image_size: Size
    channels: Literal[1, 3]
    mean: tuple[float, ...]
    std: tuple[PositiveFloat, ...]
    augment: Crop
    protocol: str
    lanes: PositiveInt
    block_size: Annotated[int, Field(ge=2)]
    num_workers: NonNegativeInt
    max_bad_share: Share
    expected: Expected | None = None

    def __post_init__(self) -> None:
        numbers = {"mean": len(self.mean), "std": len(self.std)}
        wrong = [f"{name} has {n}" for name, n in numbers.items() if n != self.channels]
        if wrong:
            raise ValueError(f"{' and '.join(wrong)} numbers for channels={self.channels}")
        parse_protocol(self.protocol)
        if self.augment.kind == "scaled_crop" and self.augment.sides[0] < self.image_size:
            raise ValueError(
                f"augment.sides={self.augment.sides}: images of that height have no crop of "
                f"image_size={self.image_size}. Make the sides larger, or the crop smaller"
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
    keep_best: Literal["val/top1", "val/top5", "val/loss"] | None = "val/top1"
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
    """How the ranks are started; `num_procs` and `stop_grace_s` are those of this machine."""

    name: Literal["local", "slurm"]
    num_procs: PositiveInt
    stop_grace_s: PositiveFloat


@schema_dataclass
class Cache:
    """Where a node keeps the shards of remote data sets; see data_sharding.storage.cache."""

    dir: str | None  # resolved on the node, by data_sharding.storage.cache.cache_directory
    max_gb: PositiveFloat
    num_connections: PositiveInt
    part_mb: PositiveFloat
    part_timeout_s: PositiveFloat
    deadline_s: PositiveFloat


@schema_dataclass
class Container:
    """What the ranks of a job run in; see slurm.sbatch."""

    image: str
    runtime: Literal["pyxis", "apptainer"]
    python: str
    mounts: tuple[str, ...]


@schema_dataclass
class Cluster:
    """What the ranks run on. What Slurm is asked for is in submitit's words."""

    device: Literal["auto", "cpu", "cuda"]
    threads_per_rank: PositiveInt | None
    collective_timeout_s: PositiveFloat
    hang_timeout_s: PositiveFloat | None
    network_interface: str | None
    peak_tflops: PositiveFloat | None = None
    cache: Cache | Literal["none"]
    nodes: PositiveInt
    tasks_per_node: PositiveInt | None
    gpus_per_node: NonNegativeInt
    cpus_per_task: PositiveInt | None
    mem_gb: PositiveFloat | None
    timeout_min: PositiveInt | None
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    exclude: str | None
    array_parallelism: PositiveInt | None
    signal_lead_s: PositiveInt
    max_crashes: NonNegativeInt
    snapshot_mb: PositiveFloat | None
    modules: tuple[str, ...]
    setup: tuple[str, ...]
    container: Container | None
    srun_args: tuple[str, ...]
    additional_parameters: dict[str, str | int | float | bool]

    def __post_init__(self) -> None:
        if self.network_interface is not None and not _INTERFACES.fullmatch(self.network_interface):
            raise ValueError(
                f"network_interface={self.network_interface!r}: gloo, which carries the decisions, "
                "takes names alone, not NCCL's ^ and =. Give the name of an interface, e.g. ib0, "
                "or several with commas"
            )
        limit_s = None if self.timeout_min is None else 60 * self.timeout_min
        if limit_s is not None and limit_s <= self.signal_lead_s:
            raise ValueError(
                f"timeout_min={self.timeout_min} is {limit_s} s, and signal_lead_s="
                f"{self.signal_lead_s} before that the ranks save and stop: at once. Give them "
                "more time, or a shorter lead"
            )

    @property
    def ranks_per_node(self) -> int:
        """A rank for each GPU, unless it is said otherwise; one where there are none."""
        return self.tasks_per_node or self.gpus_per_node or 1


@schema_dataclass
class Tracking:
    """The MLflow store that shows the run."""

    enabled: bool
    uri: str
    experiment: str
    ship_every_s: PositiveFloat
    system_every_s: PositiveFloat | None = None
    drain_timeout_s: NonNegativeFloat


@schema_dataclass
class Logging:
    """How often a step is logged; whether the ids of its samples are; what is drawn at the end."""

    every_steps: PositiveInt
    sample_ids: bool
    pictures: bool = True
    weight_histograms: bool = False


@schema_dataclass
class Config:
    """Everything that a run is told."""

    seed: NonNegativeInt
    strategy: Literal["ddp", "ddp_zero1"] = "ddp"
    init_from: str | None = None
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

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        if self.launcher.name == "local":
            return self.launcher.num_procs
        return self.cluster.nodes * self.cluster.ranks_per_node
