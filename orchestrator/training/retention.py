"""Which checkpoints of a run are kept."""

from collections.abc import Sequence

from orchestrator.rundir import RunError
from orchestrator.schema import Checkpoint
from orchestrator.training.checkpoint import CheckpointStore, Manifest


def kept(manifests: Sequence[Manifest], keep: Checkpoint) -> set[int]:
    """Return the steps whose checkpoints stay: the last ones, the best, and each n-th."""
    steps = sorted(manifest.step for manifest in manifests)
    every = keep.keep_every_steps
    stay = set(steps[-keep.keep_last :]) | {step for step in steps if every and step % every == 0}
    if (best := best_of(manifests, keep)) is not None:
        stay.add(best.step)
    return stay


def meant(store: CheckpointStore, keep: Checkpoint, step: int | None) -> Manifest:
    """Return the checkpoint of a step; without one the best, or the newest if none was judged.

    Raises:
        RunError: there is no such checkpoint.
    """
    manifests = {one.step: one for one in store.manifests()}
    best = best_of(list(manifests.values()), keep)
    wanted = step or (best.step if best else max(manifests, default=0))
    if wanted not in manifests:
        there = ", ".join(map(str, manifests)) or "none"
        raise RunError(f"no checkpoint of step {wanted} in {store.url}. There are: {there}")
    return manifests[wanted]


def best_of(manifests: Sequence[Manifest], keep: Checkpoint) -> Manifest | None:
    """Return the checkpoint with the best figure, of equal ones the newest; None without any.

    A network that is trained without labels has no accuracy: there the loss decides.
    """
    name = keep.keep_best
    if name is not None and not any(name in manifest.metrics for manifest in manifests):
        name = "val/loss"
    sign = -1 if name == "val/loss" else 1
    judged = [manifest for manifest in manifests if name in manifest.metrics]
    return max(judged, key=lambda one: (sign * one.metrics[str(name)], one.step), default=None)
