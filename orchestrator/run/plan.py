"""The arithmetic of a run: its steps, and the rows that each rank computes. No torch.

A micro-batch is the unit of everything random, so it does not depend on the ranks (`run.sizes`).
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from data_sharding.format.manifest import Manifest
from data_sharding.sampling.sample_order import MicroBatchKey, Part
from data_sharding.transforms.progressive_resize import ImageSizeSchedule
from orchestrator.config.parse import ConfigError
from orchestrator.config.profile import Profile
from orchestrator.config.schema import Config
from orchestrator.config.strategy import Strategy
from orchestrator.number_format import pluralize
from orchestrator.run.label_checks import check_labels
from orchestrator.run.mix_plan import MixPlan, plan_mix
from orchestrator.run.sizes import SizeRequest, StepSizes, choose_sizes
from orchestrator.run.train_data import Mixture, TrainData


@dataclass(frozen=True)
class Plan:
    """The sizes of a run: images, batches, steps, and the steps with an evaluation or a save.

    Args:
        label_kind: "single", "multi" or "none"; see `LabelRule`.
        samples_per_class: the number of training images of each class, if the manifest has it.
    """

    num_train: int
    num_val: int
    num_classes: int
    world_size: int
    global_batch_size: int
    num_lanes: int
    num_micro_batches: int
    steps_per_epoch: int
    num_steps: int
    evaluate_every_steps: int
    save_every_steps: int | None
    save_after_eval: bool
    num_repeats: int = 1
    is_balanced: bool = False
    label_kind: str = "single"
    samples_per_class: tuple[int, ...] | None = None
    mix: MixPlan | None = None

    @property
    def micro_batch_size(self) -> int:
        return self.global_batch_size // self.num_micro_batches

    @property
    def ranks_per_micro_batch(self) -> int:
        """Ranks that share a micro-batch, each computing a part of it."""
        return max(1, self.world_size // self.num_micro_batches)

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches that a rank accumulates each step."""
        return max(1, self.num_micro_batches // self.world_size)

    @property
    def images_per_pass(self) -> int:
        """Images that a rank computes in one forward pass."""
        return self.micro_batch_size // self.ranks_per_micro_batch

    def micro_batches_of(self, rank: int) -> range:
        """Return the micro-batches of a step that a rank computes, or the one that it shares."""
        first = rank // self.ranks_per_micro_batch * self.accumulation_steps
        return range(first, first + self.accumulation_steps)

    def part_of(self, rank: int) -> Part:
        """Return the rows of its micro-batches that a rank computes."""
        return Part(rank % self.ranks_per_micro_batch, self.ranks_per_micro_batch)

    def micro_batches(self, rank: int, first_step: int) -> "MicroBatchKeys":
        """Return the keys of all that a rank computes from a step on."""
        steps = range(first_step, self.num_steps)
        return MicroBatchKeys(steps, self.micro_batches_of(rank), self.part_of(rank))

    def should_evaluate(self, step: int) -> bool:
        """Check whether a step is followed by an evaluation; the last always is."""
        return step % self.evaluate_every_steps == 0 or step == self.num_steps

    def should_save(self, step: int) -> bool:
        """Check whether the state is saved after a step in any case."""
        every = self.save_every_steps
        is_nth = every is not None and step % every == 0
        return is_nth or (self.save_after_eval and self.should_evaluate(step))

    @property
    def sampling_note(self) -> str:
        """The number of times that an epoch draws a sample, as text."""
        if self.is_balanced:
            return "classes are drawn equally often, so samples of a small class more often"
        if self.num_repeats > 1:
            return f"every sample is drawn {self.num_repeats} times in its micro-batch"
        if self.mix:
            return "as many images as all data sets have together"
        left = self.num_train % self.global_batch_size
        return f"{pluralize(left, 'image')} left for another epoch"

    def summary_lines(self) -> list[str]:
        """Return the start-up block: the numbers multiplied out, to make a wrong one visible."""
        epochs = self.num_steps / self.steps_per_epoch
        every = pluralize(self.evaluate_every_steps, "step")
        return [
            f"{pluralize(self.num_steps, 'step')} of {self.global_batch_size:,} images = "
            f"{epochs:.4g} epochs = {self.num_steps * self.global_batch_size:,} images, "
            f"evaluated on {self.num_val:,} every {every}",
            f"{pluralize(self.num_train, 'training image')} = "
            f"{pluralize(self.steps_per_epoch, 'step')} an epoch ({self.sampling_note})",
            f"global batch {self.global_batch_size:,} = "
            f"{pluralize(self.num_micro_batches, 'micro-batch')} of "
            f"{self.micro_batch_size}, {self._ranks_note}, "
            f"dealt from {self._lanes_note}",
            *(self.mix.summary_lines(self.steps_per_epoch) if self.mix else ()),
        ]

    @property
    def _lanes_note(self) -> str:
        if self.mix is None:
            return f"{pluralize(self.num_lanes, 'lane')} of the data set"
        num_lanes = self.mix.num_lanes(self.num_lanes, self.num_micro_batches)
        return f"{pluralize(num_lanes, 'lane')} of {len(self.mix.sources)} data sets"

    @property
    def _ranks_note(self) -> str:
        ranks = pluralize(self.world_size, "rank")
        if self.num_micro_batches == 1 < self.world_size:
            return f"shared by {ranks}"
        if self.ranks_per_micro_batch > 1:
            return f"each shared by {self.ranks_per_micro_batch} of {ranks}"
        if self.world_size == 1:
            return "one after the other on 1 rank" if self.accumulation_steps > 1 else "on 1 rank"
        return f"{self.accumulation_steps} on each of {ranks}"

    def with_sizes(self, config: Config) -> Config:
        """Return the config with this plan's numbers in place of `auto`."""
        return config.replace(
            {
                "recipe.num_micro_batches": self.num_micro_batches,
                "data.num_lanes": self.num_lanes,
            }
        )


@dataclass(frozen=True)
class MicroBatchKeys:
    """The keys of a rank's batches in order of computation; pickled in constant size."""

    steps: range
    micros: range
    part: Part

    def __iter__(self) -> Iterator[MicroBatchKey]:
        return (
            MicroBatchKey(step, micro, self.part) for step in self.steps for micro in self.micros
        )


def make_plan(config: Config, world_size: int, train: TrainData, val: Manifest) -> Plan:
    """Compute the plan of a config on a data set; refuse sizes that do not divide each other."""
    recipe = config.recipe
    batch, num_train = recipe.global_batch_size, train.num_samples
    num_micro_batches, num_lanes = step_sizes(config, world_size, num_train)
    check_labels(config, train, val, world_size)
    if train.classes != val.classes:
        raise ConfigError(
            f"{config.data.location}: train and val have different classes ({len(train.classes)} "
            f"and {len(val.classes)}), so labels would not mean the same",
            value=str(config.data.location),
            hint="Create the data set again.",
        )
    steps_per_epoch = num_train // batch
    num_steps = _num_steps(config, steps_per_epoch)
    _check_compresses(config.strategy, num_steps)
    _check_profiles(config.profile, num_steps)
    return Plan(
        num_train=num_train,
        num_val=val.num_samples,
        num_classes=len(train.classes),
        world_size=world_size,
        global_batch_size=batch,
        num_lanes=num_lanes,
        num_micro_batches=num_micro_batches,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        save_every_steps=config.checkpoint.every_steps,
        save_after_eval=config.checkpoint.keep_best is not None,
        evaluate_every_steps=max(1, round(config.evaluate.every_epochs * steps_per_epoch)),
        num_repeats=recipe.augment_repeats,
        is_balanced=recipe.class_balanced,
        label_kind=train.labels.kind,
        samples_per_class=train.samples_per_class,
        mix=plan_mix(train, batch, num_micro_batches, recipe.augment_repeats)
        if isinstance(train, Mixture)
        else None,
    )


def make_largest_plan(config: Config, train: TrainData, val: Manifest) -> Plan:
    """Compute the plan of a config for the most ranks, of those that Slurm may start, that fit.

    The fewest must fit, too: a job may get no more.
    """
    sizes = [size for size in config.world_sizes if ranks_fit(config, size, train.num_samples)]
    plan = make_plan(config, [*sizes, config.world_size][0], train, val)
    step_sizes(plan.with_sizes(config), config.world_sizes[-1], plan.num_train)
    return plan


def ranks_fit(config: Config, world_size: int, num_train: int) -> bool:
    """Check whether a number of ranks fits the sizes of a run."""
    try:
        step_sizes(config, world_size, num_train)
    except ConfigError:
        return False
    return True


def step_sizes(config: Config, world_size: int, num_train: int) -> StepSizes:
    """Return the numbers of micro-batches and lanes; refuse those that do not fit the ranks."""
    recipe, is_slurm = config.recipe, config.launcher.name == "slurm"
    request = SizeRequest(
        *(world_size, recipe.num_micro_batches, config.data.num_lanes, recipe.global_batch_size),
        num_train=num_train,
        repeats=recipe.augment_repeats,
        ranks_per_node=config.slurm.ranks_per_node if is_slurm else None,
        max_images=config.runtime.max_images_per_device,
        weights=tuple(source.weight for source in config.data.mix),
    )
    return choose_sizes(request)


def image_sizes(config: Config, steps_per_epoch: int) -> ImageSizeSchedule:
    """Return the schedule of training image sizes."""
    progressive, last = config.recipe.progressive_resize, config.data.image_size
    if progressive is None:
        return ImageSizeSchedule(last)
    return ImageSizeSchedule(
        last,
        progressive.start_size,
        from_step=round(progressive.start_epoch * steps_per_epoch),
        to_step=round(progressive.end_epoch * steps_per_epoch),
        multiple_of=progressive.size_divisor,
    )


def training_petaflop(cost: Mapping[str, float], num_images: float) -> float:
    """Return the operations of training on some images, in 10**15; a multiply-add is two.

    Args:
        cost: the result of `model_cost`.
        num_images: number of images of data.image_size; see ImageSizeSchedule.num_of_last.
    """
    return cost["model/training_gmacs"] * 1e9 * 2 * num_images / 1e15


def data_fingerprint(train: TrainData, val: Manifest) -> str:
    """Return the identity of a data set, which changes with any byte of either split."""
    return f"{train.fingerprint[:16]}-{val.fingerprint[:16]}"


def folds_fingerprint(train: Manifest, val: Manifest) -> str:
    """Return the identity of a data set in folds, whichever of them is val."""
    digests = sorted(shard.sha256 for split in (train, val) for shard in split.shards)
    return hashlib.sha256("\n".join((*val.classes, *digests)).encode()).hexdigest()[:16]


def split_fingerprints(fingerprint: str) -> dict[str, str]:
    """Return the first characters of the fingerprint of each split, from `data_fingerprint`."""
    return dict(zip(("train", "val"), filter(None, fingerprint.split("-")), strict=False))


def _check_compresses(strategy: Strategy, num_steps: int) -> None:
    """Refuse a run that would end before the hook that it asks for starts."""
    if strategy.comm_hook == "powersgd" and strategy.start_powersgd_step >= num_steps:
        raise ConfigError(
            f"strategy.start_powersgd_step={strategy.start_powersgd_step}, and the run has "
            f"{pluralize(num_steps, 'step')}, so strategy.comm_hook=powersgd would never start",
            value=strategy.start_powersgd_step,
            hint=f"Give e.g. strategy.start_powersgd_step={num_steps // 10}, or "
            "strategy.comm_hook=null.",
        )


def _check_profiles(profile: Profile, num_steps: int) -> None:
    """Refuse to profile steps that the run does not have."""
    if profile.is_on and profile.steps and profile.steps[1] > num_steps:
        raise ConfigError(
            f"profile.steps={list(profile.steps)}, and the run has "
            f"{pluralize(num_steps, 'step')}, so it would have no profile",
            value=profile.steps,
            hint=f"Give two steps from 1 to {num_steps}, or profile=true.",
        )


def _num_steps(config: Config, steps_per_epoch: int) -> int:
    recipe = config.recipe
    if recipe.steps is not None:
        return recipe.steps
    if recipe.images is not None:
        return max(1, round(recipe.images / recipe.global_batch_size))
    assert recipe.epochs is not None  # one of the three is given: Recipe.__post_init__
    return max(1, round(recipe.epochs * steps_per_epoch))
