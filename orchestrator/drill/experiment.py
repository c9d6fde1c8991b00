"""`tahoe drill`: train a short version of a run with injected faults and without, and compare."""

import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_sharding.io import filesystem
from orchestrator.config.parse import ConfigError, parse
from orchestrator.config.schema import Config, Notify
from orchestrator.drill.compare import Report, compare, count_faults
from orchestrator.drill.faults import (
    KINDS,
    LOSE_A_NODE,
    OF_MLFLOW,
    OF_STORE,
    AttemptPlan,
    schedule,
)
from orchestrator.drill.faulty_filesystem import PROTOCOL
from orchestrator.drill.inject import AttemptResult, FaultyEnvironment, run_attempt_with_faults
from orchestrator.drill.mlflow_proxy import faulty_mlflow_server
from orchestrator.launch.compose import ComposedConfig, compose
from orchestrator.launch.create_run import create_or_open_run
from orchestrator.number_format import pluralize
from orchestrator.run.outcome import ExitCode
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir, RunError

_BASE_STEPS = 24
# Far more than an attempt usually trains before its fault: on a busy machine a fault comes late,
# and a finished run meets no more.
_STEPS_PER_ATTEMPT = 6

RunAttempts = Callable[[RunDir, Config, Plan, Sequence[AttemptPlan]], list[AttemptResult]]


@dataclass(frozen=True)
class DrillOptions:
    """The options of a drill.

    Args:
        overrides: overrides of a config, or the directory of one run.
        faults: number of faults.
        seed: seed of their schedule.
        kinds: kinds of faults; all that apply if empty.
        ranks: number of ranks on this machine.
        on_nodes: whether to run as a job on a local cluster, and lose its nodes instead.
        directory: directory of both runs; a new one below runs_dir by default.
    """

    overrides: Sequence[str]
    faults: int
    seed: int
    kinds: Sequence[str]
    ranks: int
    on_nodes: bool
    directory: Path | None


def drill(options: DrillOptions) -> Report:
    """Run a drill and return its report."""
    if options.on_nodes and options.kinds:
        raise ConfigError(
            "a drill on nodes injects one kind of fault, the loss of a node",
            value=options.kinds,
            hint="Leave --kind out, or --on-nodes.",
        )
    start_s, config = time.monotonic(), _read_config(options.overrides)
    if not config.strategy.is_exact:
        raise ConfigError(
            f"a drill compares bits, and with strategy.comm_hook={config.strategy.comm_hook} a "
            "resumed run has others",
            value=config.strategy.comm_hook,
            hint="Drill it with strategy.comm_hook=null or bf16_compress.",
        )
    if options.on_nodes:
        report = _run_on_nodes(config, options)
    else:
        report = _run_locally(config, options.kinds or _applicable_kinds(config), options)
    report.seconds = time.monotonic() - start_s
    return report


def _run_locally(config: Config, kinds: Sequence[str], options: DrillOptions) -> Report:
    """Run a drill on this machine."""
    attempts = schedule(options.faults, kinds, options.seed)
    directory = _create_directory(options.directory, config)
    with _faulty_environment(directory, kinds) as (environment, tracking_uri):
        config = config.replace(
            {"launcher.name": "local", "launcher.nproc_per_node": options.ranks}
        )
        config = _shorten(config, directory, tracking_uri, len(attempts))
        if not set(kinds).isdisjoint(OF_STORE):
            config = _with_faulty_store(config, environment)
        run_attempts = partial(_run_local_attempts, environment)
        return _run_and_compare(config, directory, attempts, run_attempts, options.faults)


def _run_local_attempts(
    environment: FaultyEnvironment,
    run: RunDir,
    config: Config,
    plan: Plan,
    attempts: Sequence[AttemptPlan],
) -> list[AttemptResult]:
    results: list[AttemptResult] = []
    for attempt in attempts:
        results.append(run_attempt_with_faults(run, config, plan, attempt, environment))
        _log(f"attempt {len(results)}: {results[-1]}")
        if results[-1].exit_code in (ExitCode.FINISHED, ExitCode.FAILED_PERMANENTLY):
            break
    environment.clear()
    return results


def _run_on_nodes(config: Config, options: DrillOptions) -> Report:
    """Run a drill as a job on a local cluster."""
    from orchestrator.drill.node_loss import local_cluster_for, run_with_node_losses

    attempts = schedule(options.faults, [LOSE_A_NODE], options.seed)
    run_attempts = partial(run_with_node_losses, local_cluster_for(options.faults, config))
    directory = _create_directory(options.directory, config)
    config = config.replace({"launcher.name": "slurm"})
    config = _shorten(config, directory, f"sqlite:///{directory}/mlflow.db", len(attempts))
    return _run_and_compare(config, directory, attempts, run_attempts, options.faults)


def _run_and_compare(
    config: Config,
    directory: Path,
    attempts: Sequence[AttemptPlan],
    run_attempts: RunAttempts,
    num_requested: int,
) -> Report:
    report = Report(num_requested, directory=str(directory))
    clean, clean_config, plan = _create_run(config, directory, "undisturbed")
    _log(f"undisturbed: {pluralize(plan.num_steps, 'step')} in {directory}")
    _check_finished(clean, run_attempts(clean, clean_config, plan, [AttemptPlan()]))
    faulty, faulty_config, _ = _create_run(config, directory, "faulty")
    results = run_attempts(faulty, faulty_config, plan, attempts)
    _check_finished(faulty, results)
    count_faults(report, results, plan)
    compare(report, (clean, faulty), (clean_config, faulty_config), plan.num_steps)
    return report


def _create_run(config: Config, directory: Path, name: str) -> tuple[RunDir, Config, Plan]:
    """Create one of the two runs; in a store, its checkpoints are below `checkpoint.url`."""
    url = config.checkpoint.url
    if url is not None:
        url = filesystem.join(url, "drills", directory.name, name)
    config = config.replace({"run_dir": str(directory / name), "checkpoint.url": url})
    run, plan = create_or_open_run(ComposedConfig(config, ()))
    return run, config, plan


@contextmanager
def _faulty_environment(
    directory: Path, kinds: Collection[str]
) -> Iterator[tuple[FaultyEnvironment, str]]:
    """Yield the environment of the ranks and their tracking URI."""
    faults, cache, database = directory / "faults", directory / "cache", directory / "mlflow.db"
    faults.mkdir()
    if set(kinds).isdisjoint(OF_MLFLOW):
        yield FaultyEnvironment(faults, cache, None), f"sqlite:///{database}"
        return
    with faulty_mlflow_server(database, directory / "mlflow.log") as (url, mlflow):
        yield FaultyEnvironment(faults, cache, mlflow), url


def _applicable_kinds(config: Config) -> Sequence[str]:
    """Return all kinds, without those of a store if the data set is local."""
    if not config.data.is_train_local:
        return KINDS
    return [kind for kind in KINDS if kind not in OF_STORE]


def _read_config(overrides: Sequence[str]) -> Config:
    """Read the config of an existing run, or compose one from overrides."""
    if overrides and Path(overrides[0], "config.yaml").exists():
        if overrides[1:]:
            raise ConfigError(
                f"a drill of the run {overrides[0]} takes its config as it is",
                value=overrides[1:],
                hint="Leave the overrides out.",
            )
        return parse(RunDir(Path(overrides[0])).read_config())
    configs = compose(["launcher=local", *overrides])
    if len(configs) != 1:
        raise ConfigError(
            f"`tahoe drill` takes one config, not {len(configs)}",
            value=list(overrides),
            hint="Leave -m and value lists out.",
        )
    return configs[0].config


def _create_directory(directory: Path | None, config: Config) -> Path:
    try:
        if directory is None:
            parent = Path(config.runs_dir, "drills")
            parent.mkdir(parents=True, exist_ok=True)
            directory = Path(tempfile.mkdtemp(prefix=time.strftime("%Y-%m-%d-"), dir=parent))
        else:
            directory.mkdir(parents=True)
    except OSError as error:
        raise RunError(
            f"cannot create a directory for the drill: {error}",
            value=directory,
            hint="Choose a new one with --directory.",
        ) from None
    return directory.absolute()


def _shorten(config: Config, directory: Path, tracking_uri: str, num_attempts: int) -> Config:
    """Return a config with a few steps for each attempt and everything logged."""
    return config.replace(
        {
            "runs_dir": str(directory),
            "if_finished": "error",
            "recipe.epochs": None,
            "recipe.images": None,
            "recipe.steps": _BASE_STEPS + _STEPS_PER_ATTEMPT * num_attempts,
            "checkpoint.every_steps": 3,
            "checkpoint.keep_last": 3,
            "logging.every_steps": 1,
            "logging.log_sample_ids": True,
            "logging.plots": False,
            "notify": Notify(),
            "tracking.enabled": True,
            "tracking.uri": tracking_uri,
            "tracking.flush_interval_s": 0.2,
            "tracking.system_metrics_interval_s": None,
        }
    )


def _with_faulty_store(config: Config, environment: FaultyEnvironment) -> Config:
    location = config.data.location
    changes: dict[str, object] = {
        "data.url": location.url and _faulty(location.url),
        "data.train": tuple(map(_faulty, location.train)),
        "data.val": tuple(map(_faulty, location.val)),
        "data.mix": tuple(map(_faulty_source, config.data.mix)),
    }
    if config.data.cache != "none":
        changes["data.cache.dir"] = str(environment.cache)
    return config.replace(changes)


def _faulty_source(source: Any) -> Any:
    url, train = source.url and _faulty(source.url), tuple(map(_faulty, source.patterns))
    return replace(source, url=url, train=train)


def _faulty(url: str) -> str:
    path = filesystem.local_path(url)
    return f"{PROTOCOL}::{url if path is None else f'file://{path.absolute()}'}"


def _check_finished(run: RunDir, results: Sequence[AttemptResult]) -> None:
    if results[-1].exit_code != ExitCode.FINISHED:
        raise RunError(
            f"the run in {run.path} did not finish (exit code {results[-1].exit_code}), so "
            "nothing can be compared",
            value=run.path,
            hint=f"Its logs have the reason: {run.path}/logs",
        )


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
