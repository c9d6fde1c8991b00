"""What a run says of itself in its log: one block of numbers at the start, a line now and then."""

import logging
import time
from collections.abc import Mapping

from orchestrator.plan import Plan

log = logging.getLogger(__name__)


def tell_start(
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
        *plan.lines(),
        f"{params:,.0f} parameters, {gmacs:.4g} GMACs an image, on {device}",
        f"continuing after step {start}" if start else beginning,
    ]
    log.info("%s\n%s", title, "\n".join(f"  {line}" for line in lines))


def tell_progress(plan: Plan, step: int, figures: Mapping[str, float]) -> None:
    """Log where the run is, how fast, and when it will be done."""
    left_s = (plan.num_steps - step) * plan.global_batch_size / figures["perf/images_per_s"]
    log.info(
        "step %d/%d  epoch %.2f  loss %.4f  lr %.3g  %.0f images/s  data wait %.0f %%  ETA %s",
        step,
        plan.num_steps,
        step / plan.steps_per_epoch,
        figures["train/loss"],
        figures["train/lr"],
        figures["perf/images_per_s"],
        100 * figures["perf/data_wait"],
        format_duration(left_s),
    )


def format_duration(seconds: float) -> str:
    """Return e.g. 0:00:42, or 3.5 d."""
    if seconds >= 86400:
        return f"{seconds / 86400:.1f} d"
    return time.strftime("%-H:%M:%S", time.gmtime(seconds))
