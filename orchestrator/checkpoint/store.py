"""Checkpoints: directories of plain files, believed only when their manifest and digests agree.

    checkpoints/step-000001000/
        model.safetensors    weights and buffers; loads into timm or plain torch
        ema.safetensors      averaged weights, where the recipe averages
        optimizer.pt         tensors only, read with weights_only=True
        state.json           the step, the loss scaler, the format
        manifest.json        sizes and digests of the others; written last

A checkpoint exists when its manifest does: the other files are written whole before it, so a kill
at any moment leaves the previous checkpoint as the newest. The same rule holds on a disk and on an
object store, hence any fsspec URL will do.
"""

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import file_digest, sha256
from io import BufferedRandom
from pathlib import Path
from typing import IO, Any, Self

from data_sharding.errors import ShardError, UserError
from data_sharding.io import filesystem
from data_sharding.io.download import fetch_file
from orchestrator.config.schema import Config
from orchestrator.run.rundir import RunDir

MANIFEST = "manifest.json"
FORMAT = "tahoe-checkpoint-1"
WEIGHTS = {"ema": "ema.safetensors", "raw": "model.safetensors"}  # in the order of preference
_NICENESS = 19  # of the threads that write
WriteFn = Callable[[IO[bytes]], object]  # writes a file of a checkpoint
Files = dict[str, Path]  # of a checkpoint, by name
log = logging.getLogger(__name__)


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or lacks what is requested of it."""


@dataclass(frozen=True)
class CheckpointManifest:
    """The contents of a checkpoint.

    Args:
        metrics: the results of an evaluation at this very step; empty without one.
        files: the size in bytes and the SHA-256 digest of each file.
    """

    step: int
    metrics: dict[str, float]
    files: dict[str, tuple[int, str]]

    def weights_file(self, kind: str | None = None) -> str:
        """Return the name of the file with the weights.

        Args:
            kind: a key of WEIGHTS; None for the averaged weights, where there are any.

        Raises:
            CheckpointError: the checkpoint has no such weights.
        """
        candidates = [WEIGHTS[kind]] if kind else list(WEIGHTS.values())
        for name in candidates:
            if name in self.files:
                return name
        hint = "The recipe averages no weights: leave --weights out." if kind == "ema" else ""
        raise CheckpointError(
            f"the checkpoint of step {self.step} has no {' or '.join(candidates)}",
            value=self.step,
            hint=hint,
        )

    @property
    def num_bytes(self) -> int:
        return sum(num_bytes for num_bytes, _ in self.files.values())

    @classmethod
    def parse(cls, data: bytes, url: str) -> Self:
        """Parse a manifest of unknown origin.

        Raises:
            CheckpointError: it is damaged, of another format, or names files elsewhere.
        """
        try:
            manifest = json.loads(data)
            if manifest.pop("sha256") != _digest(manifest):
                raise CheckpointError(f"{url} is damaged: its digest does not match", value=url)
            if manifest["format"] != FORMAT:
                raise CheckpointError(
                    f"{url} is of format {manifest['format']!r}, not {FORMAT!r}", value=url
                )
            metrics = {name: float(value) for name, value in manifest["metrics"].items()}
            files = {
                name: (int(entry["num_bytes"]), str(entry["sha256"]))
                for name, entry in manifest["files"].items()
            }
            step = int(manifest["step"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{url} cannot be read: {error!r}", value=url) from None
        if any(re.fullmatch(r"\w[\w.\-]*", name) is None for name in files):
            raise CheckpointError(f"{url} names files outside its directory", value=url)
        return cls(step, metrics, files)

    def to_bytes(self) -> bytes:
        """Encode the manifest for `parse`."""
        files = {
            name: {"num_bytes": num_bytes, "sha256": digest}
            for name, (num_bytes, digest) in self.files.items()
        }
        values = {"format": FORMAT, "step": self.step, "metrics": self.metrics, "files": files}
        return json.dumps({**values, "sha256": _digest(values)}, indent=2).encode()


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run, at a path or an fsspec URL."""

    url: str
    run: RunDir | None = None

    @classmethod
    def for_run(cls, run: RunDir, config: Config) -> Self:
        """Open the checkpoints of a run, wherever its config puts them."""
        return cls(config.checkpoint.url or str(run.checkpoints_dir), run)

    def location(self, step: int) -> str:
        """Return the URL of a step's checkpoint."""
        return filesystem.join(self.url, f"step-{step:09d}")

    def display_path(self, step: int) -> str:
        """Return the location of a step's checkpoint, relative to the run if it is inside."""
        url = self.location(step)
        return url.removeprefix(f"{self.run.path}/") if self.run else url

    def save(self, step: int, parts: Mapping[str, WriteFn], metrics: Mapping[str, float]) -> None:
        """Publish a checkpoint; its files are written in parallel, and hashed on the way.

        Args:
            parts: file name -> the function that writes it.
            metrics: the results of an evaluation at this very step; they decide what is best.
        """
        url = self.location(step)
        num_writers = max(1, min(len(parts), len(os.sched_getaffinity(0)) - 1))
        with ThreadPoolExecutor(num_writers, "checkpoint-part", _lower_priority) as pool:
            entries = pool.map(lambda name: _write(filesystem.join(url, name), parts[name]), parts)
            files = dict(zip(parts, entries, strict=True))
        self._write_manifest(CheckpointManifest(step, dict(metrics), files))

    @contextmanager
    def open(self, step: int, names: Collection[str] | None = None) -> Iterator[Files]:
        """Verify files of a checkpoint, all or the named ones, and yield their local paths.

        Remote files are copied to memory, not to a disk that may be small or slow.

        Raises:
            CheckpointError: a file is missing or differs from the manifest.
        """
        url, files = self.location(step), self.manifest(step).files
        names = list(files if names is None else names)

        def verified(name: str) -> Path:
            return stack.enter_context(_verified(filesystem.join(url, name), *files[name]))

        with ExitStack() as stack:
            with ThreadPoolExecutor(len(names) or 1, "checkpoint-part") as pool:
                paths = dict(zip(names, pool.map(verified, names), strict=True))
            yield paths

    @contextmanager
    def open_latest(self) -> Iterator[tuple[int, Files] | None]:
        """Yield the newest checkpoint that verifies, and its step; quarantine damaged ones."""
        with ExitStack() as stack:
            latest = None
            for step in reversed(self.steps()):
                try:
                    latest = step, stack.enter_context(self.open(step))
                    break
                except CheckpointError as error:
                    log.warning("%s; it is set aside, and the one before it is used", error)
                    self._quarantine(step)
            yield latest

    def steps(self) -> list[int]:
        """Return the steps that have a published checkpoint, ascending."""
        return [step for step in self._started_steps() if self._is_published(step)]

    def manifests(self) -> list[CheckpointManifest]:
        """Return the readable manifests of the published checkpoints, ascending."""
        manifests = []
        for step in self.steps():
            try:
                manifests.append(self.manifest(step))
            except CheckpointError as error:
                log.warning("%s", error)
        return manifests

    def manifest(self, step: int) -> CheckpointManifest:
        """Read the manifest of a step's checkpoint.

        Raises:
            CheckpointError: it is missing or invalid.
        """
        url = self._manifest_url(step)
        try:
            manifest = CheckpointManifest.parse(filesystem.read_bytes(url), url)
        except FileNotFoundError:
            raise CheckpointError(f"{url} is missing", value=url) from None
        if manifest.step != step:
            raise CheckpointError(f"{url} is of step {manifest.step}", value=url)
        return manifest

    def set_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the results of an evaluation that was made after the checkpoint was saved."""
        self._write_manifest(replace(self.manifest(step), metrics=dict(metrics)))

    def prune(self, kept: Collection[int]) -> list[int]:
        """Remove checkpoints, and leftovers of kills, that are older than the newest checkpoint.

        Args:
            kept: steps to spare.

        Returns:
            The steps of the removed checkpoints.
        """
        published = self.steps()
        removed = [
            step for step in self._started_steps() if step not in kept and step < max(published)
        ]
        for step in removed:
            filesystem.remove(self._manifest_url(step))  # it stops existing at once
            filesystem.remove_directory(self.location(step))
        return sorted(set(removed) & set(published))

    def discard(self, step: int) -> None:
        """Remove the leftovers of a failed save, as far as the store permits."""
        with suppress(OSError):
            if not self._is_published(step):
                filesystem.remove_directory(self.location(step))

    def abort_stale_uploads(self) -> None:
        """Abort the multipart uploads of killed attempts, where the store permits."""
        try:
            count = filesystem.abort_multipart_uploads(self.url)
        except Exception as error:  # a store's own kinds: the right to list may be missing
            log.warning("unfinished uploads in %s cannot be listed: %s", self.url, error)
        else:
            if count:
                log.info("%d unfinished uploads in %s are aborted", count, self.url)

    def _started_steps(self) -> list[int]:
        names = filesystem.list_names(self.url)
        matches = (re.fullmatch(r"step-(\d{9,})", name) for name in names)
        return sorted(int(match[1]) for match in matches if match)

    def _manifest_url(self, step: int) -> str:
        return filesystem.join(self.location(step), MANIFEST)

    def _is_published(self, step: int) -> bool:
        return filesystem.exists(self._manifest_url(step))

    def _write_manifest(self, manifest: CheckpointManifest) -> None:
        filesystem.write_bytes(self._manifest_url(manifest.step), manifest.to_bytes())

    def _quarantine(self, step: int) -> None:
        url = self._manifest_url(step)
        filesystem.write_bytes(f"{url}.bad", filesystem.read_bytes(url))
        filesystem.remove(url)


def _digest(manifest: Mapping[str, Any]) -> str:
    return sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _lower_priority() -> None:
    """Leave the processors to training (Linux gives each thread a niceness)."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


@dataclass
class HashedFile:
    """A write-only file that knows the size and the digest of its content."""

    file: IO[bytes]
    num_bytes: int = 0
    sha256: Any = field(default_factory=sha256)

    def write(self, data: Any) -> int:
        """Write bytes, or an object with a buffer of them."""
        view = memoryview(data).cast("B")
        self.sha256.update(view)
        with filesystem.store_errors():
            self.file.write(view)
        self.num_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        self.file.flush()


def _write(url: str, write_part: WriteFn) -> tuple[int, str]:
    """Write a file, and return its size and digest."""
    with filesystem.open_for_write(url) as file:
        hashed = HashedFile(file)
        try:
            write_part(hashed)  # type: ignore[arg-type]  # as much of a file as torch.save needs
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch.save then misses bytes of its own
                raise error.__context__ from None
            raise
    return hashed.num_bytes, hashed.sha256.hexdigest()


@contextmanager
def _verified(url: str, num_bytes: int, digest: str) -> Iterator[Path]:
    """Verify the size and digest of a file, and yield the path of it or of a copy in memory."""
    try:
        size, path = filesystem.size(url), filesystem.local_path(url)
        if size != num_bytes:
            raise CheckpointError(f"{url} is damaged: {size} bytes, not {num_bytes}", value=url)
        with path.open("rb") if path else _in_memory(url, num_bytes) as file:
            if file_digest(file, "sha256").hexdigest() != digest:
                raise CheckpointError(f"{url} is damaged: its digest does not match", value=url)
            yield path or Path(f"/proc/self/fd/{file.fileno()}")
    except FileNotFoundError:
        raise CheckpointError(f"{url} is missing", value=url) from None


@contextmanager
def _in_memory(url: str, num_bytes: int) -> Iterator[BufferedRandom]:
    """Yield a copy of a remote file, at its beginning."""
    with os.fdopen(os.memfd_create("checkpoint"), "w+b") as file:
        try:
            fetch_file(url, num_bytes, file)
        except ShardError as error:
            raise CheckpointError(error.problem, value=url, hint=error.hint) from None
        yield file
