"""The arithmetic of a run: ranks, lanes, micro-batches, batch, steps. Pure integers, no torch.

The world size divides the micro-batches, they divide the lanes, the lanes divide the global batch
(DESIGN: a micro-batch is the unit of everything random, so it must not depend on the ranks).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from data_sharding.format.manifest import Manifest
from data_sharding.transforms.progressive_resize import ImageSizeSchedule
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.number_format import pluralize


@dataclass(frozen=True)
class Plan:
    """What a config comes to on a given data set and number of ranks."""

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
    def accumulation_steps(self) -> int:
        """Micro-batches that a rank accumulates each step."""
        return self.num_micro_batches // self.world_size

    def micro_batches_of(self, rank: int) -> range:
        """Return the micro-batches of a step that a rank computes."""
        return range(rank * self.accumulation_steps, (rank + 1) * self.accumulation_steps)

    def micro_batches(self, rank: int, first_step: int) -> "MicroBatchKeys":
        """Return the names of all micro-batches that a rank computes from a step on."""
        return MicroBatchKeys(range(first_step, self.num_steps), self.micro_batches_of(rank))

    def should_evaluate(self, step: int) -> bool:
        """Whether the validation split is run after a step; always after the last."""
        return step % self.evaluate_every_steps == 0 or step == self.num_steps

    def should_save(self, step: int) -> bool:
        """Whether the state is saved after a step, whatever else happens."""
        every = self.save_every_steps
        is_nth = every is not None and step % every == 0
        return is_nth or (self.save_after_eval and self.should_evaluate(step))

    @property
    def sampling_note(self) -> str:
        """How often a sample is drawn."""
        if self.is_balanced:
            return "classes are drawn equally often, so samples of a small class more often"
        if self.num_repeats > 1:
            return f"every sample is drawn {self.num_repeats} times in its micro-batch"
        left = self.num_train % self.global_batch_size
        return f"{pluralize(left, 'image')} left for another epoch"

    def summary_lines(self) -> list[str]:
        """Return the start-up block: the numbers multiplied out, so that a wrong one is seen."""
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
    """(step, micro-batch) in the order they are computed; small, however many there are."""

    steps: range
    micros: range

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((step, micro) for step in self.steps for micro in self.micros)


def make_plan(config: Config, world_size: int, train: Manifest, val: Manifest) -> Plan:
    """Return what the config comes to on a data set and a number of ranks.

    Raises:
        ConfigError: the arithmetic does not work; the message lists the nearest that does.
    """
    recipe = config.recipe
    batch, num_train = recipe.global_batch_size, train.num_samples
    is_slurm = config.launcher.name == "slurm"
    sizes = Sizes(
        *(world_size, recipe.num_micro_batches, config.data.num_lanes, batch),
        num_train=num_train,
        repeats=recipe.augment_repeats,
        ranks_per_node=config.slurm.ranks_per_node if is_slurm else None,
    )
    check_sizes(sizes)
    if recipe.loss != "model" and train.labels.kind != "single":
        raise ConfigError(
            f"{config.data.url} has {train.labels.kind} labels ({train.labels}), and the "
            "objectives there are want one class a sample. Nothing was started. Such sets are "
            "read by data_sharding; index the set again with another --label to train on it."
        )
    if train.classes != val.classes:
        raise ConfigError(
            f"{config.data.url}: train and val have different classes ({len(train.classes)} and "
            f"{len(val.classes)}), so labels would not mean the same. Make the data set again."
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


def image_sizes(config: Config, steps_per_epoch: int) -> ImageSizeSchedule:
    """Return the size of the training images of each step."""
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
    """Return the 10**15 operations that training on some images takes.

    Args:
        cost: of the network, as task.model.model_cost tells it; a multiply-add is two
            operations.
        num_images: of data.image_size; see ImageSizes.num_of_last.
    """
    return cost["model/training_gmacs"] * 1e9 * 2 * num_images / 1e15


def data_fingerprint(train: Manifest, val: Manifest) -> str:
    """Return the identity of a data set; it changes with any byte of either split."""
    return f"{train.fingerprint[:16]}-{val.fingerprint[:16]}"


def split_fingerprints(fingerprint: str) -> dict[str, str]:
    """Return what begins the fingerprint of each split, of what `data_fingerprint` returned."""
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
    """The numbers that must divide each other, and what limits them.

    Args:
        batch: the global batch size.
        num_train: training images.
        ranks_per_node: of a job of Slurm; None on this machine.
    """

    ranks: int
    micro_batches: int
    lanes: int
    batch: int
    num_train: int
    repeats: int = 1
    ranks_per_node: int | None = None


def check_sizes(sizes: Sizes) -> None:
    """Refuse a chain of divisions that leaves a remainder, or a batch that is not there.

    Raises:
        ConfigError: with the nearest sizes that work.
    """
    wrong = _wrong_with(sizes)
    if wrong is None:
        return
    options = [*suggest_divisible(sizes)]
    advice = "The nearest that works:\n  " + "\n  ".join(options)
    few = (
        f"{sizes.num_train} training images are too few for {sizes.ranks} ranks: take fewer, or "
        "more images."
    )
    raise ConfigError(f"{wrong}. Nothing was started. {advice if options else few}")


def _wrong_with(sizes: Sizes) -> str | None:
    """Return the first thing that sizes do not fulfil."""
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
            f"each of the {lanes} lanes gives to a step, so a sample and its repeats would be "
            "parted"
        )
    if batch > num_train:
        return (
            f"recipe.global_batch_size={batch} is more than the {num_train} training images, so "
            "an epoch would have no step"
        )
    return None


def suggest_divisible(sizes: Sizes) -> Iterator[str]:
    """Yield overrides near the given numbers that work, first those for as many ranks."""
    ranks, micro_batches, lanes, batch = sizes.ranks, sizes.micro_batches, sizes.lanes, sizes.batch
    num_train, repeats, ranks_per_node = sizes.num_train, sizes.repeats, sizes.ranks_per_node
    per_node = ranks_per_node or 1
    for size in _sizes_near(batch, ranks * repeats, num_train):
        yield _all_sizes(ranks, micro_batches, lanes, size, repeats)
    if lanes % micro_batches == 0 and micro_batches % ranks == 0:
        for size in _sizes_near(batch, lanes * repeats, num_train):
            yield f"recipe.global_batch_size={size}   (lanes and micro-batches as they are)"
    if _wrong_with(replace(sizes, ranks=1)) is None:
        others = [n for n in range(per_node, micro_batches + 1, per_node) if not micro_batches % n]
        fewer, more = [n for n in others if n <= ranks], [n for n in others if n >= ranks]
        for count in sorted({*fewer[-1:], *more[:1]}):
            yield f"{_ranks(count, ranks_per_node)}   (all else as it is)"
    if most := num_train // repeats // per_node * per_node if num_train < ranks * repeats else 0:
        yield f"{_ranks(most, ranks_per_node)} " + _all_sizes(
            most, micro_batches, lanes, most * repeats, repeats
        )


def _ranks(count: int, ranks_per_node: int | None) -> str:
    if ranks_per_node is None:
        return f"launcher.nproc_per_node={count}"
    return f"slurm.nodes={count // ranks_per_node}"


def _sizes_near(batch: int, unit: int, most: int) -> list[int]:
    """Return the multiples of a unit around a batch, of those that the images suffice for."""
    below = min(batch, most) // unit * unit
    return sorted({size for size in (below, -(-batch // unit) * unit) if 0 < size <= most})


def _all_sizes(ranks: int, micro_batches: int, lanes: int, batch: int, repeats: int) -> str:
    """Return overrides for a batch that ranks times repeats divide."""
    num_lanes = _nearest_divisor(batch // repeats, lanes, multiple_of=ranks)
    num_micro = _nearest_divisor(num_lanes, micro_batches, multiple_of=ranks)
    return (
        f"recipe.global_batch_size={batch} data.num_lanes={num_lanes} "
        f"recipe.num_micro_batches={num_micro}   "
        f"({ranks} ranks, {num_micro} micro-batches of {batch // num_micro})"
    )


def _nearest_divisor(whole: int, wanted: int, *, multiple_of: int) -> int:
    candidates = [n for n in range(multiple_of, whole + 1, multiple_of) if whole % n == 0]
    return min(candidates, key=lambda n: abs(n - wanted))
