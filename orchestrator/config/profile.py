"""The schema of `profile`: which steps are profiled."""

from pydantic import PositiveInt

from orchestrator.config.recipe import schema_dataclass

_MAX_STEPS = 100  # a step adds megabytes to the trace


@schema_dataclass
class Profile:
    """The profiling of some steps, the first and the last; see training.step.step_profiler.

    `profile=true` on the command line is `profile.enabled=true`; steps alone turn it on too.
    """

    enabled: bool | None = None
    steps: tuple[PositiveInt, PositiveInt] | None = None

    @property
    def is_on(self) -> bool:
        return self.steps is not None if self.enabled is None else self.enabled

    def __post_init__(self) -> None:
        if self.steps and not 0 <= self.steps[1] - self.steps[0] < _MAX_STEPS:
            raise ValueError(
                f"steps={self.steps} must be given as (first, last), {_MAX_STEPS} steps "
                "at most, since each adds megabytes to the trace"
            )
