"""What a drill has come to: two runs, one of them hurt, that must have done the same."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.schema import Config
from orchestrator.console import make_table, print_table
from orchestrator.drill.inject import AttemptResult
from orchestrator.number_format import pluralize
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir, read_json_lines

_EXACT = ("train/", "val/")  # metrics that must not depend on faults; perf/ may

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
    def passed(self) -> bool:
        """Whether nothing was lost, doubled or changed."""
        wrong = (self.samples_never, self.samples_twice, self.figures_differ)
        return self.weights_equal and not any((*wrong, self.points_lost, self.points_doubled))


def count_faults(report: Report, ends: Sequence[AttemptResult], plan: Plan) -> None:
    """Note in a report what was done, and how the attempts ended."""
    report.faults = dict(Counter(kind for ended in ends for kind in ended.faults))
    report.num_attempts, report.num_steps = len(ends), plan.num_steps
    report.lost_steps = sum(ended.lost_steps for ended in ends)
    report.most_lost_steps = max(ended.lost_steps for ended in ends)
    times = sorted(ended.first_step_s for ended in ends if ended.first_step_s is not None)
    report.median_first_step_s = times[len(times) // 2] if times else None


def compare(
    report: Report, runs: tuple[RunDir, RunDir], configs: tuple[Config, Config], num_steps: int
) -> None:
    """Note in a report how a run that was hurt differs from one that was left alone.

    Args:
        runs, configs: of the one left alone, and of the one that was hurt.
    """
    from orchestrator.drill.mlflow_points import count_missing_and_duplicate_points
    from orchestrator.tracking.shipping.shipper import sync

    alone, hurt = runs
    expected, found = _samples(alone), _samples(hurt)
    for name, ids in expected.items():
        asked, trained = Counter(ids), Counter(found.get(name, []))
        report.samples_never += (asked - trained).total()
        report.samples_twice += (trained - asked).total()
    theirs, ours = _figures(alone), _figures(hurt)
    report.figures_differ = sum(ours.get(name) != value for name, value in theirs.items())
    sync(hurt.path)
    lost, doubled = count_missing_and_duplicate_points(hurt, configs[1].tracking.uri)
    report.points_lost, report.points_doubled = lost, doubled
    theirs_files, our_files = (
        CheckpointStore.for_run(run, config).manifest(num_steps).files
        for run, config in zip(runs, configs, strict=True)
    )
    report.weights_equal = theirs_files == our_files


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
        for name, value in record["metrics"].items():
            if name.startswith(_EXACT):
                values.setdefault((record["step"], name), set()).add(value)
    return values


def show(report: Report) -> None:
    """Print a report for people."""
    table = make_table(show_header=False)
    done = sum(report.faults.values())
    table.add_row("faults", f"{done} of {report.asked}")
    for kind, count in sorted(report.faults.items()):
        table.add_row(f"  {kind}", str(count))
    first = report.median_first_step_s
    for name, value in (
        ("attempts", f"{report.num_attempts}, {pluralize(report.num_steps, 'step')}"),
        ("steps done again", f"{report.lost_steps}, at most {report.most_lost_steps} at a time"),
        ("first step after", "-" if first is None else f"{first:.1f} s (median)"),
        ("samples never, twice", f"{report.samples_never}, {report.samples_twice}"),
        ("figures that differ", str(report.figures_differ)),
        ("points lost, doubled in MLflow", f"{report.points_lost}, {report.points_doubled}"),
        ("final weights", "equal" if report.weights_equal else "DIFFER"),
        ("took", f"{report.seconds:.0f} s"),
    ):
        table.add_row(name, value)
    print_table(table)
    print(f"{'passed' if report.passed else 'FAILED'}; both runs are in {report.directory}")
