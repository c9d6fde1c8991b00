"""Figures as people read them: one form for each, whichever verb or log shows it."""

import math

from data_sharding.words import counted as counted  # noqa: PLC0414  with the figures

_FORMS = {  # by how a name ends
    "top1": ".2f",
    "top5": ".2f",
    "loss": "#.4g",
    "images_per_s": ",.0f",
    "num_params": ",.0f",
}


def shown(name: str, value: float | None) -> str:
    """Return a figure in the form of its kind, which the end of its name tells.

    >>> shown("val/top1", 98.607242), shown("val/loss", 0.0385159), shown("images_per_s", 1162.4)
    ('98.61', '0.03852', '1,162')
    """
    kind = name.rpartition("/")[2]
    if value is None or kind in ("training_s", "device_s"):
        return clock(value)
    if kind == "images_per_s" and value < 100:  # a large network's on a CPU
        return f"{value:.3g}"
    form = next((form for end, form in _FORMS.items() if kind.endswith(end)), ".4g")
    return format(value, form)


def clock(seconds: float | None) -> str:
    """Return a time as h:mm:ss, however many hours it is."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
