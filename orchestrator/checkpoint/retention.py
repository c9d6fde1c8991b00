"""Which checkpoints of a run are kept."""

import logging
import math
from collections.abc import Sequence

from orchestrator.checkpoint.store import CheckpointManifest, CheckpointStore
from orchestrator.config.schema import Checkpoint
from orchestrator.run.rundir import RunError

log = logging.getLogger(__name__)


def steps_to_keep(manifests: Sequence[CheckpointManifest], keep: Checkpoint) -> set[int]:
    """Return the steps whose checkpoints stay: the last ones, the best, and each n-th."""
    steps = sorted(manifest.step for manifest in manifests)
    every = keep.keep_every_steps
    stay = set(steps[-keep.keep_last :]) | {step for step in steps if every and step % every == 0}
    if (best := best_checkpoint(manifests, keep)) is not None:
        stay.add(best.step)
    return stay


def select_checkpoint(
    store: CheckpointStore, keep: Checkpoint, step: int | None
) -> CheckpointManifest:
    """Return the checkpoint of a step; without one the best, see `best_or_newest`.

    Raises:
        RunError: there is no such checkpoint.
    """
    manifests = {one.step: one for one in store.manifests()}
    if step is None and manifests:
        return best_or_newest(list(manifests.values()), keep)
    if step not in manifests:
        there = ", ".join(map(str, manifests)) or "none"
        raise RunError(f"no checkpoint of step {step or 0} in {store.url}. There are: {there}")
    return manifests[step]


def best_or_newest(manifests: Sequence[CheckpointManifest], keep: Checkpoint) -> CheckpointManifest:
    """Return the best checkpoint of some; the newest if none was judged.

    One whose figures are not finite is taken when there is no other.
    """
    if (best := best_checkpoint(manifests, keep)) is not None:
        return best
    sound = [one for one in manifests if all(map(math.isfinite, one.metrics.values()))]
    newest = max(sound or manifests, key=lambda one: one.step)
    if not sound:
        log.warning(
            "step %d is taken, and like every checkpoint there is it was evaluated as %s: its "
            "weights are spoilt. Train again with a lower recipe.optimizer.lr.",
            newest.step,
            "  ".join(f"{name} {value:.4g}" for name, value in newest.metrics.items()),
        )
    return newest


def best_checkpoint(
    manifests: Sequence[CheckpointManifest], keep: Checkpoint
) -> CheckpointManifest | None:
    """Return the checkpoint with the best figure, of equal ones the newest; None without any.

    NaN and infinity are no figures. A network that is trained without labels has no accuracy: there
    the loss decides.
    """
    name = keep.keep_best
    if name is not None and not any(name in manifest.metrics for manifest in manifests):
        name = "val/loss"
    sign = -1 if name == "val/loss" else 1
    judged = [one for one in manifests if math.isfinite(one.metrics.get(str(name), math.nan))]
    return max(judged, key=lambda one: (sign * one.metrics[str(name)], one.step), default=None)
