"""A checkpoint exists when its manifest does, and is believed when its digests match."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import fsspec
import pytest
from s3_server import S3

from data_sharding.io import filesystem
from orchestrator.checkpoint.store import FORMAT, CheckpointError, CheckpointStore, WriteFn

PARTS = {"model.safetensors": b"weights" * 1000, "state.json": b'{"step": 1}'}


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CheckpointStore]:
    if request.param == "disk":
        yield CheckpointStore(str(tmp_path / "check points"))
    else:
        yield CheckpointStore("memory://checkpoints")
        fsspec.filesystem("memory").rm("/", recursive=True)


def part(data: bytes, on_write: Callable[[], None] = lambda: None) -> WriteFn:
    """Return what writes a file in three pieces, each of which is announced."""

    def write(file: IO[bytes]) -> None:
        third = -(-len(data) // 3)
        for start in range(0, len(data), third):
            on_write()
            file.write(data[start : start + third])

    return write


def save(
    store: CheckpointStore,
    step: int,
    parts: Mapping[str, bytes] = PARTS,
    metrics: Mapping[str, float] = {},
) -> None:
    store.save(step, {name: part(data) for name, data in parts.items()}, metrics)


def newest(store: CheckpointStore) -> int | None:
    with store.open_latest() as found:
        return found and found[0]


def load(store: CheckpointStore, step: int) -> dict[str, bytes]:
    with store.open(step) as parts:
        return {name: path.read_bytes() for name, path in parts.items()}


def damage(store: CheckpointStore, step: int, name: str, data: bytes) -> None:
    filesystem.write_bytes(filesystem.join(store.location(step), name), data)


def test_save_and_load_round_trip(store: CheckpointStore) -> None:
    assert newest(store) is None
    save(store, 10)
    save(store, 20, PARTS | {"optimizer.pt": b"slots"}, {"val/top1": 50.0})
    assert store.steps() == [10, 20]
    assert newest(store) == 20
    assert load(store, 20) == PARTS | {"optimizer.pt": b"slots"}


@pytest.mark.parametrize("flipped", [0, 3500, 6999])
def test_a_flipped_bit_falls_back_to_the_previous_checkpoint(
    store: CheckpointStore, flipped: int
) -> None:
    save(store, 10)
    save(store, 20)
    data = bytearray(PARTS["model.safetensors"])
    data[flipped] ^= 1
    damage(store, 20, "model.safetensors", bytes(data))
    with pytest.raises(CheckpointError) as error:
        load(store, 20)
    assert error.value.value == filesystem.join(store.location(20), "model.safetensors")
    assert newest(store) == 10
    assert store.steps() == [10]  # set aside, not deleted
    assert filesystem.exists(filesystem.join(store.location(20), "manifest.json.bad"))


def signed(**changes: Any) -> bytes:
    """Return a manifest with a valid digest, like that of step 20 but for the changes."""
    files = {name: {"num_bytes": 1, "sha256": ""} for name in changes.pop("names", ())}
    manifest = {"format": FORMAT, "step": 20, "metrics": {}, "files": files} | changes
    digest = sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps(manifest | {"sha256": digest}).encode()


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        signed().replace(b"20", b"21"),
        signed(format="other"),
        signed(names=["../../model.safetensors"]),
        signed(step=21),
    ],
)
def test_invalid_manifests_are_passed_over(store: CheckpointStore, manifest: bytes) -> None:
    save(store, 10)
    save(store, 20)
    damage(store, 20, "manifest.json", manifest)
    assert newest(store) == 10


def test_a_missing_file_is_an_error(store: CheckpointStore) -> None:
    save(store, 10)
    filesystem.remove(filesystem.join(store.location(10), "state.json"))
    with pytest.raises(CheckpointError) as error:
        load(store, 10)
    assert error.value.value == filesystem.join(store.location(10), "state.json")
    assert newest(store) is None


def test_a_kill_at_any_write_leaves_the_checkpoint_before(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write of a save is made the last one, in turn."""

    class KilledError(Exception):
        pass

    save(store, 10)
    publish = filesystem.write_bytes
    for survived in range(3 * len(PARTS) + 1):
        count = itertools.count()

        def live(count: Iterator[int] = count, limit: int = survived) -> None:
            if next(count) >= limit:
                raise KilledError

        def dying(url: str, data: bytes, live: Callable[[], None] = live) -> None:
            live()
            publish(url, data)

        parts = {name: part(data, live) for name, data in PARTS.items()}
        with monkeypatch.context() as patch:
            patch.setattr(filesystem, "write_bytes", dying)
            with pytest.raises(KilledError):
                store.save(20, parts, {})
        assert newest(store) == 10
    save(store, 20)
    assert newest(store) == 20


def test_prune_spares_kept_steps_and_the_newest(store: CheckpointStore) -> None:
    for step in (10, 20, 30, 40):
        save(store, step)
    assert store.prune({20}) == [10, 30]
    assert store.steps() == [20, 40]
    assert store.prune(set()) == [20]
    assert store.prune(set()) == []


def test_prune_removes_leftovers_of_killed_saves(store: CheckpointStore) -> None:
    save(store, 10)
    damage(store, 15, "model.safetensors", b"half")
    save(store, 20)
    save(store, 30)
    store.prune({20, 30})
    assert filesystem.list_names(store.url) == ["step-000000020", "step-000000030"]


def killed_saves(url: str) -> list[dict[str, Any]]:
    """Kill a save at each of its calls that write; return what was there after each."""
    script = Path(__file__).parents[2] / "support" / "killed_saves.py"
    done = subprocess.run(
        [sys.executable, script, url],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_kill_at_any_call_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    *killed, whole = killed_saves(str(tmp_path))
    calls = Counter(one["call"] for one in killed)
    # Seven pieces; a sync for each file, the manifest's too, and one rename, which publishes.
    assert calls == {"write": 7, "fsync": 4, "replace": 1}
    assert {one["newest"] for one in killed} == {10}
    assert whole["newest"] == 20


@pytest.mark.slow
def test_a_kill_at_any_request_leaves_the_checkpoint_before(s3_server: S3) -> None:
    s3_server.fail()  # no longer
    *killed, whole = killed_saves(s3_server.url("killed"))
    calls = Counter(one["call"] for one in killed)
    assert calls["create_multipart_upload"] == calls["complete_multipart_upload"] == 2
    assert calls["upload_part"] >= 3
    assert calls["put_object"] == 2
    assert {one["newest"] for one in killed} == {10}
    assert max(one["uploads"] for one in killed) == 1  # what it left is ended
    assert whole == {"call": "", "newest": 20, "uploads": 0}
