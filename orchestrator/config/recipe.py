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

    auto_augment: (
        Literal["autoaugment", "randaugment", "trivialaugment", "augmix", "timm_randaugment"] | None
    )
    auto_augment_kwargs: dict[str, Any]
    color_jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]
    pca_lighting_std: NonNegativeFloat
    random_erasing_prob: Share


@schema_dataclass
class Mixup:
    """Mixing of images and labels inside a micro-batch; alphas of 0 switch it off."""

    mixup_alpha: NonNegativeFloat
    cutmix_alpha: NonNegativeFloat
    prob: Share


@schema_dataclass
class ProgressiveResize:
    """Progressive resizing: the first size grows to data.image_size between two epochs."""

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
    momentum: Share
    decay_norm_and_bias: bool
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    bias_lr_scale: PositiveFloat = 1.0
    kwargs: dict[str, Any]


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

    name: Literal["constant", "cosine", "linear", "multistep"]
    warmup_epochs: NonNegativeFloat
    warmup_prefix: bool | None = None
    min_lr_factor: Share
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
        """Whether a step's rate depends on how long the training is."""
        return self.name in ("cosine", "linear") and self.min_lr_factor != 1


@schema_dataclass
class Phase:
    """One of several consecutive intervals of a training, up to an epoch; see `step.phases`.

    `lr_scale` multiplies the schedule's rate. `stage` is the number by which the network knows it;
    several phases may have the same.
    """

    end_epoch: PositiveFloat
    stage: NonNegativeInt
    lr_scale: NonNegativeFloat = 1.0
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
    augment: Augment
    mixup: Mixup
    progressive_resize: ProgressiveResize | None
    augment_repeats: PositiveInt
    class_balanced: bool
    label_smoothing: Share
    clip_grad_norm: PositiveFloat | None
    agc_clip_factor: PositiveFloat | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    precision: Literal["fp32", "bf16", "fp16"]
    channels_last: bool
    compile: bool
    loss: Literal["cross_entropy", "bce", "model"] = "cross_entropy"
    aux_loss_weight: NonNegativeFloat = 0.3
    bce_target_threshold: Share | None = None
    map_rejection_penalty: NonNegativeFloat | None = None
    phases: tuple[Phase, ...] = ()
    linear_probe: bool = False

    def __post_init__(self) -> None:
        ends = [stage.end_epoch for stage in self.phases]
        if ends != sorted(set(ends)):
            raise ValueError(f"phases: each must end after the one before, not at {ends}")
        given = {k: getattr(self, k) for k in DURATIONS if getattr(self, k) is not None}
        if len(given) != 1:
            raise ValueError(
                f"the duration must be given once, as one of {', '.join(DURATIONS)}; "
                f"given: {given or 'none'}. Set the others to null"
            )
        if self.class_balanced and self.augment_repeats > 1:
            raise ValueError(
                "class_balanced=true draws samples as often as it needs, so augment_repeats="
                f"{self.augment_repeats} means nothing with it. Set augment_repeats to 1"
            )


DURATIONS = ("epochs", "images", "steps")
