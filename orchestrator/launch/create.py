"""A composed config -> a run directory with everything a worker needs, or a clear refusal."""

import re
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from subprocess import run as run_process
from typing import Any
from uuid import uuid4

from data_sharding.manifest import Manifest, read_manifest
from orchestrator.config import Config, flatten, identity, is_safe, to_dict
from orchestrator.launch.compose import Composed
from orchestrator.plan import Plan, data_fingerprint, make_plan
from orchestrator.rundir import RunDir, RunError, write_atomic

_PACKAGES = (
    *("tahoe-orchestrator", "torch", "torchvision", "timm", "hydra-core", "mlflow"),
    *("webdataset", "fsspec", "numpy", "pillow", "safetensors"),
)


def open_run(composed: Composed) -> tuple[RunDir, Plan]:
    """Make the run directory of a config, or find the one that an earlier attempt has made.

    Raises:
        RunError: a finished run, or a run of another config, lies there.
        ConfigError, DataError: the config does not fit its data set.
    """
    config = composed.config
    run = RunDir(Path(config.run_dir or Path(config.runs_dir, run_id(config))))
    if run.config_file.exists():
        _check_same(run, config)
        if run.is_finished and config.if_finished == "rerun":
            _set_aside(run)
        elif run.is_finished and config.if_finished == "refuse":
            raise RunError(
                f"{run.path} is finished. Training again would overwrite its results. Add epochs "
                f"with `tahoe resume {run.path} recipe.epochs=N`, take another seed, or say "
                "if_finished=rerun (sets the old directory aside) or if_finished=reuse."
            )
    train, val = (read_manifest(config.data.url, split) for split in ("train", "val"))
    plan = make_plan(config, config.launcher.num_procs, train, val)
    if not run.identity_file.exists():
        _make(run, composed, train, val)
    run.write_config(to_dict(config))
    return run, plan


def run_id(config: Config) -> str:
    """Return a readable name that is the same for the same config: MODEL-DATA-DIGEST."""
    model = re.sub(r"[^\w.\-]", "_", config.model.name.rpartition("/")[2])
    data = re.sub(r"[^\w.\-]", "_", config.data.name)
    return f"{model}-{data}-{identity(config)}"


def _check_same(run: RunDir, config: Config) -> None:
    frozen = flatten(run.read_config())
    changed = [
        f"{key}: {frozen.get(key)} there, {value} now"
        for key, value in flatten(to_dict(config)).items()
        if not is_safe(key) and frozen.get(key) != value
    ]
    if changed:
        raise RunError(
            f"{run.path} holds a run of another config ({'; '.join(changed)}). Continuing it with "
            "this one would give results of neither. Choose another run_dir, or leave run_dir out: "
            "each config then has a directory of its own."
        )


def _set_aside(run: RunDir) -> None:
    number = 1
    while (aside := run.path.with_name(f"{run.path.name}.{number}")).exists():
        number += 1
    with run.lock():
        run.path.rename(aside)
    print(f"the finished run is kept as {aside}")


def _make(run: RunDir, composed: Composed, train: Manifest, val: Manifest) -> None:
    """Write everything but the config, whose presence says that the run directory is whole."""
    run.path.mkdir(parents=True, exist_ok=True)
    git, patch = _code_version(Path(__file__).parent)
    if patch:
        write_atomic(run.patch_file, patch)
    run.write_json(
        run.identity_file,
        {
            "id": run.id,
            "uid": uuid4().hex,  # tells it from a run that was set aside under the same name
            "created_s": time.time(),
            "overrides": list(composed.overrides),
            "git": git,
            "python": sys.version.split()[0],
            "packages": _versions(_PACKAGES),
            "data": {
                "name": composed.config.data.name,
                "num_train": train.num_samples,
                "num_val": val.num_samples,
                "num_classes": len(train.classes),
                "fingerprint": data_fingerprint(train, val),
            },
        },
    )


def _code_version(directory: Path) -> tuple[dict[str, Any] | None, str]:
    """Return (commit and whether there is more than it, that more as a patch); None outside git."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(directory), *arguments]
        done = run_process(command, capture_output=True, text=True, errors="replace", check=False)
        return done.stdout if done.returncode == 0 else None

    try:
        commit = git("rev-parse", "HEAD")
        tracked = git("ls-files", "--error-unmatch", str(Path(__file__)))
    except FileNotFoundError:  # no git on this machine
        return None, ""
    if commit is None or tracked is None:  # an installed wheel may lie inside another project
        return None, ""
    patch = git("diff", "HEAD", "--binary") or ""
    return {"commit": commit.strip(), "dirty": bool(git("status", "--porcelain"))}, patch


def _versions(packages: Sequence[str]) -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions
