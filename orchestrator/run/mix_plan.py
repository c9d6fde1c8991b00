"""The quotas of the data sets of a mixture, and how often their samples are drawn."""

from dataclasses import dataclass

from data_sharding.sampling.mixed_order import divide_batch, divide_lanes
from orchestrator.config.parse import ConfigError
from orchestrator.number_format import pluralize
from orchestrator.run.train_data import Mixture, are_numbers


@dataclass(frozen=True)
class SourcePlan:
    """The samples of a data set, and how many of them are in each step.

    Args:
        share: its part of all weights, of which `quota` is the nearest that is possible.
    """

    name: str
    num_samples: int
    quota: int
    share: float


@dataclass(frozen=True)
class MixPlan:
    """The quotas of a mixture.

    Args:
        repeats: the number of times that a sample comes in its micro-batch.
        note: text on the checks that were not possible.
    """

    sources: tuple[SourcePlan, ...]
    repeats: int
    note: str = ""

    @property
    def quotas(self) -> list[int]:
        return [source.quota for source in self.sources]

    def num_lanes(self, requested: int, num_micro_batches: int) -> int:
        """Return the number of lanes of all data sets together, near the requested one."""
        samples = [quota // self.repeats for quota in self.quotas]
        return sum(divide_lanes(requested, samples, num_micro_batches))

    def summary_lines(self, steps_per_epoch: int) -> list[str]:
        """Describe for each data set how often its samples are drawn."""
        lines = [self._describe(source, steps_per_epoch) for source in self.sources]
        return [self.note, *lines] if self.note else lines

    def _describe(self, source: SourcePlan, steps_per_epoch: int) -> str:
        part, num = source.quota / sum(self.quotas), source.num_samples
        is_exact = abs(part - source.share) < 1e-9
        asked = "" if is_exact else f" where the weights ask for {100 * source.share:.3g} %"
        steps = pluralize(num // (source.quota // self.repeats), "step")
        return (
            f"{source.name}: {source.quota:,} images of a step ({100 * part:.3g} %{asked}); "
            f"its {num:,} images are drawn {source.quota * steps_per_epoch / num:.3g} times an "
            f"epoch, in passes of {steps}"
        )


def plan_mix(mixture: Mixture, batch: int, num_micro_batches: int, repeats: int) -> MixPlan:
    """Divide a batch among the data sets of a mixture.

    Raises:
        ConfigError: one has fewer samples than a step takes from it.
    """
    weights = [source.weight for source in mixture.sources]
    quotas = divide_batch(weights, batch, num_micro_batches * repeats)
    plans = [
        SourcePlan(source.name, source.manifest.num_samples, quota, source.weight / sum(weights))
        for source, quota in zip(mixture.sources, quotas, strict=True)
    ]
    for plan in plans:
        if plan.quota > plan.num_samples:
            raise ConfigError(
                f"data.mix: a step takes {plan.quota:,} images of {plan.name}, which has "
                f"{plan.num_samples:,}. Nothing was started",
                value=plan.name,
                hint="Lower its weight, or recipe.global_batch_size.",
            )
    note = ""
    if are_numbers(mixture.classes):
        note = (
            "the classes of the mixed data sets are numbers: whether class n of one is class n of "
            "the others cannot be checked"
        )
    return MixPlan(tuple(plans), repeats, note)
