"""The metrics of runs: one list that training, evaluation, retention, reports and MLflow read.

A logged name is a group and a metric, e.g. `val/top1` or `perf/images_per_s`. A new metric needs a
row here, and the code that computes it: for a result of evaluations, a mean over samples,
`training.task.losses.sum_metrics`; of images with several labels `training.task.class_metrics`.
keep_best, the tables and MLflow then have it.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A metric: its title, unit, format and goal.

    Args:
        title: its short name in tables and sentences.
        unit: its unit; empty for a plain number.
        form: the format specification of its values.
        goal: the better direction; None if it is no result.
        reduction: the reduction over ranks.
    """

    title: str
    unit: str = ""
    form: str = ".4g"
    goal: Literal["max", "min"] | None = None
    reduction: Literal["mean", "sum"] = "mean"

    @property
    def heading(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


METRICS = {
    "top1": Metric("top-1", "%", ".2f", goal="max"),
    "top5": Metric("top-5", "%", ".2f", goal="max"),
    "map": Metric("mAP", "%", ".2f", goal="max"),
    "f1": Metric("F1", "%", ".2f", goal="max"),
    "loss": Metric("loss", "", "#.4g", goal="min"),
    "real_top1": Metric("ReaL", "%", ".2f", goal="max"),
    "images_per_s": Metric("speed", "img/s", ",.0f", reduction="sum"),
    "data_wait_fraction": Metric("data wait"),
    "step_time_p50_s": Metric("median step", "s"),
    "step_time_p95_s": Metric("95 % of steps", "s"),
    "wait_fraction": Metric("waiting for ranks"),
    "node_time_p50_s": Metric("median node", "s"),
    "node_time_max_s": Metric("slowest node", "s"),
    "host_mem_peak_gb": Metric("host memory", "GB", reduction="sum"),
    "gpu_mem_peak_gb": Metric("GPU memory", "GB"),
    "num_params": Metric("params", form=",.0f"),
}
RESULTS = tuple(name for name, metric in METRICS.items() if metric.goal)
VAL_METRICS = tuple(f"val/{name}" for name in RESULTS if name != "real_top1")  # in training
SINGLE_LABEL_METRICS = ("val/top1", "val/top5", "val/loss")  # of images with one label each
MULTI_LABEL_METRICS = ("val/map", "val/f1", "val/loss")  # of images with several
MAIN_METRICS = ("val/top1", "val/map")  # of which a run has at most one, by its labels
RANKED_BY = (*MAIN_METRICS, "val/loss")  # runs, by the first that they have


def main_metrics(measured: Container[str]) -> tuple[str, ...]:
    """Return those of MAIN_METRICS that were measured; the first where none was.

    >>> main_metrics({"val/map", "val/loss"}), main_metrics({"val/loss"})
    (('val/map',), ('val/top1',))
    """
    return tuple(name for name in MAIN_METRICS if name in measured) or MAIN_METRICS[:1]


def metric_of(name: str) -> Metric:
    """Return the metric of a logged name; an unlisted one has a title and no unit.

    >>> metric_of("val/top1").title, metric_of("system/load").title
    ('top-1', 'load')
    """
    bare = name.rpartition("/")[2]
    return METRICS.get(bare) or Metric(bare)


def score(name: str, value: float) -> float:
    """Return a number that is higher for a better value of a metric."""
    return -value if metric_of(name).goal == "min" else value


def column_header(name: str) -> str:
    """Return the header of a table's column, three lines: group, title and unit.

    >>> column_header("val/top1")
    'val\\ntop-1\\n(%)'
    """
    metric = metric_of(name)
    return f"{name.rpartition('/')[0]}\n{metric.title}\n{f'({metric.unit})' * bool(metric.unit)}"


def rank_parts(values: Mapping[str, float], num_ranks: int) -> dict[str, float]:
    """Scale one rank's metrics so that their sums over ranks are the metrics of the run."""
    return {
        name: value if metric_of(name).reduction == "sum" else value / num_ranks
        for name, value in values.items()
    }
