"""The sizes of a step: ranks, micro-batches, lanes, batch. Pure integers.

Either the ranks divide the micro-batches, and a rank accumulates several; or the micro-batches
divide the ranks, and several ranks share one, each computing an equal part. Micro-batches divide
the lanes, lanes the global batch, and repeats the samples of a lane. `auto` numbers are chosen once
for a run, so that it keeps its batches and its batch norm when it moves to other ranks.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from data_sharding.sampling.mixed_order import divide_batch
from orchestrator.config.parse import ConfigError
from orchestrator.config.recipe import CountOrAuto
from orchestrator.config.schema import Config
from orchestrator.number_format import pluralize

_AUTO_LANES = 32  # enough to mix shards that are sorted by class, few enough to read side by side


class StepSizes(NamedTuple):
    """The numbers of micro-batches and lanes of a step."""

    micro_batches: int
    lanes: int


@dataclass(frozen=True)
class SizeRequest:
    """The sizes in a config, and their limits.

    Args:
        batch: global batch size.
        num_train: number of training images.
        repeats: number of times that a sample is in a batch.
        ranks_per_node: ranks per node of a Slurm job; None on this machine.
        max_images: largest number of images in a pass of a rank, where micro-batches are `auto`.
        weights: those of the data sets of a mixture, each of which is in every micro-batch.
    """

    ranks: int
    micro_batches: CountOrAuto
    lanes: CountOrAuto
    batch: int
    num_train: int
    repeats: int = 1
    ranks_per_node: int | None = None
    max_images: int | None = None
    weights: tuple[float, ...] = ()

    def quotas(self, micro_batches: int) -> list[int]:
        """Return the samples of a step from each data set of a mixture."""
        return divide_batch(self.weights, self.batch, micro_batches * self.repeats)


def choose_sizes(request: SizeRequest) -> StepSizes:
    """Return the requested numbers; in place of `auto`, those that suit the ranks.

    `auto` is one micro-batch a rank, or the fewest that keep to `max_images`; and about 32 lanes.

    Raises:
        ConfigError: nothing works; the hint has the nearest requests that do.
    """
    sizes = _choose(request)
    if sizes is not None:
        return sizes
    overrides = [*suggest_overrides(request)]
    hint = "\n  ".join(["The nearest sizes that work:", *overrides])
    if not overrides and _is_thin(request):
        hint = "Raise the smallest weight or the batch, or use fewer micro-batches."
    elif not overrides:
        few = f"{request.num_train} training images are too few for {request.ranks} ranks."
        hint = f"{few} Use fewer ranks, or more images."
    raise ConfigError(f"{next(_problems(request))}. Nothing was started", value=request, hint=hint)


def keep_sizes(config: Config, frozen: Config) -> Config:
    """Return a config with the numbers of a run that exists in place of `auto`."""
    changes: dict[str, object] = {}
    if config.recipe.num_micro_batches == "auto":
        changes["recipe.num_micro_batches"] = frozen.recipe.num_micro_batches
    if config.data.num_lanes == "auto":
        changes["data.num_lanes"] = frozen.data.num_lanes
    return config.replace(changes)


def _choose(request: SizeRequest) -> StepSizes | None:
    """Return the numbers of `choose_sizes`, or None if nothing works."""
    lanes, (samples, rest) = request.lanes, divmod(request.batch, request.repeats)
    if rest or request.batch > request.num_train:
        return None
    if isinstance(lanes, int) and samples % lanes:
        return None
    numbers = _micro_batches(request, lanes if isinstance(lanes, int) else samples)
    if not numbers:
        return None
    # No micro-batch of one image, whose batch norm fails; one a rank; else as many as possible.
    micro_batches = min(
        numbers, key=lambda n: (n == request.batch, n < request.ranks, abs(n - request.ranks))
    )
    if isinstance(lanes, int):
        return StepSizes(micro_batches, lanes)
    multiples = [n * micro_batches for n in _divisors(samples // micro_batches)]
    return StepSizes(micro_batches, min(multiples, key=lambda n: abs(n - _AUTO_LANES)))


def _micro_batches(request: SizeRequest, whole: int) -> list[int]:
    """Return the valid numbers of micro-batches, which divide the lanes or the samples."""
    if isinstance(request.micro_batches, int):
        numbers = [request.micro_batches] if whole % request.micro_batches == 0 else []
    else:
        limit = request.max_images or request.batch
        numbers = [n for n in _divisors(whole) if request.batch <= limit * max(n, request.ranks)]
    return [n for n in numbers if _suits_ranks(n, request) and all(request.quotas(n))]


def _is_thin(request: SizeRequest) -> bool:
    """Check whether nothing works only because a data set of a mixture would have no sample."""
    return bool(request.weights and _choose(replace(request, weights=())))


def _suits_ranks(micro_batches: int, request: SizeRequest) -> bool:
    """Check whether ranks compute whole micro-batches, or equal parts of one."""
    if request.ranks <= micro_batches:
        return micro_batches % request.ranks == 0
    return request.ranks % micro_batches == 0 and request.batch % request.ranks == 0


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _problems(request: SizeRequest) -> Iterator[str]:
    """Yield the reasons why nothing works, the plainest first."""
    ranks, batch, repeats = request.ranks, request.batch, request.repeats
    micro_batches, lanes = request.micro_batches, request.lanes
    if batch > request.num_train:
        yield (
            f"recipe.global_batch_size={batch} is more than the {request.num_train} training "
            "images, so an epoch would have no step"
        )
    if isinstance(micro_batches, int) and micro_batches % ranks and ranks % micro_batches:
        yield (
            f"{ranks} ranks cannot compute recipe.num_micro_batches={micro_batches}: neither "
            "number divides the other, so ranks would have different amounts to do"
        )
    if batch % ranks:
        yield f"{ranks} ranks cannot have equal parts of recipe.global_batch_size={batch}"
    chain = [
        ("recipe.num_micro_batches", micro_batches, "data.num_lanes", lanes),
        ("recipe.num_micro_batches", micro_batches, "recipe.global_batch_size", batch),
        ("data.num_lanes", lanes, "recipe.global_batch_size", batch),
        ("recipe.augment_repeats", repeats, "recipe.global_batch_size", batch),
    ]
    for part_name, part, whole_name, whole in chain:
        if isinstance(part, int) and isinstance(whole, int) and whole % part:
            yield (
                f"{part_name}={part} does not divide {whole_name}={whole}. Micro-batches must "
                "divide the lanes, and lanes the global batch"
            )
    for name, count in (("data.num_lanes", lanes), ("recipe.num_micro_batches", micro_batches)):
        if isinstance(count, int) and batch // count % repeats:
            yield (
                f"recipe.augment_repeats={repeats} does not divide the {batch // count} images "
                f"of a step in each of {name}={count}, so a sample and its repeats would be "
                "separated"
            )
    if _is_thin(request):
        yield (
            f"data.mix: its smallest weight, {min(request.weights):g} of {sum(request.weights):g}, "
            f"is less than one image of recipe.global_batch_size={batch} in each of "
            f"recipe.num_micro_batches={micro_batches}"
        )
    limit = f" and runtime.max_images_per_device={request.max_images}" if request.max_images else ""
    yield (
        f"no number of micro-batches suits {ranks} ranks, recipe.global_batch_size={batch}, "
        f"data.num_lanes={lanes}, recipe.augment_repeats={repeats}{limit}"
    )


def suggest_overrides(request: SizeRequest) -> Iterator[str]:
    """Yield the nearest overrides that work, those for the same number of ranks first."""
    seen = set[int]()
    free_lanes = replace(request, lanes="auto")
    for variant in (
        request,
        free_lanes,
        replace(request, micro_batches="auto"),
        replace(free_lanes, micro_batches="auto"),
    ):
        for batch in _batches_near(variant):
            if batch not in seen:
                seen.add(batch)
                yield _overrides(request, replace(variant, batch=batch))
        if request.batch in seen:
            break
    yield from suggest_ranks(request)
    most = request.num_train // request.repeats
    most -= most % (request.ranks_per_node or 1)
    if 0 < most < request.ranks:
        fewer = replace(request, ranks=most, micro_batches="auto", lanes="auto")
        for batch in _batches_near(fewer)[-1:]:
            yield _overrides(request, replace(fewer, batch=batch))


def suggest_ranks(request: SizeRequest) -> Iterator[str]:
    """Yield the nearest numbers of ranks that work, all else being the same, as overrides."""
    per_node = request.ranks_per_node or 1
    counts = [n for n in _divisors(request.batch) if n % per_node == 0]
    counts = [n for n in counts if _choose(replace(request, ranks=n))]
    fewer_ranks = [n for n in counts if n < request.ranks][-1:]
    more_ranks = [n for n in counts if n > request.ranks][:1]
    for count in (*fewer_ranks, *more_ranks):
        yield _overrides(request, replace(request, ranks=count))


def _batches_near(request: SizeRequest) -> Sequence[int]:
    """Return the nearest batch sizes that work, one up to the requested one and one from it on."""
    given = [n for n in (request.lanes, request.micro_batches, request.ranks) if isinstance(n, int)]
    unit = math.lcm(request.ranks, given[0] * request.repeats)
    below = min(request.batch, request.num_train) // unit * unit
    above = -(-request.batch // unit) * unit
    sizes = sorted({below, above} - {0})
    return [size for size in sizes if _choose(replace(request, batch=size))]


def _overrides(before: SizeRequest, after: SizeRequest) -> str:
    """Return the overrides that turn a request into another, and their arithmetic."""
    changes = {
        "recipe.global_batch_size": (before.batch, after.batch),
        "recipe.num_micro_batches": (before.micro_batches, after.micro_batches),
        "data.num_lanes": (before.lanes, after.lanes),
    }
    per_node = before.ranks_per_node
    if per_node is None:
        changes["launcher.nproc_per_node"] = (before.ranks, after.ranks)
    else:
        changes["slurm.nodes"] = (before.ranks // per_node, after.ranks // per_node)
    overrides = [f"{key}={new}" for key, (old, new) in changes.items() if new != old]
    number, num_lanes = choose_sizes(after)
    ranks, lanes = pluralize(after.ranks, "rank"), pluralize(num_lanes, "lane")
    micro_batches = f"{pluralize(number, 'micro-batch')} of {after.batch // number}"
    return f"{' '.join(overrides)}   ({ranks}, {micro_batches}, {lanes})"
