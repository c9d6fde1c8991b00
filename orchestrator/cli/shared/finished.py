"""What a finished run came to, where to look at it, and what one types next."""

import os
import shlex
from pathlib import Path

from orchestrator.number_format import format_duration, format_metric
from orchestrator.run.metric_stream import curve
from orchestrator.run.rundir import RunDir
from orchestrator.tracking.mlflow_ui.views import run_page
from orchestrator.tracking.records.record import Record, read_record

_BEST = (("val/top1", "top-1 {} %", max), ("val/loss", "loss {}", min))


def results_summary(run: RunDir) -> str:
    """Return the lines that `tahoe train` ends with."""
    record, path = read_record(run), _near(run.path)
    came_to = ", ".join(
        filter(None, [_best(run, record), f"{format_duration(record.training_s)} of training"])
    )
    above = _near(run.path.parent)
    elsewhere = "" if above == "runs" else f" --runs {shlex.quote(above)}"
    lines = [f"finished: {path}: {came_to}"]
    if page := _page(run, path):
        lines.append(f"  its curves in MLflow:  {page}")
    lines.append(f"  beside other runs:     tahoe compare{elsewhere}")
    return "\n".join(lines)


def _best(run: RunDir, record: Record) -> str:
    """Return the last value of what runs are ranked by, and the best where that is another."""
    for name, form, best_of in _BEST:
        if name in record.metrics:
            last, finite = record.metrics[name], curve(run, name)
            step, best = best_of(finite.items(), key=lambda point: point[1], default=(0, last))
            better = (
                f" (best {format_metric(name, best)} at step {step})"
                if step and best != last
                else ""
            )
            return f"val {form.format(format_metric(name, last))}{better}"
    return ""


def _page(run: RunDir, path: str) -> str | None:
    mark = run.read_json(run.mlflow_file)
    if mark is None:
        return None
    uri = str(mark["tracking_uri"])
    return run_page(uri, mark) if uri.startswith("http") else f"tahoe ui {shlex.quote(path)}"


def _near(path: Path) -> str:
    """Return a path as one would type it here: relative, where it lies below."""
    near = os.path.relpath(path)
    return str(path) if near.startswith("..") else near
