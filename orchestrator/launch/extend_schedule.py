"""Extend or shorten a run that has begun, and adapt the learning-rate schedule.

A rate that falls to the end of the training (cosine, linear) now has another end. Three schedules
are possible, none of them right for every run, so the user chooses.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from orchestrator.config.parse import ConfigError, parse, to_dict
from orchestrator.config.schema import Config
from orchestrator.launch.torch_subprocess import run_torch_worker
from orchestrator.run.plan import Plan

Choice = Literal["stretch", "restart", "keep"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
_MEANING: Mapping[Choice, str] = {
    "stretch": "as if the run had been that long from the start",
    "restart": "a warm restart: from the highest rate down again, without a warm-up",
    "keep": "as it was planned, and no lower after its end: a cooldown",
}
Cycles = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Extension:
    """A run that has done steps of plan `old` and is to end with `new`, the plan of `config`."""

    config: Config
    old: Plan
    new: Plan
    num_done: int

    def with_schedule(self, choice: Choice | None) -> Config:
        """Return the config with the chosen schedule, and print its rates."""
        depends_on_end = self.config.recipe.schedule.ends_with_training and self.num_done
        if not depends_on_end or self.old.num_steps == self.new.num_steps:
            return self.config
        configs = {name: self._with_cycles(cycles) for name, cycles in self._cycles()}
        before, rates = self._rates(configs)
        if self.new.num_steps > self.old.num_steps and rates["keep"][-1] == 0:
            del configs["keep"]  # a rate of 0 learns nothing
        summaries = {name: self._summary(name, rates[name]) for name in configs}
        if choice not in summaries:
            raise self._choice_error(choice, before, summaries)
        print(f"learning rate: {before:.4g} at step {self.num_done:,}, then {summaries[choice]}")
        return configs[choice]

    def _cycles(self) -> Iterator[tuple[Choice, Cycles]]:
        """Yield the possible choices with the schedule's cycles."""
        given = self.config.recipe.schedule.cycles
        planned = given or ((0, self.old.num_steps),)
        end = self.new.num_steps
        yield "stretch", (*given[:-1], (given[-1][0], max(end, given[-1][0] + 1))) if given else ()
        if end > self.old.num_steps:
            yield "restart", (*planned, (self.old.num_steps, end))
        yield "keep", planned

    def _with_cycles(self, cycles: Cycles) -> Config:
        values = to_dict(self.config)
        values["recipe"]["schedule"]["cycles"] = cycles
        return parse(values)

    def _rates(self, configs: Mapping[Choice, Config]) -> tuple[float, dict[str, list[float]]]:
        """Return the rate of the last step done; and by choice, those of the next and last step."""
        request = {
            "configs": {name: to_dict(config) for name, config in configs.items()}
            | {"before": to_dict(self.config)},
            "plans": dict.fromkeys(configs, asdict(self.new)) | {"before": asdict(self.old)},
            "steps": [self.num_done - 1, self.num_done, self.new.num_steps - 1],
        }
        rates = run_torch_worker("torch_workers.launch_functions:learning_rates", request)
        return rates["before"][0], {name: rates[name][1:] for name in configs}

    def _summary(self, choice: Choice, rates: list[float]) -> str:
        return (
            f"{rates[0]:.4g} at step {self.num_done + 1:,} and {rates[1]:.4g} at step "
            f"{self.new.num_steps:,}: {_MEANING[choice]}"
        )

    def _choice_error(
        self, choice: Choice | None, before: float, summaries: Mapping[Choice, str]
    ) -> ConfigError:
        reason = f"--schedule {choice} is impossible here" if choice else "nothing was changed"
        options = "\n".join(f"  --schedule {name:8} {text}" for name, text in summaries.items())
        return ConfigError(
            f"the learning rate was to fall over {self.old.num_steps:,} steps, and now there are "
            f"{self.new.num_steps:,}; {reason}",
            value=choice,
            hint=f"It was {before:.4g} at step {self.num_done:,}, the last one done. Choose how it "
            f"continues:\n{options}",
        )
