"""`tahoe drill`: a run is hurt on purpose, and compared with the same run left alone."""

import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from data_sharding.io import filesystem
from orchestrator.config.parse import ConfigError, parse
from orchestrator.config.schema import Config
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
from orchestrator.run.exit_status import ExitCode
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir, RunError

_SAVE_EVERY, _STEPS_BESIDES = 3, 24
# Far more than an attempt makes before it is hurt: on a busy machine that comes late, and a run
# that has finished is hurt no more.
_STEPS_AN_ATTEMPT = 6
_SHIP_EVERY_S = 0.2


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
        raise ConfigError("--on-nodes loses nodes and does nothing else: leave --kind out")
    start_s, config = time.monotonic(), _config(options.overrides)
    kinds = (LOSE_A_NODE,) if options.on_nodes else options.kinds or _that_apply(config)
    try:
        attempts = schedule(options.faults, kinds, options.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if options.on_nodes:
        report = _on_nodes(config, attempts, options)
    else:
        report = _here(config, attempts, kinds, options)
    report.seconds = time.monotonic() - start_s
    return report


def _here(
    config: Config,
    attempts: Sequence[AttemptPlan],
    kinds: Collection[str],
    options: DrillOptions,
) -> Report:
    """Run a drill on this machine."""
    place = _make_place(options.directory, config)
    with _surrounded(place, kinds) as (around, tracking_uri):
        launcher = _changed(config.launcher, name="local", nproc_per_node=options.ranks)
        config = cast("Config", _changed(config, launcher=launcher))
        short = _shortened(config, place, tracking_uri, len(attempts))
        if not set(kinds).isdisjoint(OF_STORE):
            short = _reading_from_the_faulty_store(short, around)

        def endure_all(
            run: RunDir, config: Config, plan: Plan, attempts: Sequence[AttemptPlan]
        ) -> list[AttemptResult]:
            ends: list[AttemptResult] = []
            for attempt in attempts:
                ends.append(run_attempt_with_faults(run, config, plan, attempt, around))
                _tell(f"attempt {len(ends)}: {ends[-1]}")
                if ends[-1].exit_code in (ExitCode.FINISHED, ExitCode.FAILED_PERMANENTLY):
                    break
            around.calm()
            return ends

        return _run(_Drill(short, place, endure_all), attempts, options.faults)


def _on_nodes(config: Config, attempts: Sequence[AttemptPlan], options: DrillOptions) -> Report:
    """Run a drill as a job on a local cluster."""
    from orchestrator.drill.node_loss import local_cluster_for, run_with_node_losses

    cluster = local_cluster_for(options.faults, config)
    place = _make_place(options.directory, config)
    launcher = _changed(config.launcher, name="slurm")
    config = cast("Config", _changed(config, launcher=launcher))
    short = _shortened(config, place, f"sqlite:///{place}/mlflow.db", len(attempts))

    def endure_all(
        run: RunDir, config: Config, plan: Plan, attempts: Sequence[AttemptPlan]
    ) -> list[AttemptResult]:
        faults = [attempt.ending for attempt in attempts if attempt.ending]
        return run_with_node_losses(run, config, plan, faults, cluster)

    return _run(_Drill(short, place, endure_all), attempts, options.faults)


@dataclass(frozen=True)
class _Drill:
    """The config of both runs, where they lie, and what takes one through its attempts."""

    config: Config
    place: Path
    endure: Callable[[RunDir, Config, Plan, Sequence[AttemptPlan]], list[AttemptResult]]

    def open(self, name: str) -> tuple[RunDir, Config, Plan]:
        """Make one of the runs; its checkpoints lie below those of the user, if elsewhere."""
        checkpoint = self.config.checkpoint
        if checkpoint.url is not None:
            url = filesystem.join(checkpoint.url, "drills", self.place.name, name)
            checkpoint = _changed(checkpoint, url=url)
        path = str(self.place / name)
        own = cast("Config", _changed(self.config, run_dir=path, checkpoint=checkpoint))
        run, plan = create_or_open_run(ComposedConfig(own, ()))
        return run, own, plan


def _run(drill: _Drill, attempts: Sequence[AttemptPlan], asked: int) -> Report:
    report = Report(asked, directory=str(drill.place))
    alone, alone_config, plan = drill.open("undisturbed")
    _tell(f"undisturbed: {pluralize(plan.num_steps, 'step')} in {drill.place}")
    _check_finished(alone, drill.endure(alone, alone_config, plan, [AttemptPlan((), None)]))
    hurt, hurt_config, _ = drill.open("hurt")
    ends = drill.endure(hurt, hurt_config, plan, attempts)
    _check_finished(hurt, ends)
    count_faults(report, ends, plan)
    compare(report, (alone, hurt), (alone_config, hurt_config), plan.num_steps)
    return report


@contextmanager
def _surrounded(place: Path, kinds: Collection[str]) -> Iterator[tuple[FaultyEnvironment, str]]:
    """Yield what the ranks work with, and where they are tracked."""
    store, cache, database = place / "faults", place / "cache", place / "mlflow.db"
    store.mkdir()
    if set(kinds).isdisjoint(OF_MLFLOW):
        yield FaultyEnvironment(store, cache, None), f"sqlite:///{database}"
        return
    with faulty_mlflow_server(database, place / "mlflow.log") as (url, faults):
        yield FaultyEnvironment(store, cache, faults), url


def _that_apply(config: Config) -> Sequence[str]:
    """Return all kinds, but those of a store only if the data lies in one."""
    if filesystem.local_path(config.data.url) is None:
        return KINDS
    return [kind for kind in KINDS if kind not in OF_STORE]


def _config(overrides: Sequence[str]) -> Config:
    """Return the config of a run that is there, or of overrides."""
    if overrides and Path(overrides[0], "config.yaml").exists():
        if overrides[1:]:
            raise ConfigError(f"a drill of {overrides[0]} takes its config as it is: no overrides")
        return parse(RunDir(Path(overrides[0])).read_config())
    points = compose(["launcher=local", *overrides])
    if len(points) != 1:
        raise ConfigError("`tahoe drill` takes one config: leave -m and its like out")
    return points[0].config


def _make_place(directory: Path | None, config: Config) -> Path:
    try:
        if directory is None:
            above = Path(config.runs_dir, "drills")
            above.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=time.strftime("%Y-%m-%d-"), dir=above)).absolute()
        directory.mkdir(parents=True)
    except OSError as error:
        raise RunError(
            f"cannot make a directory for the drill: {error}. Choose a new one with --directory"
        ) from None
    return directory.absolute()


def _changed(part: Any, **values: object) -> Any:
    return replace(part, **values)


def _shortened(config: Config, place: Path, tracking_uri: str, num_attempts: int) -> Config:
    """Return a config of so few steps that every attempt makes some, and all is looked at."""
    steps = _STEPS_BESIDES + _STEPS_AN_ATTEMPT * num_attempts
    mlflow: dict[str, object] = {"uri": tracking_uri, "flush_interval_s": _SHIP_EVERY_S}
    tracking = _changed(config.tracking, enabled=True, system_metrics_interval_s=None, **mlflow)
    return cast(
        "Config",
        _changed(
            config,
            runs_dir=str(place),
            if_finished="error",
            recipe=_changed(config.recipe, epochs=None, images=None, steps=steps),
            checkpoint=_changed(config.checkpoint, every_steps=_SAVE_EVERY, keep_last=3),
            logging=_changed(config.logging, every_steps=1, log_sample_ids=True, plots=False),
            tracking=tracking,
        ),
    )


def _reading_from_the_faulty_store(config: Config, around: FaultyEnvironment) -> Config:
    path, cache = filesystem.local_path(config.data.url), config.data.cache
    url = config.data.url if path is None else f"file://{path.absolute()}"
    if cache != "none":
        cache = _changed(cache, dir=str(around.cache))
    data = _changed(config.data, url=f"{PROTOCOL}::{url}", cache=cache)
    return cast("Config", _changed(config, data=data))


def _check_finished(run: RunDir, ends: Sequence[AttemptResult]) -> None:
    if ends[-1].exit_code != ExitCode.FINISHED:
        raise RunError(
            f"the run in {run.path} did not finish (exit code {ends[-1].exit_code}), so nothing "
            f"can be compared. Its logs say why: {run.path}/logs"
        )


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
