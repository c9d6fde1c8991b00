"""`tahoe drill`: a run is hurt on purpose, and compared with the same run left alone."""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from orchestrator.config import ConfigError, parse
from orchestrator.launch.compose import Composed, compose
from orchestrator.launch.create import open_run
from orchestrator.launch.drill_attempt import Ended, endure
from orchestrator.launch.drill_schedule import KINDS, Attempt, schedule
from orchestrator.plan import Plan
from orchestrator.rundir import RunDir, RunError, read_json_lines
from orchestrator.schema import Config
from orchestrator.training.checkpoint import CheckpointStore
from orchestrator.training.verdict import Exit

_SAVE_EVERY, _STEPS_BESIDES = 3, 12
# Far more than an attempt makes before it is hurt: on a busy machine that comes late, and a run
# that has finished is hurt no more.
_STEPS_AN_ATTEMPT = 24
_SAME_FIGURES = ("train/loss", "train/lr", "train/grad_norm", "val/loss", "val/top1")

Samples = dict[tuple[int, int], list[int]]


@dataclass
class Report:
    """What a drill has come to.

    Args:
        faults: how many were done, by kind.
        lost_steps: that were done again, over all attempts; the most of one attempt.
        samples_never, samples_twice: of the run left alone, that the hurt one has not trained on
            at that step, or has besides.
        figures_differ: logged values that are missing or others.
        points_lost, points_doubled: in MLflow, against what the hurt run has logged.
        weights_equal: whether every file of the last checkpoint has the same bits.
    """

    asked: int
    faults: dict[str, int] = field(default_factory=dict)
    num_attempts: int = 0
    num_steps: int = 0
    lost_steps: int = 0
    most_lost_steps: int = 0
    median_first_step_s: float | None = None
    samples_never: int = 0
    samples_twice: int = 0
    figures_differ: int = 0
    points_lost: int = 0
    points_doubled: int = 0
    weights_equal: bool = False
    seconds: float = 0.0
    directory: str = ""

    @property
    def is_well(self) -> bool:
        """Whether nothing was lost, doubled or changed."""
        wrong = (self.samples_never, self.samples_twice, self.figures_differ)
        return self.weights_equal and not any((*wrong, self.points_lost, self.points_doubled))


def drill(options: argparse.Namespace) -> int:
    """Run the drill and print its report; return 0 if nothing was lost, else 1."""
    try:
        attempts = schedule(options.faults, options.kind or KINDS, options.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    config = _config(options.overrides)
    place = _make_place(options.directory, config)
    config = _shortened(config, place, len(attempts), options.ranks)
    report = _run(config, place, attempts, options.faults)
    if options.json:
        print(json.dumps({**asdict(report), "is_well": report.is_well}, indent=2))
    else:
        _show(report)
    return 0 if report.is_well else 1


def _run(config: Config, place: Path, attempts: Sequence[Attempt], asked: int) -> Report:
    start_s, report = time.monotonic(), Report(asked, directory=str(place))
    alone, alone_config, plan = _open(config, place / "undisturbed")
    _tell(f"undisturbed: {plan.num_steps} steps in {place}")
    _finish(endure(alone, alone_config, plan, Attempt((), None)), alone)
    hurt, hurt_config, _ = _open(config, place / "hurt")
    ends = []
    for number, attempt in enumerate(attempts, start=1):
        ended = endure(hurt, hurt_config, plan, attempt)
        ends.append(ended)
        _tell(f"attempt {number}: {', '.join(ended.faults) or 'left alone'}: {_outcome(ended)}")
        if ended.exit_code in (Exit.FINISHED, Exit.NEVER_RESTART):
            break
    _finish(ends[-1], hurt)
    _count(report, ends, plan)
    _compare(report, alone, hurt, hurt_config, plan.num_steps)
    report.seconds = time.monotonic() - start_s
    return report


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


def _shortened(config: Config, place: Path, num_attempts: int, num_ranks: int) -> Config:
    """Return a config of so few steps that every attempt makes some, and all is looked at."""
    steps = _STEPS_BESIDES + _STEPS_AN_ATTEMPT * num_attempts

    def changed(part: Any, **values: object) -> Any:
        return replace(part, **values)

    return cast(
        "Config",
        changed(
            config,
            runs_dir=str(place),
            if_finished="refuse",
            recipe=changed(config.recipe, epochs=None, images=None, steps=steps),
            checkpoint=changed(config.checkpoint, url=None, every_steps=_SAVE_EVERY, keep_last=3),
            launcher=changed(config.launcher, name="local", num_procs=num_ranks),
            logging=changed(config.logging, every_steps=1, sample_ids=True),
            tracking=changed(config.tracking, enabled=True, uri=f"sqlite:///{place}/mlflow.db"),
        ),
    )


def _open(config: Config, path: Path) -> tuple[RunDir, Config, Plan]:
    own = cast("Config", replace(cast("Any", config), run_dir=str(path)))
    run, plan = open_run(Composed(own, ()))
    return run, own, plan


def _finish(ended: Ended, run: RunDir) -> None:
    if ended.exit_code != Exit.FINISHED:
        raise RunError(
            f"the run in {run.path} did not finish (exit code {ended.exit_code}), so nothing "
            f"can be compared. Its logs say why: {run.path}/logs"
        )


def _outcome(ended: Ended) -> str:
    how = f"exit code {ended.exit_code}, {ended.lost_steps} steps done again"
    first = ended.first_step_s
    return how if first is None else f"{how}, first step after {first:.1f} s"


def _count(report: Report, ends: Sequence[Ended], plan: Plan) -> None:
    report.faults = dict(Counter(kind for ended in ends for kind in ended.faults))
    report.num_attempts, report.num_steps = len(ends), plan.num_steps
    report.lost_steps = sum(ended.lost_steps for ended in ends)
    report.most_lost_steps = max(ended.lost_steps for ended in ends)
    times = sorted(ended.first_step_s for ended in ends if ended.first_step_s is not None)
    report.median_first_step_s = times[len(times) // 2] if times else None


def _compare(report: Report, alone: RunDir, hurt: RunDir, config: Config, num_steps: int) -> None:
    from orchestrator.tracking.held import lost_and_doubled
    from orchestrator.tracking.ship import sync

    expected, found = _samples(alone), _samples(hurt)
    for name, ids in expected.items():
        trained = found.get(name, [])
        report.samples_never += len(set(ids) - set(trained))
        report.samples_twice += len(trained) - len(set(ids) & set(trained))
    theirs, ours = _figures(alone), _figures(hurt)
    report.figures_differ = sum(ours.get(name) != value for name, value in theirs.items())
    sync(hurt.path)
    lost, doubled = lost_and_doubled(hurt, config.tracking.uri)
    report.points_lost, report.points_doubled = lost, doubled
    files = [
        CheckpointStore(str(run.checkpoints_dir)).manifest(num_steps).files for run in (alone, hurt)
    ]
    report.weights_equal = files[0] == files[1]


def _samples(run: RunDir) -> Samples:
    """Return what each micro-batch was made of, in all attempts that made it."""
    found: Samples = {}
    for file in sorted(run.path.glob("logs/attempt-*/samples-*.jsonl")):
        for line in read_json_lines(file):
            name = line["step"], line["micro"]
            if found.setdefault(name, line["ids"]) != line["ids"]:
                found[name] = [*found[name], *line["ids"]]
    return found


def _figures(run: RunDir) -> dict[tuple[int, str], set[float]]:
    """Return every value that was logged of what must come out the same, however often."""
    values: dict[tuple[int, str], set[float]] = {}
    for record in read_json_lines(run.metrics_file):
        for name in _SAME_FIGURES:
            if name in record["metrics"]:
                values.setdefault((record["step"], name), set()).add(record["metrics"][name])
    return values


def _show(report: Report) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=False)
    done = sum(report.faults.values())
    table.add_row("faults", f"{done} of {report.asked}")
    for kind, count in sorted(report.faults.items()):
        table.add_row(f"  {kind}", str(count))
    first = report.median_first_step_s
    for name, value in (
        ("attempts", f"{report.num_attempts}, {report.num_steps} steps"),
        ("steps done again", f"{report.lost_steps}, at most {report.most_lost_steps} at a time"),
        ("first step after", "-" if first is None else f"{first:.1f} s (median)"),
        ("samples never, twice", f"{report.samples_never}, {report.samples_twice}"),
        ("figures that differ", str(report.figures_differ)),
        ("points lost, doubled in MLflow", f"{report.points_lost}, {report.points_doubled}"),
        ("final weights", "equal" if report.weights_equal else "DIFFER"),
        ("took", f"{report.seconds:.0f} s"),
    ):
        table.add_row(name, value)
    Console(soft_wrap=True, highlight=False).print(table)
    print(f"{'passed' if report.is_well else 'FAILED'}; both runs are in {report.directory}")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
