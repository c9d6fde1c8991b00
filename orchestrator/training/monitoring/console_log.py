"""The log of a run: one block of numbers at the start, then a line now and then."""

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
    params, gmacs = cost["model/num_params"], cost["model/gmacs"]
    origin = f"starting from the weights of {init_from}" if init_from else "starting from scratch"
    lines = [
        *plan.summary_lines(),
        f"{params:,.0f} parameters, {gmacs:.4g} GMACs an image, on {device}",
        f"continuing after step {start}" if start else origin,
    ]
    log.info("%s\n%s", title, "\n".join(f"  {line}" for line in lines))


def log_progress(plan: Plan, step: int, metrics: Mapping[str, float]) -> None:
    """Log the position, the speed and the time left."""
    left_s = (plan.num_steps - step) * plan.global_batch_size / metrics["perf/images_per_s"]
    log.info(
        "%s  loss %s  lr %.3g  %s images/s  data wait %.0f %%  ETA %s",
        _position(plan, step),
        format_metric("train/loss", metrics["train/loss"]),
        metrics["train/lr"],
        format_metric("perf/images_per_s", metrics["perf/images_per_s"]),
        100 * metrics["perf/data_wait_fraction"],
        format_duration(left_s),
    )


def log_evaluation(plan: Plan, step: int, metrics: Mapping[str, float]) -> None:
    """Log the metrics of a step on the validation split."""
    texts = (f"{name.removeprefix('val/')} {format_metric(name, x)}" for name, x in metrics.items())
    log.info("%s  val %s", _position(plan, step), "  ".join(texts))
    if problem := not_finite(metrics):
        log.warning("%s: step %d will not count as the best", problem, step)


def not_finite(metrics: Mapping[str, float]) -> str:
    """Describe the metrics that are no finite numbers, e.g. "val/loss is nan"; "" if all are."""
    return " and ".join(f"{name} is {x}" for name, x in metrics.items() if not math.isfinite(x))


def _position(plan: Plan, step: int) -> str:
    return f"step {step}/{plan.num_steps}  epoch {step / plan.steps_per_epoch:.2f}"
