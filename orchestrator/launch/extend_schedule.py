"""A run whose length changes after it has begun, and what becomes of its learning rate.

A rate that falls to the end of the training (cosine, linear) has another end now. It may do three
things. None of them is right for every run, so the user says which.
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


@dataclass(frozen=True)
class Extension:
    """A run that has done some steps of `old` and is to end with `new`; `config` is the new one."""

    config: Config
    old: Plan
    new: Plan
    num_done: int

    def settled(self, choice: Choice | None) -> Config:
        """Return the config with the schedule that is chosen, and say what that does.

        Raises:
            ConfigError: nothing is chosen although there is a choice, or what cannot be.
        """
        is_open = self.config.recipe.schedule.ends_with_training and self.num_done
        if not is_open or self.old.num_steps == self.new.num_steps:
            return self.config
        made = {one: self._scheduled(cycles) for one, cycles in self._choices()}
        before, rates = self._rates(made)
        if self.new.num_steps > self.old.num_steps and rates["keep"][-1] == 0:
            del made["keep"]  # nothing would be learned to the end
        told = {one: self._told(one, rates[one]) for one in made}
        if choice not in told:
            raise self._refusal(choice, before, told)
        print(f"learning rate: {before:.4g} at step {self.num_done:,}, then {told[choice]}")
        return made[choice]

    def _choices(self) -> Iterator[tuple[Choice, tuple[tuple[int, int], ...]]]:
        """Yield what may be chosen, with the cycles that it comes to."""
        given = self.config.recipe.schedule.cycles
        known = given or ((0, self.old.num_steps),)
        end = self.new.num_steps
        yield "stretch", (*given[:-1], (given[-1][0], max(end, given[-1][0] + 1))) if given else ()
        if end > self.old.num_steps:
            yield "restart", (*known, (self.old.num_steps, end))
        yield "keep", known

    def _scheduled(self, cycles: tuple[tuple[int, int], ...]) -> Config:
        values = to_dict(self.config)
        values["recipe"]["schedule"]["cycles"] = cycles
        return parse(values)

    def _rates(self, made: Mapping[Choice, Config]) -> tuple[float, dict[str, list[float]]]:
        """Return the rate of the last step done, and those that follow by what is chosen."""
        configs = {str(name): to_dict(config) for name, config in made.items()}
        plans = {name: asdict(self.new) for name in configs}
        configs["before"], plans["before"] = to_dict(self.config), asdict(self.old)
        steps = [self.num_done - 1, self.num_done, self.new.num_steps - 1]
        found = run_torch_worker(
            "torch_workers.lr_values", {"configs": configs, "plans": plans, "steps": steps}
        )
        return found["before"][0], found

    def _told(self, choice: Choice, rates: list[float]) -> str:
        _, first, last = rates
        return (
            f"{first:.4g} at step {self.num_done + 1:,} and {last:.4g} at step "
            f"{self.new.num_steps:,}: {_MEANING[choice]}"
        )

    def _refusal(
        self, choice: Choice | None, before: float, told: Mapping[Choice, str]
    ) -> ConfigError:
        asked = f"--schedule {choice} means nothing here" if choice else "nothing was changed"
        offers = "\n".join(f"  --schedule {one:8} {what}" for one, what in told.items())
        return ConfigError(
            f"the learning rate was to fall over {self.old.num_steps:,} steps, and there are to be "
            f"{self.new.num_steps:,} now; {asked}. It was {before:.4g} at step {self.num_done:,}, "
            f"the last one done. Say how it goes on:\n{offers}"
        )
