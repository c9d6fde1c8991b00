"""Continue a run from its directory, also with other values of its mutable keys."""

import sys
from collections.abc import Sequence

from orchestrator.checkpoint.owner import claim
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.parse import MUTABLE_KEYS, ConfigError, immutable_changes, parse, to_dict
from orchestrator.config.recipe import DURATIONS
from orchestrator.config.schema import Config
from orchestrator.launch.checks.unused_keys import warn_unused_keys
from orchestrator.launch.compose import merge
from orchestrator.launch.create_run import make_plan_for
from orchestrator.launch.extend_schedule import Choice, Extension
from orchestrator.launch.software import record_software
from orchestrator.number_format import pluralize
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir, RunError, read_json_lines
from orchestrator.run.sizes import SizeRequest, keep_sizes, suggest_ranks


def resume_run(run: RunDir, overrides: Sequence[str], schedule: Choice | None = None) -> Plan:
    """Apply the overrides to the run's config, freeze it, and return its plan.

    Args:
        schedule: the learning-rate schedule, where another length requires a choice.
    """
    created = parse(run.read_config())
    frozen = to_dict(created)
    config = keep_sizes(parse(merge(frozen, overrides)), created)
    durations = {f"recipe.{name}" for name in DURATIONS}
    refused = [key for key in immutable_changes(frozen, to_dict(config)) if key not in durations]
    if refused:
        raise ConfigError(
            f"{', '.join(refused)} cannot change within a run: the steps before and after would "
            "not be one experiment",
            value=refused,
            hint="Start a new run with `tahoe train`, or change only "
            f"{', '.join((*MUTABLE_KEYS, *sorted(durations)))}.",
        )
    warn_unused_keys(config, overrides)
    plan = _plan_on_ranks(config)
    num_done = _num_steps_done(run, config)
    num_logged = max(num_done, _num_steps_logged(run))
    if plan.num_steps < num_logged:
        raise ConfigError(
            f"{run.id} has done {pluralize(num_logged, 'step')}, more than the {plan.num_steps} "
            "requested, and a run can be extended, not shortened",
            value=plan.num_steps,
            hint="Request more, or start a new run with `tahoe train`.",
        )
    if run.is_finished and plan.num_steps == num_done:
        twice = f"{2 * num_done / plan.steps_per_epoch:g}"
        raise RunError(
            f"{run.id} is finished after {pluralize(num_done, 'step')}, so there is nothing to "
            "continue",
            value=num_done,
            hint=f"Extend it with e.g. `tahoe resume {run.shell_path} recipe.epochs={twice}`.",
        )
    planned = make_plan_for(parse(to_dict(config) | {"recipe": frozen["recipe"]}))
    if plan.num_steps != planned.num_steps and schedule in (None, "stretch"):
        _warn_of_old_rates(config, num_done, num_logged)
    config = Extension(config, planned, plan, num_done).with_schedule(schedule)
    with run.lock():  # the config of a running attempt stays as it is
        claim(run, config)
        record_software(run)
        run.write_config(to_dict(config))
    return plan


def _plan_on_ranks(config: Config) -> Plan:
    """Make the plan of a run; the hint of an error has ranks, since its batches cannot change."""
    try:
        return make_plan_for(config)
    except ConfigError as error:
        if not isinstance(error.value, SizeRequest):
            raise
        ranks = [*suggest_ranks(error.value)] or ["none with as many ranks per node"]
        hint = "\n  ".join(["The nearest that work for this run:", *ranks])
        raise ConfigError(error.problem, value=error.value, hint=hint) from None


def _warn_of_old_rates(config: Config, num_done: int, num_logged: int) -> None:
    """Print the steps that are trained again at other rates than their metrics were logged with."""
    if config.recipe.schedule.ends_with_training and num_logged > num_done:
        print(
            f"note: steps {num_done + 1:,} to {num_logged:,} were not saved before a kill, and are "
            "trained again at other rates. Their metrics remain the old ones, here and in MLflow.",
            file=sys.stderr,
        )


def _num_steps_done(run: RunDir, config: Config) -> int:
    """Return the number of steps that are saved; a killed attempt left only checkpoints."""
    outcome = run.read_json(run.outcome_file) or {}
    saved = CheckpointStore.for_run(run, config).steps()
    return max(outcome.get("step") or 0, *saved[-1:], 0)


def _num_steps_logged(run: RunDir) -> int:
    """Return the last step with metrics, which may not have been saved before a kill.

    These metrics are kept, and would count as those of a run that ends before them.
    """
    return max((line.get("step", 0) for line in read_json_lines(run.metrics_file)), default=0)
