"""Credentials that expire are read again: from the files of AWS, from a process, with tokens."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest
from cli_runner import Tahoe
from http_server import serve
from s3_server import S3

from data_sharding.errors import UnavailableError
from data_sharding.format.manifest import read_manifest
from data_sharding.io import filesystem
from data_sharding.io.download import fetch_file
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.run.rundir import RunDir

pytestmark = pytest.mark.slow

DEADLINE_S = 120


class Keys:
    """The keys of this user, in files that AWS's tools read, and the one that the server takes."""

    def __init__(self, s3: S3, directory: Path) -> None:
        self._s3, self._directory = s3, directory

    def renew(self, name: str) -> None:
        """Let the server take a new key and token only, and write them to the file."""
        lines = (
            "[team]",
            f"aws_access_key_id={name}",
            "aws_secret_access_key=secret",
            f"aws_session_token=token-{name}",
        )
        new = self._directory / "new"
        new.write_text("\n".join(lines))
        new.replace(self._directory / "credentials")
        self.expire(name)

    def expire(self, name: str) -> None:
        """Let the server take one key and token only."""
        self._s3.fail(key=name, token=f"token-{name}")

    def give_by_process(self, name: str, valid_s: float | None) -> None:
        """Let a process give the key, as single sign-on does, with an expiry or without."""
        answer = {
            "Version": 1,
            "AccessKeyId": name,
            "SecretAccessKey": "secret",
            "SessionToken": f"token-{name}",
        }
        if valid_s is not None:
            end = datetime.now(UTC) + timedelta(seconds=valid_s)
            answer["Expiration"] = end.isoformat(timespec="seconds")
        (self._directory / "answer.json").write_text(json.dumps(answer))
        script = f"cat {self._directory / 'answer.json'}"
        (self._directory / "config").write_text(f"[profile team]\ncredential_process = {script}\n")
        self.expire(name)


@pytest.fixture
def keys(s3_server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keys]:
    s3_server.fail()
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    for name in ("FSSPEC_S3_KEY", "FSSPEC_S3_SECRET"):
        monkeypatch.delenv(name)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": s3_server.endpoint})
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield Keys(s3_server, tmp_path)
    s3_server.fail()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def url(s3_server: S3, digits: Path) -> str:
    s3_server.fail()
    s3_server.put(s3_server.url("keys"), digits)
    return s3_server.url("keys")


def fetch(url: str) -> None:
    with open(os.devnull, "r+b") as file:  # noqa: PTH123
        fetch_file(f"{url}/train/manifest.json", 100, file)


OPERATIONS: dict[str, Callable[[str], object]] = {
    "manifest": lambda url: read_manifest(url, "train"),
    "exists": lambda url: filesystem.exists(f"{url}/train/manifest.json"),
    "size": lambda url: filesystem.size(f"{url}/train/manifest.json"),
    "list": lambda url: filesystem.list_names(f"{url}/train"),
    "write": lambda url: filesystem.write_bytes(f"{url}/new/a", b"a"),
    "remove": lambda url: filesystem.remove(f"{url}/new/a"),
    "remove_directory": lambda url: filesystem.remove_directory(f"{url}/new"),
    "checkpoints": lambda url: CheckpointStore(f"{url}/run").steps(),
    "fetch": fetch,
}


def test_every_operation_reads_expired_keys_again(url: str, keys: Keys) -> None:
    keys.renew("first")
    for operation in OPERATIONS.values():
        operation(url)
    for name, operation in OPERATIONS.items():
        keys.renew(name.replace("_", "-"))
        operation(url)


def test_without_new_keys_it_is_a_refusal(url: str, keys: Keys) -> None:
    keys.renew("first")
    read_manifest(url, "train")
    keys.expire("second")
    with pytest.raises(UnavailableError):
        read_manifest(url, "train")
    with pytest.raises(UnavailableError):
        fetch(url)


@pytest.mark.parametrize("valid_s", [None, 300])
def test_a_credential_process_is_asked_again(url: str, keys: Keys, valid_s: float | None) -> None:
    keys.give_by_process("first", valid_s)
    read_manifest(url, "train")
    fetch(url)
    keys.give_by_process("second", 3600)
    read_manifest(url, "train")
    fetch(url)


def test_a_process_that_gives_expired_keys_is_a_refusal(url: str, keys: Keys) -> None:
    keys.give_by_process("first", -10)
    for read in read_manifest, fetch:
        with pytest.raises(UnavailableError):
            read(url, *["train"] * (read is read_manifest))
    keys.give_by_process("second", 3600)
    read_manifest(url, "train")
    fetch(url)


def test_missing_keys_are_a_refusal_at_once(
    url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    start_s = time.monotonic()
    with pytest.raises(UnavailableError):
        fetch(url)
    assert time.monotonic() - start_s < 30


def test_a_refused_public_link_is_no_broken_set(digits: Path) -> None:
    with serve(digits) as web:
        web.answer = lambda path: 403
        for read in (lambda: read_manifest(web.url, "train"), lambda: fetch(web.url)):
            with pytest.raises(UnavailableError) as caught:
                read()
        assert "credentials" not in caught.value.hint


@pytest.mark.parametrize("cache", ["none", pytest.param("small", marks=pytest.mark.long)])
def test_a_run_goes_on_when_its_keys_expire(
    url: str, keys: Keys, s3_server: S3, tahoe: Tahoe, cache: str
) -> None:
    """Keys are renewed every few steps, so that batches, evaluations and saves meet old ones."""
    keys.renew("0")
    place = [f"data.cache.dir={tahoe.cwd / 'cache'}", "data.cache.max_gb=0.0003"]
    run = RunDir(tahoe.cwd / "run")
    ended = threading.Event()
    renewals: list[int] = []

    def renew() -> None:
        seen, deadline_s = 0, time.monotonic() + DEADLINE_S
        while not ended.wait(0.02) and time.monotonic() < deadline_s:
            num = run.metrics_file.read_text().count("\n") if run.metrics_file.exists() else 0
            if num > seen:
                seen = num + 5
                renewals.append(num)
                keys.renew(str(len(renewals)))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        tahoe(
            "train",
            "run_dir=run",
            f"data.url={url}",
            f"checkpoint.url={s3_server.url('saved', cache)}",
            "tracking=none",
            "recipe.epochs=1",
            "logging.every_steps=1",
            "checkpoint.every_steps=5",
            "launcher.nproc_per_node=1",
            *(["data.cache=none"] if cache == "none" else place),
        )
    finally:
        ended.set()
        thread.join()
    assert run.is_finished
    assert len(renewals) >= 2
    assert CheckpointStore(s3_server.url("saved", cache)).steps()
