"""The arithmetic of a run: ranks, lanes, micro-batches, batch, steps. Pure integers, no torch.

The world size divides the micro-batches, they divide the lanes, the lanes divide the global batch
(a micro-batch is the unit of everything random, so it must not depend on the ranks).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from data_sharding.format.manifest import Manifest
from data_sharding.sampling.sample_order import MicroBatchKey, Part
from data_sharding.transforms.progressive_resize import ImageSizeSchedule
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.number_format import pluralize


@dataclass(frozen=True)
class Plan:
    """The sizes of a run: images, batches, steps, and the steps with an evaluation or a save."""

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
            f"global batch {self.global_batch_size:,} = {pluralize(self.world_size, 'rank')} x "
            f"micro-batch {self.micro_batch_size} x accumulation {self.accumulation_steps}, "
            f"dealt from {pluralize(self.num_lanes, 'lane')} of the data set",
        ]


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


def make_plan(config: Config, world_size: int, train: Manifest, val: Manifest) -> Plan:
    """Compute the plan of a config on a data set; refuse sizes that do not divide each other."""
    recipe = config.recipe
    batch, num_train = recipe.global_batch_size, train.num_samples
    check_world_size(config, world_size, num_train)
    if recipe.loss != "model" and train.labels.kind != "single":
        raise ConfigError(
            f"{config.data.url} has {train.labels.kind} labels ({train.labels}), and this loss "
            "needs one class for each sample. Nothing was started",
            value=train.labels.kind,
            hint="Index the data set again with another --label, or use recipe.loss=model with a "
            "network that computes its own loss.",
        )
    if train.classes != val.classes:
        raise ConfigError(
            f"{config.data.url}: train and val have different classes ({len(train.classes)} and "
            f"{len(val.classes)}), so labels would not mean the same",
            value=config.data.url,
            hint="Create the data set again.",
        )
    steps_per_epoch = num_train // batch
    return Plan(
        num_train=num_train,
        num_val=val.num_samples,
        num_classes=len(train.classes),
        world_size=world_size,
        global_batch_size=batch,
        num_lanes=config.data.num_lanes,
        num_micro_batches=recipe.num_micro_batches,
        steps_per_epoch=steps_per_epoch,
        num_steps=_num_steps(config, steps_per_epoch),
        save_every_steps=config.checkpoint.every_steps,
        save_after_eval=config.checkpoint.keep_best is not None,
        evaluate_every_steps=max(1, round(config.evaluate.every_epochs * steps_per_epoch)),
        num_repeats=recipe.augment_repeats,
        is_balanced=recipe.class_balanced,
    )


def make_largest_plan(config: Config, train: Manifest, val: Manifest) -> Plan:
    """Compute the plan of a config for the most ranks, of those that Slurm may start, that fit."""
    sizes = [size for size in config.world_sizes if ranks_fit(config, size, train.num_samples)]
    return make_plan(config, [*sizes, config.world_size][0], train, val)


def ranks_fit(config: Config, world_size: int, num_train: int) -> bool:
    """Check whether a number of ranks fits the sizes of a run."""
    try:
        check_world_size(config, world_size, num_train)
    except ConfigError:
        return False
    return True


def check_world_size(config: Config, world_size: int, num_train: int) -> None:
    """Refuse ranks, micro-batches, lanes and a batch that do not divide each other."""
    recipe, is_slurm = config.recipe, config.launcher.name == "slurm"
    sizes = Sizes(
        *(world_size, recipe.num_micro_batches, config.data.num_lanes, recipe.global_batch_size),
        num_train=num_train,
        repeats=recipe.augment_repeats,
        ranks_per_node=config.slurm.ranks_per_node if is_slurm else None,
    )
    check_sizes(sizes)


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


def data_fingerprint(train: Manifest, val: Manifest) -> str:
    """Return the identity of a data set, which changes with any byte of either split."""
    return f"{train.fingerprint[:16]}-{val.fingerprint[:16]}"


def split_fingerprints(fingerprint: str) -> dict[str, str]:
    """Return the first characters of the fingerprint of each split, from `data_fingerprint`."""
    return dict(zip(("train", "val"), filter(None, fingerprint.split("-")), strict=False))


def _num_steps(config: Config, steps_per_epoch: int) -> int:
    recipe = config.recipe
    if recipe.steps is not None:
        return recipe.steps
    if recipe.images is not None:
        return max(1, round(recipe.images / recipe.global_batch_size))
    assert recipe.epochs is not None  # one of the three is given: Recipe.__post_init__
    return max(1, round(recipe.epochs * steps_per_epoch))


@dataclass(frozen=True)
class Sizes:
    """The numbers that must divide each other, and their limits.

    Args:
        batch: global batch size.
        num_train: number of training images.
        repeats: number of times that a sample is in a batch.
        ranks_per_node: ranks per node of a Slurm job; None on this machine.
    """

    ranks: int
    micro_batches: int
    lanes: int
    batch: int
    num_train: int
    repeats: int = 1
    ranks_per_node: int | None = None


def check_sizes(sizes: Sizes) -> None:
    """Refuse sizes that do not divide each other, or a batch larger than the data set.

    The hint has the nearest sizes that work.
    """
    problem = _problem_of(sizes)
    if problem is None:
        return
    overrides = [*suggest_divisible(sizes)]
    few = f"{sizes.num_train} training images are too few for {sizes.ranks} ranks."
    raise ConfigError(
        f"{problem}. Nothing was started",
        value=sizes,
        hint="\n  ".join(["The nearest sizes that work:", *overrides])
        if overrides
        else f"{few} Use fewer ranks, or more images.",
    )


def _problem_of(sizes: Sizes) -> str | None:
    lanes, batch, repeats, num_train = sizes.lanes, sizes.batch, sizes.repeats, sizes.num_train
    chain = (
        ("ranks", sizes.ranks, "recipe.num_micro_batches", sizes.micro_batches),
        ("recipe.num_micro_batches", sizes.micro_batches, "data.num_lanes", lanes),
        ("data.num_lanes", lanes, "recipe.global_batch_size", batch),
    )
    for part_name, part, whole_name, whole in chain:
        if whole % part:
            return (
                f"{part_name}={part} does not divide {whole_name}={whole}. Ranks must divide "
                "micro-batches, micro-batches lanes, and lanes the global batch"
            )
    if batch // lanes % repeats:
        return (
            f"recipe.augment_repeats={repeats} does not divide the {batch // lanes} samples that "
            f"each of the {lanes} lanes contributes to a step, so a sample and its repeats would "
            "be separated"
        )
    if batch > num_train:
        return (
            f"recipe.global_batch_size={batch} is more than the {num_train} training images, so "
            "an epoch would have no step"
        )
    return None


def suggest_divisible(sizes: Sizes) -> Iterator[str]:
    """Yield the nearest overrides that work, those for the same number of ranks first."""
    ranks, micro_batches, lanes, batch = sizes.ranks, sizes.micro_batches, sizes.lanes, sizes.batch
    num_train, repeats, ranks_per_node = sizes.num_train, sizes.repeats, sizes.ranks_per_node
    per_node = ranks_per_node or 1
    for size in _sizes_near(batch, ranks * repeats, num_train):
        yield _all_sizes(ranks, micro_batches, lanes, size, repeats)
    if lanes % micro_batches == 0 and micro_batches % ranks == 0:
        for size in _sizes_near(batch, lanes * repeats, num_train):
            yield f"recipe.global_batch_size={size}   (same lanes and micro-batches)"
    if _problem_of(replace(sizes, ranks=1)) is None:
        divisors = range(per_node, micro_batches + 1, per_node)
        counts = [n for n in divisors if micro_batches % n == 0]
        fewer, more = [n for n in counts if n <= ranks], [n for n in counts if n >= ranks]
        for count in sorted({*fewer[-1:], *more[:1]}):
            yield f"{_ranks(count, ranks_per_node)}   (all else unchanged)"
    if (
        max_ranks := num_train // repeats // per_node * per_node
        if num_train < ranks * repeats
        else 0
    ):
        yield f"{_ranks(max_ranks, ranks_per_node)} " + _all_sizes(
            max_ranks, micro_batches, lanes, max_ranks * repeats, repeats
        )


def _ranks(count: int, ranks_per_node: int | None) -> str:
    if ranks_per_node is None:
        return f"launcher.nproc_per_node={count}"
    return f"slurm.nodes={count // ranks_per_node}"


def _sizes_near(batch: int, unit: int, maximum: int) -> list[int]:
    """Return the multiples of a unit around a batch, up to a maximum."""
    below = min(batch, maximum) // unit * unit
    return sorted({size for size in (below, -(-batch // unit) * unit) if 0 < size <= maximum})


def _all_sizes(ranks: int, micro_batches: int, lanes: int, batch: int, repeats: int) -> str:
    """Return overrides for a batch that is a multiple of ranks times repeats."""
    num_lanes = _nearest_divisor(batch // repeats, lanes, multiple_of=ranks)
    num_micro = _nearest_divisor(num_lanes, micro_batches, multiple_of=ranks)
    return (
        f"recipe.global_batch_size={batch} data.num_lanes={num_lanes} "
        f"recipe.num_micro_batches={num_micro}   "
        f"({ranks} ranks, {num_micro} micro-batches of {batch // num_micro})"
    )


def _nearest_divisor(whole: int, target: int, *, multiple_of: int) -> int:
    candidates = [n for n in range(multiple_of, whole + 1, multiple_of) if whole % n == 0]
    return min(candidates, key=lambda n: abs(n - target))
