"""The schema of `recipe`: how a network is trained. `config.schema` has the rest."""

import math
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    Tag,
)
from pydantic.dataclasses import dataclass

Fraction = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(gt=0, le=16384)]


def _count_or_auto(value: object) -> object:
    if value == "auto" or (type(value) is int and value > 0):
        return value
    raise ValueError("must be an integer greater than 0, or auto")


# `auto` is resolved when a run is created (`run.sizes`): a frozen config has a number. A validator
# of its own, since pydantic's union would report each error once for each member.
CountOrAuto = Annotated[int | Literal["auto"], PlainValidator(_count_or_auto)]


def _weight_or_auto(value: object) -> object:
    if value == "auto" or (type(value) in (int, float) and 0 < value < math.inf):  # type: ignore[operator]
        return value
    raise ValueError("must be a number greater than 0, or auto")


WeightOrAuto = Annotated[float | Literal["auto"], PlainValidator(_weight_or_auto)]
schema_dataclass = dataclass(
    frozen=True,
    kw_only=True,
    config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False),
)


@schema_dataclass
class Augment:
    """Augmentation of the pixels of a training image; see `transforms.pixel_transforms`."""

    auto_augment: (
        Literal["autoaugment", "randaugment", "trivialaugment", "augmix", "timm_randaugment"] | None
    )
    auto_augment_kwargs: dict[str, Any]
    color_jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]
    pca_lighting_std: NonNegativeFloat
    random_erasing_prob: Fraction


@schema_dataclass
class Mixup:
    """Mixup and CutMix inside a micro-batch; an alpha of 0 disables one."""

    mixup_alpha: NonNegativeFloat
    cutmix_alpha: NonNegativeFloat
    prob: Fraction


@schema_dataclass
class ProgressiveResize:
    """Progressive resizing from start_size to data.image_size between two epochs."""

    start_size: Size
    start_epoch: NonNegativeFloat
    end_epoch: PositiveFloat
    size_divisor: PositiveInt

    def __post_init__(self) -> None:
        if self.start_epoch >= self.end_epoch:
            raise ValueError(
                f"start_epoch={self.start_epoch} must be below end_epoch={self.end_epoch}"
            )


@schema_dataclass
class Optimizer:
    """An optimizer by timm's name (`timm.optim.list_optimizers()`); "sgd" there is Nesterov's."""

    name: str
    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    momentum: Fraction
    decay_norm_and_bias: bool
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    bias_lr_scale: PositiveFloat = 1.0
    kwargs: dict[str, Any]


@schema_dataclass
class Schedule:
    """The learning rate as a function of the step.

    With `warmup_prefix` the decay begins after the warm-up and takes the remaining steps; without
    it the decay spans the whole run, and the warm-up replaces its beginning. None means True for
    `linear` and False for the others.

    `cycles` are the intervals (from, to) of steps over which cosine and linear decay, each from the
    highest rate; between them, and after the last, the rate is constant. Empty means one decay over
    the whole training. `tahoe resume --schedule` adds them to an extended run.
    """

    name: Literal["constant", "cosine", "linear", "multistep"]
    warmup_epochs: NonNegativeFloat
    warmup_prefix: bool | None = None
    min_lr_factor: Fraction
    decay_milestones: tuple[PositiveFloat, ...]
    decay_every_epochs: PositiveFloat | None = None
    decay_rate: PositiveFloat
    cycles: tuple[tuple[NonNegativeInt, PositiveInt], ...] = ()

    def __post_init__(self) -> None:
        ends = [step for cycle in self.cycles for step in cycle]
        lengths = [end - start for start, end in self.cycles]
        if ends != sorted(ends) or ends[:1] not in ([], [0]) or min(lengths, default=1) < 1:
            raise ValueError(f"cycles={self.cycles} must begin at step 0 and follow each other")

    @property
    def ends_with_training(self) -> bool:
        """True if the rate depends on the length of the training."""
        return self.name in ("cosine", "linear") and self.min_lr_factor != 1


@schema_dataclass
class Phase:
    """A phase of the training, up to an epoch; see `step.phases`.

    `lr_scale` multiplies the rate of the schedule. `stage` is passed to the network; several phases
    may have the same.
    """

    end_epoch: PositiveFloat
    stage: NonNegativeInt
    lr_scale: NonNegativeFloat = 1.0
    momentum: Fraction | None = None


@schema_dataclass
class Compile:
    """Options of torch.compile; `regional` compiles each repeated block instead of the whole."""

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = (
        "default"
    )
    dynamic: bool | None = None
    backend: str = "inductor"
    regional: bool = False


CompileOption = Annotated[  # only the errors of the type that was meant
    Annotated[bool, Tag("bool")] | Annotated[Compile, Tag("Compile")],
    Discriminator(lambda value: "Compile" if isinstance(value, dict | Compile) else "bool"),
]


@schema_dataclass
class Recipe:
    """The training of a network; exactly one of epochs, images and steps sets its duration."""

    epochs: PositiveFloat | None
    images: PositiveInt | None
    steps: PositiveInt | None
    global_batch_size: PositiveInt
    num_micro_batches: CountOrAuto
    optimizer: Optimizer
    schedule: Schedule
    augment: Augment
    mixup: Mixup
    progressive_resize: ProgressiveResize | None
    augment_repeats: PositiveInt
    class_balanced: bool
    label_smoothing: Fraction
    clip_grad_norm: PositiveFloat | None
    agc_clip_factor: PositiveFloat | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    precision: Literal["fp32", "bf16", "fp16"]
    channels_last: bool
    compile: CompileOption
    loss: Literal["cross_entropy", "bce", "model"] = "cross_entropy"
    aux_loss_weight: NonNegativeFloat = 0.3
    bce_target_threshold: Fraction | None = None
    bce_pos_weight: WeightOrAuto | None = None
    bce_max_pos_weight: PositiveFloat = 100.0
    map_rejection_penalty: NonNegativeFloat | None = None
    phases: tuple[Phase, ...] = ()
    linear_probe: bool = False
    grad_checkpointing: bool = False

    def __post_init__(self) -> None:
        ends = [phase.end_epoch for phase in self.phases]
        if ends != sorted(set(ends)):
            raise ValueError(f"phases: end_epoch must increase from one to the next, not {ends}")
        given = {k: getattr(self, k) for k in DURATIONS if getattr(self, k) is not None}
        if len(given) != 1:
            raise ValueError(
                f"the duration must be given once, as one of {', '.join(DURATIONS)}; "
                f"given: {given or 'none'}. Set the others to null"
            )
        if self.class_balanced and self.augment_repeats > 1:
            raise ValueError(
                "class_balanced=true repeats samples as needed, so augment_repeats="
                f"{self.augment_repeats} has no effect. Set augment_repeats to 1"
            )


DURATIONS = ("epochs", "images", "steps")
