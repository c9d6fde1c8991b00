"""The summary of a finished run: its results, its pages, the command to compare it."""

import os
import shlex
from pathlib import Path

from orchestrator.metrics import RANKED_BY, score
from orchestrator.number_format import format_duration, format_metric, quote_metric
from orchestrator.run.metric_stream import curve
from orchestrator.run.rundir import RunDir
from orchestrator.tracking.mlflow_ui.views import run_page
from orchestrator.tracking.records.record import Record, read_record


def results_summary(run: RunDir) -> str:
    """Format the last lines of `tahoe train`."""
    record, path = read_record(run), _near(run.path)
    came_to = ", ".join(
        filter(None, [_best(run, record), f"{format_duration(record.training_s)} of training"])
    )
    above = _near(run.path.parent)
    elsewhere = "" if above == "runs" else f" --runs-dir {shlex.quote(above)}"
    lines = [f"finished: {path}: {came_to}"]
    if page := _page(run, path):
        lines.append(f"  its curves in MLflow:  {page}")
    lines.append(f"  beside other runs:     tahoe compare{elsewhere}")
    return "\n".join(lines)


def _best(run: RunDir, record: Record) -> str:
    """Quote the last value of what runs are ranked by, and the best where that is another."""
    name = next((name for name in RANKED_BY if name in record.metrics), None)
    if name is None:
        return ""
    last, points = record.metrics[name], curve(run, name)
    step = max(points, key=lambda step: score(name, points[step]), default=0)
    quoted = f"val {quote_metric(name, last)}"
    if not step or points[step] == last:
        return quoted
    return f"{quoted} (best {format_metric(name, points[step])} at step {step})"


def _page(run: RunDir, path: str) -> str | None:
    mark = run.read_json(run.mlflow_file)
    if mark is None:
        return None
    uri = str(mark["tracking_uri"])
    return run_page(uri, mark) if uri.startswith("http") else f"tahoe ui {shlex.quote(path)}"


def _near(path: Path) -> str:
    """Shorten a path to a relative one if it is below the working directory."""
    near = os.path.relpath(path)
    return str(path) if near.startswith("..") else near
