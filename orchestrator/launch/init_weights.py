"""Weights to begin with, brought into the run directory before the run is submitted.

They may come from a run, one of its checkpoints, a safetensors file at any URL, or timm's shelf of
pretrained ones. The copy makes the run independent of what becomes of them, and of the network,
which compute nodes often do not have.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import file_digest
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from data_sharding.io import filesystem
from data_sharding.tools.local_copy import download
from orchestrator.checkpoint.retention import best_or_newest
from orchestrator.checkpoint.store import CheckpointError, CheckpointStore
from orchestrator.config.parse import ConfigError, parse
from orchestrator.config.schema import Config
from orchestrator.launch.checks.model_cost import check_makeable
from orchestrator.launch.torch_subprocess import run_torch_worker
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir, RunError

_DEADLINE_S = 1800


def bring_fitting(run: RunDir, config: Config, plan: Plan) -> dict[str, Any] | None:
    """Bring what `init_from` names, if it names any, and try it on the network of the run.

    Raises:
        ConfigError: there are no such weights, or they are of another network.
    """
    if config.init_from is None:
        return None
    facts = fetch_initial_weights(config.init_from, run.init_file)
    try:
        check_makeable(config, plan, (run.init_file, facts["sha256"]))
    except ConfigError as error:
        theirs, ours = facts.get("model"), config.model.name
        if theirs in (None, ours):
            raise
        raise ConfigError(
            f"init_from={config.init_from} is {theirs}, and this run is {ours}: {error}"
        ) from None
    return facts


def fetch_initial_weights(source: str, target: Path) -> dict[str, Any]:
    """Put the weights of `init_from` into a file, and return where they come from.

    Raises:
        ConfigError: there are none, or they cannot be had or read.
    """
    try:
        with _opened(source, target) as (path, facts):
            if path != target:
                _place(path, target, is_checkpoint="step" in facts)
        with safe_open(target, "np") as file:
            num_tensors = len(file.keys())
        with target.open("rb") as data:
            digest = file_digest(data, "sha256").hexdigest()
    except ConfigError:
        raise
    except SafetensorError as error:
        raise ConfigError(
            f"init_from={source} is no safetensors file ({error}), and no other kind is read: a "
            "pickle can run code. Convert it: safetensors.torch.save_file(state_dict, FILE)"
        ) from None
    except Exception as error:  # every store raises its own kinds
        raise ConfigError(
            f"init_from={source} cannot be read: {type(error).__name__}: {error}. It is a run "
            "directory, a checkpoint in it, a safetensors file at a path or URL, or timm/NAME."
        ) from error
    return {"source": source, **facts, "num_tensors": num_tensors, "sha256": digest}


@contextmanager
def _opened(source: str, target: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the path of a file of weights, which may be the target, and what is known of it."""
    if source.startswith("timm/"):
        run_torch_worker(
            "torch_workers.pretrained",
            {"name": source, "file": str(target)},
            deadline_s=_DEADLINE_S,
        )
        yield target, {"model": source}
        return
    local = filesystem.local_path(source)
    if local and (local / "config.yaml").exists():
        with _of_run(RunDir(local)) as found:
            yield found
    elif local and (local / "manifest.json").exists():
        store, step = CheckpointStore(str(local.parent)), int(local.name.rpartition("-")[2])
        with _of_checkpoint(store, step) as path:
            yield path, {"step": step}
    elif local:
        yield local, {}
    else:
        download(source, target)
        yield target, {}


@contextmanager
def _of_run(run: RunDir) -> Iterator[tuple[Path, dict[str, Any]]]:
    try:
        config = parse(run.read_config())
    except RunError as error:
        raise ConfigError(str(error)) from None
    store = CheckpointStore.for_run(run, config)
    manifests = store.manifests()
    if not manifests:
        raise ConfigError(
            f"init_from={run.path}: this run has no checkpoint yet, so there is nothing to begin "
            "with. Wait for one, or take another run."
        )
    step = best_or_newest(manifests, config.checkpoint).step
    uid = (run.read_json(run.identity_file) or {}).get("uid")
    with _of_checkpoint(store, step) as path:
        yield path, {"run": run.id, "uid": uid, "step": step, "model": config.model.name}


@contextmanager
def _of_checkpoint(store: CheckpointStore, step: int) -> Iterator[Path]:
    try:
        name = store.manifest(step).weights_file()
        with store.open(step, [name]) as parts:
            yield parts[name]
    except CheckpointError as error:
        raise ConfigError(
            f"init_from: {error}. Take another step: `tahoe ckpt verify RUN`"
        ) from None


def _place(path: Path, target: Path, *, is_checkpoint: bool) -> None:
    """Give a file of a checkpoint a second name, since those never change; copy any other.

    A file of the user's own may be written over where it lies (`cp`), and would change under its
    second name too. A checkpoint on another file system is copied as well.
    """
    target.unlink(missing_ok=True)
    if is_checkpoint:
        with suppress(OSError):
            os.link(path, target)
            return
    shutil.copyfile(path, target)
