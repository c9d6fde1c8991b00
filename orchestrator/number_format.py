"""Numbers as people read them: one format for each metric, in all tables and logs."""

import math

from data_sharding.io.text import pluralize as pluralize  # noqa: PLC0414  a re-export
from orchestrator.metrics import metric_of


def format_metric(name: str, value: float | None) -> str:
    """Format the value of a metric.

    >>> format_metric("val/top1", 98.607242), format_metric("val/loss", 0.0385159)
    ('98.61', '0.03852')
    >>> format_metric("images_per_s", 1162.4)
    '1,162'
    """
    kind = name.rpartition("/")[2]
    if value is None or kind in ("training_s", "device_s"):
        return format_duration(value)
    if kind == "images_per_s" and value < 100:  # a large network's on a CPU
        return f"{value:.3g}"
    return format(value, metric_of(name).form)


def quote_metric(name: str, value: float) -> str:
    """Format a metric with its title and its unit.

    >>> quote_metric("val/top1", 98.607242), quote_metric("val/loss", 0.0385159)
    ('top-1 98.61 %', 'loss 0.03852')
    """
    metric = metric_of(name)
    return f"{metric.title} {format_metric(name, value)} {metric.unit}".rstrip()


def format_duration(seconds: float | None) -> str:
    """Format a time as h:mm:ss, also above 24 hours."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
