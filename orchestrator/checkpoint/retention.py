"""The choice among the checkpoints of a run: the best one, and those to keep."""

import logging
import math
from collections.abc import Sequence

from orchestrator.checkpoint.store import CheckpointManifest, CheckpointStore
from orchestrator.config.schema import Checkpoint
from orchestrator.metrics import RANKED_BY, score
from orchestrator.run.rundir import RunError

log = logging.getLogger(__name__)


def steps_to_keep(manifests: Sequence[CheckpointManifest], keep: Checkpoint) -> set[int]:
    """Select the last checkpoints, the best one, and each n-th; return their steps."""
    steps = sorted(manifest.step for manifest in manifests)
    every = keep.keep_every_steps
    kept = set(steps[-keep.keep_last :]) | {step for step in steps if every and step % every == 0}
    best = best_checkpoint(manifests, keep)
    return kept | {best.step} if best else kept


def select_checkpoint(
    store: CheckpointStore, keep: Checkpoint, step: int | None
) -> CheckpointManifest:
    """Return the checkpoint of a step; without a step, see `best_or_newest`."""
    manifests = {manifest.step: manifest for manifest in store.manifests()}
    if step is None and manifests:
        return best_or_newest(list(manifests.values()), keep)
    if step not in manifests:
        existing = ", ".join(map(str, manifests)) or "none"
        raise RunError(
            f"no checkpoint of step {step or 0} in {store.url}",
            value=step or 0,
            hint=f"Its steps: {existing}.",
        )
    return manifests[step]


def best_or_newest(manifests: Sequence[CheckpointManifest], keep: Checkpoint) -> CheckpointManifest:
    """Return the best checkpoint; the newest if none was evaluated.

    A checkpoint whose metrics are not finite is the last resort.
    """
    if (best := best_checkpoint(manifests, keep)) is not None:
        return best
    sound = [one for one in manifests if all(map(math.isfinite, one.metrics.values()))]
    newest = max(sound or manifests, key=lambda manifest: manifest.step)
    if not sound:
        log.warning(
            "step %d is used although it was evaluated as %s, as no checkpoint has finite metrics. "
            "Train again with a lower recipe.optimizer.lr.",
            newest.step,
            "  ".join(f"{name} {value:.4g}" for name, value in newest.metrics.items()),
        )
    return newest


def best_checkpoint(
    manifests: Sequence[CheckpointManifest], keep: Checkpoint
) -> CheckpointManifest | None:
    """Return the checkpoint with the best finite metric; of equal ones, the newest.

    Where that metric does not exist, as the accuracy of several labels or of none, the main one of
    those that do decides.
    """
    name = keep.keep_best
    existing = {name for manifest in manifests for name in manifest.metrics}
    if name is not None and name not in existing:
        name = next((main for main in RANKED_BY if main in existing), None)
    evaluated = [one for one in manifests if math.isfinite(one.metrics.get(str(name), math.nan))]

    def rank(manifest: CheckpointManifest) -> tuple[float, int]:
        return score(str(name), manifest.metrics[str(name)]), manifest.step

    return max(evaluated, key=rank, default=None)
