"""The result of a drill: a run with faults must equal the same run without."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.schema import Config
from orchestrator.console import make_table, print_table
from orchestrator.drill.inject import AttemptResult
from orchestrator.number_format import pluralize
from orchestrator.run.metric_stream import MetricTail, as_stored
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir, read_json_lines

_EXACT = ("train/", "val/")  # metrics that must not depend on faults; perf/ may


@dataclass
class Report:
    """The result of a drill.

    Args:
        num_requested: number of requested faults.
        faults: number of injected faults by kind.
        lost_steps, most_lost_steps: repeated steps of all attempts, and of the worst.
        samples_missing, samples_duplicated: training samples of the run without faults that the
            other did not train on at the same step, and those it trained on besides.
        metrics_changed: logged values that are missing or different.
        points_missing, points_duplicated: MLflow's copy compared with metrics.jsonl.
        weights_equal: True if all files of the last checkpoint are equal.
    """

    num_requested: int
    faults: dict[str, int] = field(default_factory=dict)
    num_attempts: int = 0
    num_steps: int = 0
    lost_steps: int = 0
    most_lost_steps: int = 0
    median_first_step_s: float | None = None
    samples_missing: int = 0
    samples_duplicated: int = 0
    metrics_changed: int = 0
    points_missing: int = 0
    points_duplicated: int = 0
    weights_equal: bool = False
    seconds: float = 0.0
    directory: str = ""

    @property
    def passed(self) -> bool:
        """True if nothing was lost, duplicated or changed."""
        samples = self.samples_missing + self.samples_duplicated
        points = self.points_missing + self.points_duplicated
        return self.weights_equal and samples + points + self.metrics_changed == 0


def count_faults(report: Report, results: Sequence[AttemptResult], plan: Plan) -> None:
    """Add the injected faults and the repeated steps of all attempts to a report."""
    report.faults = dict(Counter(kind for result in results for kind in result.faults))
    report.num_attempts, report.num_steps = len(results), plan.num_steps
    lost_steps = [result.lost_steps for result in results]
    report.lost_steps, report.most_lost_steps = sum(lost_steps), max(lost_steps)
    times = sorted(r.first_step_s for r in results if r.first_step_s is not None)
    report.median_first_step_s = times[len(times) // 2] if times else None


def compare(
    report: Report, runs: tuple[RunDir, RunDir], configs: tuple[Config, Config], num_steps: int
) -> None:
    """Compare a run without faults and a run with faults, and add the differences to a report."""
    from orchestrator.tracking.shipping.shipper import sync

    clean, faulty = runs
    clean_samples, faulty_samples = _samples(clean), _samples(faulty)
    for row, ids in clean_samples.items():
        expected, actual = Counter(ids), Counter(faulty_samples.get(row, []))
        report.samples_missing += (expected - actual).total()
        report.samples_duplicated += (actual - expected).total()
    metrics = _metrics(faulty)
    report.metrics_changed = sum(metrics.get(k) != value for k, value in _metrics(clean).items())
    sync(faulty.path)
    points = count_missing_and_duplicate_points(faulty, configs[1].tracking.uri)
    report.points_missing, report.points_duplicated = points
    clean_files, faulty_files = (
        CheckpointStore.for_run(run, config).manifest(num_steps).files
        for run, config in zip(runs, configs, strict=True)
    )
    report.weights_equal = clean_files == faulty_files


def _samples(run: RunDir) -> dict[tuple[int, int, int], list[int]]:
    """Return the ids of each (step, micro-batch, row), of which attempts should have seen one."""
    samples: dict[tuple[int, int, int], list[int]] = {}
    for file in sorted(run.path.glob("logs/attempt-*/samples-*.jsonl")):
        for line in read_json_lines(file):
            for row, sample in enumerate(line["ids"], line["first_row"]):
                ids = samples.setdefault((line["step"], line["micro"], row), [])
                if sample not in ids:
                    ids.append(sample)
    return samples


def _metrics(run: RunDir) -> dict[tuple[int, str], set[float]]:
    """Return all values that were logged for each step and metric that faults must not change."""
    values: dict[tuple[int, str], set[float]] = {}
    for record in read_json_lines(run.metrics_file):
        for name, value in record["metrics"].items():
            if name.startswith(_EXACT):
                values.setdefault((record["step"], name), set()).add(value)
    return values


def count_missing_and_duplicate_points(run: RunDir, tracking_uri: str) -> tuple[int, int]:
    """Count the points of metrics.jsonl that MLflow lacks, and those it has twice or wrong."""
    from orchestrator.tracking.mlflow_store.client import open_client

    logged = {
        (point.key, point.step): as_stored(point.value)
        for batch, _ in MetricTail(run.metrics_file).batches(0, 1000)
        for point in batch
    }
    run_id = (run.read_json(run.mlflow_file) or {})["run_id"]
    counts, values = Counter[tuple[str, int]](), dict[tuple[str, int], float]()
    with open_client(tracking_uri) as client:
        for key in {key for key, _ in logged}:
            for point in client.get_metric_history(run_id, key):
                counts[point.key, point.step] += 1
                values[point.key, point.step] = point.value
    missing = sum(key not in counts for key in logged)
    duplicated = sum(count - 1 for count in counts.values())
    wrong = sum(not _same(values[key], value) for key, value in logged.items() if key in values)
    return missing, duplicated + wrong


def _same(value: float, other: float) -> bool:
    return value == other or (math.isnan(value) and math.isnan(other))


def show(report: Report) -> None:
    """Print a report for people."""
    table = make_table(show_header=False)
    table.add_row("faults", f"{sum(report.faults.values())} of {report.num_requested}")
    for kind, count in sorted(report.faults.items()):
        table.add_row(f"  {kind}", str(count))
    first = report.median_first_step_s
    rows = {
        "attempts": f"{report.num_attempts}, {pluralize(report.num_steps, 'step')}",
        "steps repeated": f"{report.lost_steps}, at most {report.most_lost_steps} at a time",
        "first step after": "-" if first is None else f"{first:.1f} s (median)",
        "samples missing, duplicated": f"{report.samples_missing}, {report.samples_duplicated}",
        "metrics changed": str(report.metrics_changed),
        "points missing, duplicated in MLflow": (
            f"{report.points_missing}, {report.points_duplicated}"
        ),
        "final weights": "equal" if report.weights_equal else "DIFFER",
        "took": f"{report.seconds:.0f} s",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    print_table(table)
    print(f"{'passed' if report.passed else 'FAILED'}; both runs are in {report.directory}")
