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
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import file_digest, sha256
from io import BufferedRandom
from pathlib import Path
from typing import IO, Any, Self

from data_sharding.errors import ShardError, UserError
from data_sharding.io import filesystem as files
from data_sharding.io.download import fetch_file
from orchestrator.config.schema import Config
from orchestrator.run.rundir import RunDir

MANIFEST = "manifest.json"
FORMAT = "tahoe-checkpoint-1"
WEIGHTS = {"ema": "ema.safetensors", "raw": "model.safetensors"}  # the first there is is meant
_NICENESS = 19  # of the threads that write
WriteFn = Callable[[IO[bytes]], object]  # writes a file of a checkpoint
Files = dict[str, Path]  # of a checkpoint, by name
log = logging.getLogger(__name__)


class CheckpointError(UserError):
    """A checkpoint is not what its manifest says."""


@dataclass(frozen=True)
class CheckpointManifest:
    """What a checkpoint says of itself.

    `metrics` are of an evaluation at its very step, if there was one; `files` their sizes in bytes
    and digests.
    """

    step: int
    metrics: dict[str, float]
    files: dict[str, tuple[int, str]]

    @property
    def weights(self) -> str:
        """The file of the weights that one would use: averaged, where there are any."""
        found = [name for name in WEIGHTS.values() if name in self.files]
        if not found:
            raise CheckpointError(f"step {self.step} has neither of {', '.join(WEIGHTS.values())}")
        return found[0]

    def chosen(self, kind: str | None) -> str:
        """Return the file of the weights of a kind, a key of WEIGHTS; None: as `weights`.

        Raises:
            CheckpointError: the checkpoint has none of them.
        """
        name = WEIGHTS[kind] if kind else self.weights
        if name not in self.files:
            raise CheckpointError(
                f"step {self.step} has no {name}: the recipe averages no weights. Leave --weights "
                "out."
            )
        return name

    @property
    def num_bytes(self) -> int:
        return sum(num_bytes for num_bytes, _ in self.files.values())

    @classmethod
    def parse(cls, data: bytes, where: str) -> Self:
        """Read a manifest, whoever wrote it.

        Raises:
            CheckpointError: it is none, of another format, or names files elsewhere.
        """
        try:
            manifest = json.loads(data)
            digest = manifest.pop("sha256", None)  # checkpoints from before it had one have none
            if digest not in (None, _digest(manifest)):
                raise CheckpointError(f"{where} is damaged: it has another digest than it says")
            if manifest["format"] != FORMAT:
                raise CheckpointError(
                    f"{where} is of format {manifest['format']!r}, not {FORMAT!r}"
                )
            metrics = {name: float(value) for name, value in manifest["metrics"].items()}
            listed = {
                name: (int(facts["num_bytes"]), str(facts["sha256"]))
                for name, facts in manifest["files"].items()
            }
            step = int(manifest["step"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{where} cannot be read: {error!r}") from None
        if any(re.fullmatch(r"\w[\w.\-]*", name) is None for name in listed):
            raise CheckpointError(f"{where} names files outside its directory")
        return cls(step, metrics, listed)

    def to_bytes(self) -> bytes:
        """Return what `parse` reads."""
        listed = {
            name: {"num_bytes": num_bytes, "sha256": digest}
            for name, (num_bytes, digest) in self.files.items()
        }
        values = {"format": FORMAT, "step": self.step, "metrics": self.metrics, "files": listed}
        return json.dumps({**values, "sha256": _digest(values)}, indent=2).encode()


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run, at a path or an fsspec URL."""

    url: str
    run: RunDir | None = None  # which they are shown relative to, if they lie in it

    @classmethod
    def for_run(cls, run: RunDir, config: Config) -> Self:
        """Return those of a run, wherever its config has them."""
        return cls(config.checkpoint.url or str(run.checkpoints_dir), run)

    def location(self, step: int) -> str:
        """Return the URL of a step's checkpoint."""
        return files.join(self.url, f"step-{step:09d}")

    def shown(self, step: int) -> str:
        """Return where a step's checkpoint is, as logs of the run have it."""
        where = self.location(step)
        return where.removeprefix(f"{self.run.path}/") if self.run else where

    def save(self, step: int, parts: Mapping[str, WriteFn], metrics: Mapping[str, float]) -> None:
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
        manifest = CheckpointManifest(step, dict(metrics), listed)
        files.write_bytes(files.join(where, MANIFEST), manifest.to_bytes())

    @contextmanager
    def open(self, step: int, names: Collection[str] | None = None) -> Iterator[Files]:
        """Yield local paths of a checkpoint's files, or of some, once they have been verified.

        Those of a remote store are copied to memory, not to a disk that may be small or slow.

        Raises:
            CheckpointError: a file is missing or differs from the manifest.
        """
        where, listed = self.location(step), self.manifest(step).files
        wanted = listed if names is None else {name: listed[name] for name in names}

        def verified(name: str) -> Path:
            return stack.enter_context(_verified(files.join(where, name), *wanted[name]))

        with ExitStack() as stack:
            with ThreadPoolExecutor(len(wanted) or 1, "checkpoint-part") as pool:
                found = dict(zip(wanted, pool.map(verified, wanted), strict=True))
            yield found

    @contextmanager
    def open_latest(self) -> Iterator[tuple[int, Files] | None]:
        """Yield the newest checkpoint that verifies, and its step; set aside those that do not."""
        with ExitStack() as stack:
            found = None
            for step in reversed(self.steps()):
                try:
                    found = step, stack.enter_context(self.open(step))
                    break
                except CheckpointError as error:
                    log.warning("%s; it is set aside, the checkpoint before it is used", error)
                    self._quarantine(step)
            yield found

    def steps(self) -> list[int]:
        """Return the steps that have a published checkpoint, ascending."""
        return [step for step in self._started_steps() if self._is_published(step)]

    def manifests(self) -> list[CheckpointManifest]:
        """Return the manifests of the published checkpoints that have a readable one, ascending."""
        found = []
        for step in self.steps():
            try:
                found.append(self.manifest(step))
            except CheckpointError as error:
                log.warning("%s", error)
        return found

    def manifest(self, step: int) -> CheckpointManifest:
        """Return the manifest of a step's checkpoint.

        Raises:
            CheckpointError: there is none, or it cannot be believed.
        """
        where = files.join(self.location(step), MANIFEST)
        try:
            manifest = CheckpointManifest.parse(files.read_bytes(where), where)
        except FileNotFoundError:
            raise CheckpointError(f"{where} is missing") from None
        if manifest.step != step:
            raise CheckpointError(f"{where} is of step {manifest.step}")
        return manifest

    def note_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Give a checkpoint the figures of an evaluation that was made after it was saved."""
        manifest = replace(self.manifest(step), metrics=dict(metrics))
        files.write_bytes(files.join(self.location(step), MANIFEST), manifest.to_bytes())

    def prune(self, kept: Collection[int]) -> list[int]:
        """Remove what lies before the newest checkpoint and is not kept, and what kills left there.

        Returns:
            The steps of the checkpoints that are gone.
        """
        published = self.steps()
        gone = [
            step for step in self._started_steps() if step not in kept and step < max(published)
        ]
        for step in gone:
            files.remove(files.join(self.location(step), MANIFEST))  # it stops existing at once
            files.remove_directory(self.location(step))
        return sorted(set(gone) & set(published))

    def discard(self, step: int) -> None:
        """Remove what a failed save has left, as far as the store lets us: it takes up room."""
        with suppress(OSError):
            if not self._is_published(step):
                files.remove_directory(self.location(step))

    def abandon_uploads(self) -> None:
        """End uploads that kills have left unfinished, where the store lets us."""
        try:
            count = files.abort_multipart_uploads(self.url)
        except Exception as error:  # a store's own kinds: the right to list may be missing
            log.warning("what killed attempts have left in %s cannot be seen: %s", self.url, error)
        else:
            if count:
                log.info("%d unfinished uploads in %s are ended", count, self.url)

    def _started_steps(self) -> list[int]:
        matches = (re.fullmatch(r"step-(\d{9,})", name) for name in files.list_names(self.url))
        return sorted(int(match[1]) for match in matches if match)

    def _is_published(self, step: int) -> bool:
        return files.exists(files.join(self.location(step), MANIFEST))

    def _quarantine(self, step: int) -> None:
        manifest = files.join(self.location(step), MANIFEST)
        files.write_bytes(f"{manifest}.bad", files.read_bytes(manifest))
        files.remove(manifest)


def _digest(manifest: Mapping[str, Any]) -> str:
    return sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _yield_to_training() -> None:
    """Let this thread have what the others leave (Linux gives each thread a niceness)."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


@dataclass
class HashedFile:
    """A file that is only written to, and knows the digest of what has been."""

    file: IO[bytes]
    num_bytes: int = 0
    sha256: Any = field(default_factory=sha256)

    def write(self, data: Any) -> int:
        """Write bytes, or what has a buffer of them."""
        view = memoryview(data).cast("B")
        self.sha256.update(view)
        with files.store_errors():
            self.file.write(view)
        self.num_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        self.file.flush()


def _write(url: str, part: WriteFn) -> tuple[int, str]:
    """Write a file, and return its size and digest."""
    with files.open_for_write(url) as file:
        hashed = HashedFile(file)
        try:
            part(hashed)  # type: ignore[arg-type]  # as much of a file as torch.save asks for
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch.save then misses bytes of its own
                raise error.__context__ from None
            raise
    return hashed.num_bytes, hashed.sha256.hexdigest()


@contextmanager
def _verified(url: str, num_bytes: int, digest: str) -> Iterator[Path]:
    """Yield the path of a file, or of a copy of it, that is of this size and digest."""
    try:
        size, path = files.size(url), files.local_path(url)
        if size != num_bytes:
            raise CheckpointError(f"{url} is damaged: {size} bytes, not {num_bytes}")
        with path.open("rb") if path else _in_memory(url, num_bytes) as file:
            if file_digest(file, "sha256").hexdigest() != digest:
                raise CheckpointError(f"{url} is damaged: {size} bytes with another digest")
            yield path or Path(f"/proc/self/fd/{file.fileno()}")
    except FileNotFoundError:
        raise CheckpointError(f"{url} is missing") from None


@contextmanager
def _in_memory(url: str, num_bytes: int) -> Iterator[BufferedRandom]:
    """Yield a copy of a remote file, at its beginning."""
    with os.fdopen(os.memfd_create("checkpoint"), "w+b") as file:
        try:
            fetch_file(url, num_bytes, file)
        except ShardError as error:
            raise CheckpointError(str(error)) from None
        yield file
