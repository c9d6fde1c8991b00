"""Figures as people read them: one form for each, whichever verb or log shows it."""

import math

from data_sharding.io.text import pluralize as pluralize  # noqa: PLC0414  with the figures
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
    """Return a time as h:mm:ss, however many hours it is."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
