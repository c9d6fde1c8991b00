"""Nothing read is trusted, and nothing secret is written; what a stranger could hand to a run.

What concerns a single reader is tested beside it: members of tars and sparse files in
data_sharding/test_shard_reader.py, names in manifests in test_manifest.py, bombs in
test_inspect.py, pickles in training/test_train_state.py, hostile values of a job script in
slurm/test_sbatch.py.
"""

import json
import os
import stat
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from cli_runner import Tahoe
from safetensors import SafetensorError

from orchestrator.checkpoint.safetensors_io import read_tensors
from orchestrator.config.parse import ConfigError, parse
from orchestrator.launch.init_weights import fetch_initial_weights
from orchestrator.run.rundir import RunDir, RunError

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIA0canary0key",
    "AWS_SECRET_ACCESS_KEY": "canary/secret+key",
    "MLFLOW_TRACKING_PASSWORD": "canary-password",
    "MLFLOW_TRACKING_TOKEN": "canary-token",
}


def header(values: dict[str, Any], data: bytes = bytes(8)) -> bytes:
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: str = "F32", shape: tuple[int, ...] = (2,), end: int = 8) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": [0, end]}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**63) + b"{}",  # a header larger than anything
        struct.pack("<Q", 100) + b"{}",  # larger than the file
        header({"a": 1}),
        header(tensor(end=2**40)),  # data beyond the end
        header(tensor(shape=(2**31, 2**31))),  # more than there is
        header(tensor(shape=(2**62, 8))),  # a product that overflows
        header(tensor(dtype="OBJECT")),
        header(tensor(), bytes(9)),  # more data than tensors
        header({**tensor(), "b": tensor()["a"]}),  # two at one place
        b"\x80\x04cos\nsystem\n",  # a pickle
    ],
)
def test_a_safetensors_file_that_lies_is_an_error(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "lying.safetensors"
    file.write_bytes(data)
    with pytest.raises(SafetensorError):
        read_tensors(file)
    with pytest.raises(ConfigError, match="is no safetensors file"):
        fetch_initial_weights(str(file), tmp_path / "init.safetensors")


def test_aliases_of_tensors_that_are_not_there_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    metadata = {"b": "a", "c": "../../etc/passwd", "format": "pt"}
    safetensors.torch.save_file({"a": torch.ones(2)}, str(file), metadata)
    assert read_tensors(file).keys() == {"a", "b"}


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch canary']",
        "seed: !!python/object/apply:os.system ['touch canary']",
        "- a list",
        "a: &x [*x]",
    ],
)
def test_a_config_that_would_run_code_is_refused(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.config_file.write_text(text)
    with pytest.raises((RunError, ConfigError, ValueError)):
        parse(run.read_config())
    assert not Path("canary").exists()


@pytest.mark.parametrize(
    ("section", "key", "url"),
    [
        ("data", "url", "ftp://me:canary@host/set"),
        ("data", "class_map", "https://me:canary@host/few.txt"),
        ("checkpoint", "url", "s3://key:canary@bucket/run"),
        ("tracking", "uri", "https://me:canary@mlflow.example.org"),
        ("data", "url", "https://host/set?X-Amz-Signature=canary"),
        (None, "init_from", "https://host/w.safetensors?token=canary"),
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(
    values: dict[str, Any], section: str | None, key: str, url: str
) -> None:
    (values[section] if section else values)[key] = url
    with pytest.raises(ConfigError) as refused:
        parse(values)
    assert refused.value.value == [f"{section}.{key}" if section else key]
    assert "canary" not in str(refused.value)
    values["data"]["url"], values["tracking"]["uri"] = "sftp://me@host/set", "https://host:5000"
    values["checkpoint"]["url"] = values["init_from"] = values["data"]["class_map"] = None
    parse(values)  # a name, a port and a path are none


@pytest.mark.slow
def test_a_run_leaves_no_secret_and_nothing_for_others(tahoe: Tahoe, digits: Path) -> None:
    """Every file that a run with secrets in its environment leaves, read; under a strict umask."""
    # No single quote: MLflow 3.17 puts its working directory into a statement of SQL as it is.
    place = tahoe.cwd / 'a $(touch canary) `touch canary`; "b"'
    place.mkdir()
    options = ["run_dir=run", "recipe.steps=3", "checkpoint.every_steps=1"]
    output = ""
    for arguments in (["train", f"data.url='{digits}'", *options], ["sync", "run"]):
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli.main", *arguments],
            cwd=place,
            env={**os.environ, **SECRETS},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            umask=0o077,
        )
        assert done.returncode == 0, done.stderr
        output += done.stdout + done.stderr
    files = [path for path in place.rglob("*") if path.is_file()]
    names = {"config.yaml", "run_info.json", "metrics.jsonl", "mlflow.db", "confusion.png"}
    assert names <= {file.name for file in files}
    for file in files:
        for secret in SECRETS.values():
            assert secret.encode() not in file.read_bytes(), file
    for path in (place / "run").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert not list(tahoe.cwd.rglob("canary"))
    for secret in SECRETS.values():
        assert secret not in output


def test_a_tar_of_a_stranger_writes_nowhere(tahoe: Tahoe) -> None:
    """Links, devices and names that climb are in it; it is read, and that is all."""
    train = tahoe.cwd / "set" / "train"
    train.mkdir(parents=True)
    with tarfile.open(train / "shard-000000.tar", "w") as tar:
        for name, kind in (
            ("../../canary.jpg", tarfile.REGTYPE),
            ("/tmp/canary.cls", tarfile.REGTYPE),
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("device.jpg", tarfile.CHRTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    before = sorted(tahoe.cwd.rglob("*"))
    for verb in ("index", "verify", "stat"):
        done = tahoe("shard", verb, "set", check=False)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert "root:" not in done.stdout + done.stderr
    assert not Path("/tmp/canary.cls").exists()
    assert sorted(tahoe.cwd.rglob("*")) == before
