"""How a network is trained: the `recipe` of a config; `config.schema` has the rest."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

Share = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(gt=0, le=16384)]
schema_dataclass = dataclass(
    frozen=True,
    kw_only=True,
    config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False),
)


@schema_dataclass
class Augment:
    """What changes the pixels of a training image; see `transforms.pixel_transforms`."""

    policy: (
        Literal["autoaugment", "randaugment", "trivialaugment", "augmix", "timm_randaugment"] | None
    )
    policy_options: dict[str, Any]
    jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]
    noise_std: NonNegativeFloat
    erase_prob: Share


@schema_dataclass
class Mixup:
    """Mixing of images and labels inside a micro-batch; alphas of 0 switch it off."""

    mixup_alpha: NonNegativeFloat
    cutmix_alpha: NonNegativeFloat
    prob: Share


@schema_dataclass
class ProgressiveResize:
    """Progressive resizing: the first size grows to data.image_size between two epochs."""

    first_size: Size
    from_epoch: NonNegativeFloat
    to_epoch: PositiveFloat
    multiple_of: PositiveInt

    def __post_init__(self) -> None:
        if self.from_epoch >= self.to_epoch:
            raise ValueError(f"from_epoch={self.from_epoch} must be below to_epoch={self.to_epoch}")


@schema_dataclass
class Optimizer:
    """An optimizer by timm's name (`timm.optim.list_optimizers()`); "sgd" there is Nesterov's."""

    name: str
    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    momentum: Share
    decay_norm_and_bias: bool
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    bias_lr_share: PositiveFloat = 1.0
    options: dict[str, Any]


@schema_dataclass
class Schedule:
    """The learning rate as a function of the step.

    `warmup_prefix`: the decay begins where the warm-up ends, and takes the steps that are left.
    Without it the decay is that of the whole run, and the warm-up takes the place of its beginning.
    None is True for `linear` alone.

    `cycles` are the steps (from, to) over which cosine and linear fall, each time from the highest
    rate; in between, and after the last, the rate stays. Empty: once, over the whole training. They
    are there if a run was extended (`tahoe resume --schedule`), so that what it did stays true.
    """

    name: Literal["constant", "cosine", "linear", "step"]
    warmup_epochs: NonNegativeFloat
    warmup_prefix: bool | None = None
    final_share: Share
    drop_epochs: tuple[PositiveFloat, ...]
    drop_every_epochs: PositiveFloat | None = None
    drop_factor: PositiveFloat
    cycles: tuple[tuple[NonNegativeInt, PositiveInt], ...] = ()

    def __post_init__(self) -> None:
        ends = [step for cycle in self.cycles for step in cycle]
        lengths = [end - start for start, end in self.cycles]
        if ends != sorted(ends) or ends[:1] not in ([], [0]) or min(lengths, default=1) < 1:
            raise ValueError(f"cycles={self.cycles} must begin at step 0 and follow each other")

    @property
    def ends_with_training(self) -> bool:
        """Whether a step's rate depends on how long the training is."""
        return self.name in ("cosine", "linear") and self.final_share != 1


@schema_dataclass
class Phase:
    """One of several intervals of a training, until an epoch; see `step.stages`.

    `lr_share` is of the schedule's rate. `stage` is what the network knows it by: several intervals
    may be of one stage.
    """

    to_epoch: PositiveFloat
    stage: NonNegativeInt
    lr_share: NonNegativeFloat = 1.0
    momentum: Share | None = None


@schema_dataclass
class Recipe:
    """How a network is trained. Exactly one of epochs, images and steps says how long."""

    epochs: PositiveFloat | None
    images: PositiveInt | None
    steps: PositiveInt | None
    global_batch_size: PositiveInt
    num_micro_batches: PositiveInt
    optimizer: Optimizer
    schedule: Schedule
    distort: Augment
    mix: Mixup
    progressive: ProgressiveResize | None
    repeats: PositiveInt
    balanced: bool
    label_smoothing: Share
    clip_grad_norm: PositiveFloat | None
    clip_adaptive: PositiveFloat | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    precision: Literal["fp32", "bf16", "fp16"]
    channels_last: bool
    compile: bool
    objective: Literal["cross_entropy", "bce", "own"] = "cross_entropy"
    aux_weight: NonNegativeFloat = 0.3
    bce_threshold: Share | None = None
    map_constant: NonNegativeFloat | None = None
    stages: tuple[Phase, ...] = ()
    probe: bool = False

    def __post_init__(self) -> None:
        ends = [stage.to_epoch for stage in self.stages]
        if ends != sorted(set(ends)):
            raise ValueError(f"stages: each must end after the one before, not at {ends}")
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
