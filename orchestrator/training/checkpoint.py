"""Checkpoints: directories of plain files, believed only when their manifest and digests agree.

    checkpoints/step-000001000/
        model.safetensors    weights and buffers; loads into timm or plain torch
        ema.safetensors      averaged weights, where the recipe averages
        optimizer.pt         tensors only, read with weights_only=True
        state.json           the step, the loss scaler, the format
        manifest.json        sizes and digests of the others; written last

A checkpoint exists when its manifest does: parts are written whole before it, so a kill at any
moment leaves the checkpoint before this one as the newest. The same rule holds on a disk and on an
object store, hence any fsspec URL will do.
"""

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from typing import IO, Any

from data_sharding import files

MANIFEST = "manifest.json"
FORMAT = "tahoe-checkpoint-1"
_NICENESS = 19  # of the threads that write
Part = Callable[[IO[bytes]], object]  # writes a file of a checkpoint
log = logging.getLogger(__name__)


class CheckpointError(Exception):
    """A checkpoint is not what its manifest says."""


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run, at a path or an fsspec URL."""

    url: str

    def location(self, step: int) -> str:
        """Return the URL of a step's checkpoint."""
        return files.join(self.url, f"step-{step:09d}")

    def save(self, step: int, parts: Mapping[str, Part], metrics: Mapping[str, float]) -> None:
        """Publish a checkpoint; its files are written side by side, and hashed on the way.

        Args:
            parts: file name -> what writes it.
            metrics: of an evaluation at this very step, if there was one; decides what is best.
        """
        where = self.location(step)
        num_writers = max(1, min(len(parts), len(os.sched_getaffinity(0)) - 1))
        with ThreadPoolExecutor(num_writers, "checkpoint-part", _yield_to_training) as pool:
            written = pool.map(lambda name: _write(files.join(where, name), parts[name]), parts)
            listed = dict(zip(parts, written, strict=True))
        manifest = {"format": FORMAT, "step": step, "metrics": dict(metrics), "files": listed}
        files.write_bytes(files.join(where, MANIFEST), json.dumps(manifest, indent=2).encode())

    def load(self, step: int) -> dict[str, bytes]:
        """Return the files of a checkpoint.

        Raises:
            CheckpointError: a file is missing or differs from the manifest.
        """
        where, parts = self.location(step), {}
        for name, expected in self._manifest(step)["files"].items():
            try:
                data = files.read_bytes(files.join(where, name))
            except FileNotFoundError:
                raise CheckpointError(f"{where}/{name} is missing") from None
            if sha256(data).hexdigest() != expected["sha256"]:
                raise CheckpointError(
                    f"{where}/{name} is damaged: {len(data)} bytes with another digest than the "
                    f"{expected['num_bytes']} of the manifest"
                )
            parts[name] = data
        return parts

    def newest(self) -> int | None:
        """Return the step of the newest checkpoint that verifies; set aside those that do not."""
        for step in reversed(self.steps()):
            try:
                self.load(step)
            except CheckpointError as error:
                log.warning("%s; it is set aside, the checkpoint before it is used", error)
                self._set_aside(step)
            else:
                return step
        return None

    def steps(self) -> list[int]:
        """Return the steps that have a published checkpoint, ascending."""
        return [step for step in self._begun() if self._is_published(step)]

    def prune(self, *, keep_last: int, keep_every_steps: int | None) -> None:
        """Remove all but the newest, the best by val/top1 and each n-th, and what kills left."""
        steps = self.steps()
        kept = set(steps[-keep_last:])
        if keep_every_steps:
            kept |= {step for step in steps if step % keep_every_steps == 0}
        scores = {step: top1 for step in steps if (top1 := self._top1(step)) is not None}
        if scores:
            kept.add(max(scores, key=lambda step: (scores[step], step)))
        for step in self._begun():
            if step not in kept and step < max(steps):
                files.remove(files.join(self.location(step), MANIFEST))  # it stops existing at once
                files.remove_directory(self.location(step))

    def _begun(self) -> list[int]:
        matches = (re.fullmatch(r"step-(\d{9,})", name) for name in files.list_names(self.url))
        return sorted(int(match[1]) for match in matches if match)

    def _is_published(self, step: int) -> bool:
        return files.exists(files.join(self.location(step), MANIFEST))

    def _set_aside(self, step: int) -> None:
        manifest = files.join(self.location(step), MANIFEST)
        files.write_bytes(f"{manifest}.bad", files.read_bytes(manifest))
        files.remove(manifest)

    def _top1(self, step: int) -> float | None:
        try:
            top1: float | None = self._manifest(step)["metrics"].get("val/top1")
        except CheckpointError:
            return None
        return top1

    def _manifest(self, step: int) -> dict[str, Any]:
        where = files.join(self.location(step), MANIFEST)
        try:
            manifest: dict[str, Any] = json.loads(files.read_bytes(where))
            if manifest["format"] != FORMAT or manifest["step"] != step:
                raise CheckpointError(
                    f"{where} is of format {manifest['format']!r}, not {FORMAT!r}"
                )
            if any(re.fullmatch(r"[\w.\-]+", name) is None for name in manifest["files"]):
                raise CheckpointError(f"{where} names files outside its directory")
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise CheckpointError(f"{where} cannot be read: {error!r}") from None
        return manifest


def _yield_to_training() -> None:
    """Let this thread have what the others leave (Linux gives each thread a niceness)."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


@dataclass
class _Hashed:
    """A file that is only written to, and knows the digest of what has been."""

    file: IO[bytes]
    num_bytes: int = 0
    sha256: Any = field(default_factory=sha256)

    def write(self, data: Any) -> int:
        """Write bytes, or what has a buffer of them."""
        view = memoryview(data).cast("B")
        self.sha256.update(view)
        self.file.write(view)
        self.num_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        self.file.flush()


def _write(url: str, part: Part) -> dict[str, object]:
    """Write a file, and return what the manifest says of it."""
    with files.create(url) as file:
        hashed = _Hashed(file)
        part(hashed)  # type: ignore[arg-type]  # as much of a file as torch.save asks for
    return {"num_bytes": hashed.num_bytes, "sha256": hashed.sha256.hexdigest()}
