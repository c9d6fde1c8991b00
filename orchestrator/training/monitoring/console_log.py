"""What a run says of itself in its log: one block of numbers at the start, a line now and then."""

import logging
import math
from collections.abc import Mapping

from orchestrator.number_format import format_duration, format_metric
from orchestrator.run.plan import Plan

log = logging.getLogger(__name__)


def log_summary(
    title: str,
    plan: Plan,
    cost: Mapping[str, float],
    device: str,
    start: int,
    init_from: str | None,
) -> None:
    """Log the numbers multiplied out, so that a wrong one is seen in the first second."""
    beginning = (
        f"beginning with the weights of {init_from}" if init_from else "starting from scratch"
    )
    params, gmacs = cost["model/num_params"], cost["model/gmacs"]
    lines = [
        *plan.summary_lines(),
        f"{params:,.0f} parameters, {gmacs:.4g} GMACs an image, on {device}",
        f"continuing after step {start}" if start else beginning,
    ]
    log.info("%s\n%s", title, "\n".join(f"  {line}" for line in lines))


def log_progress(plan: Plan, step: int, figures: Mapping[str, float]) -> None:
    """Log where the run is, how fast, and when it will be done."""
    left_s = (plan.num_steps - step) * plan.global_batch_size / figures["perf/images_per_s"]
    log.info(
        "%s  loss %s  lr %.3g  %s images/s  data wait %.0f %%  ETA %s",
        _place(plan, step),
        format_metric("train/loss", figures["train/loss"]),
        figures["train/lr"],
        format_metric("perf/images_per_s", figures["perf/images_per_s"]),
        100 * figures["perf/data_wait_fraction"],
        format_duration(left_s),
    )


def tell_evaluation(plan: Plan, step: int, figures: Mapping[str, float]) -> None:
    """Log what the weights of a step are worth on the validation split."""
    told = (f"{name.removeprefix('val/')} {format_metric(name, x)}" for name, x in figures.items())
    log.info("%s  val %s", _place(plan, step), "  ".join(told))
    if wrong := not_finite(figures):
        log.warning("%s: step %d will not count as the best", wrong, step)


def not_finite(figures: Mapping[str, float]) -> str:
    """Return which of the figures are no numbers, e.g. "val/loss is nan"; empty if all are."""
    wrong = [f"{key} is {value}" for key, value in figures.items() if not math.isfinite(value)]
    return " and ".join(wrong)


def _place(plan: Plan, step: int) -> str:
    return f"step {step}/{plan.num_steps}  epoch {step / plan.steps_per_epoch:.2f}"
