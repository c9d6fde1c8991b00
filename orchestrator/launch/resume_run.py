"""Continue a run from its directory, with other values where those are safe."""

import sys
from collections.abc import Sequence

from orchestrator.checkpoint.owner import claim
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.parse import MUTABLE_KEYS, ConfigError, immutable_changes, parse, to_dict
from orchestrator.config.recipe import DURATIONS
from orchestrator.config.schema import Config
from orchestrator.launch.compose import merge
from orchestrator.launch.create_run import make_plan_for
from orchestrator.launch.extend_schedule import Choice, Extension
from orchestrator.launch.software import record_software
from orchestrator.number_format import pluralize
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir, RunError, read_json_lines


def resume_run(run: RunDir, overrides: Sequence[str], schedule: Choice | None = None) -> Plan:
    """Freeze the run's config with the overrides on top, and return its arithmetic.

    Args:
        schedule: what the learning rate does, where another length leaves that open.

    Raises:
        ConfigError: an override would change what the run is, or `schedule` is needed.
        RunError: there is no run here, or it is finished and nothing is added.
    """
    frozen = to_dict(parse(run.read_config()))
    config = parse(merge(frozen, overrides))
    durations = {f"recipe.{name}" for name in DURATIONS}
    refused = [key for key in immutable_changes(frozen, to_dict(config)) if key not in durations]
    if refused:
        raise ConfigError(
            f"{', '.join(refused)} cannot change within a run: what came before and after would "
            "not be one experiment. Start a new run with `tahoe train`, or change only "
            f"{', '.join((*MUTABLE_KEYS, *sorted(durations)))}."
        )
    plan = make_plan_for(config)
    done = _num_steps_done(run, config)
    if plan.num_steps < (logged := max(done, _num_steps_logged(run))):
        raise ConfigError(
            f"{run.id} has done {pluralize(logged, 'step')}, more than the {plan.num_steps} asked "
            "for. A run can be extended, not shortened: ask for more, or start a new run with "
            "`tahoe train`."
        )
    if run.is_finished and plan.num_steps == done:
        twice = f"{2 * done / plan.steps_per_epoch:g}"
        raise RunError(
            f"{run.id} is finished after {pluralize(done, 'step')}. There is nothing to continue. "
            f"Extend it with e.g. `tahoe resume {run.shell_path} recipe.epochs={twice}`."
        )
    planned = make_plan_for(parse(to_dict(config) | {"recipe": frozen["recipe"]}))
    if plan.num_steps != planned.num_steps and schedule in (None, "stretch"):
        _tell_of_old_rates(config, done, logged)
    config = Extension(config, planned, plan, done).settled(schedule)
    with run.lock():  # the config of an attempt that is running is not touched
        claim(run, config)
        record_software(run)
        run.write_config(to_dict(config))
    return plan


def _tell_of_old_rates(config: Config, done: int, logged: int) -> None:
    """Say which steps have figures of a learning rate that they are not trained with now."""
    if config.recipe.schedule.ends_with_training and logged > done:
        print(
            f"note: steps {done + 1:,} to {logged:,} were not saved before a kill, and are trained "
            "again at other rates. Their figures stay those of before, here and in MLflow.",
            file=sys.stderr,
        )


def _num_steps_done(run: RunDir, config: Config) -> int:
    """Return the step that the run has reached; a killed attempt tells it by its checkpoints."""
    verdict = run.read_json(run.outcome_file) or {}
    saved = CheckpointStore.for_run(run, config).steps()
    return max(verdict.get("step") or 0, *saved[-1:], 0)


def _num_steps_logged(run: RunDir) -> int:
    """Return the last step with figures, which may be more than was saved before a kill.

    They stay, and would pass for those of a run that ends before them.
    """
    return max((line.get("step", 0) for line in read_json_lines(run.metrics_file)), default=0)
