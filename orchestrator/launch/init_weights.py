"""Fetch initial weights into the run directory, before the run is submitted.

They come from a run, one of its checkpoints, a safetensors file at any URL, or timm's pretrained
ones. With the copy the run depends neither on their source nor on the internet, which compute nodes
often do not have.
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
from data_sharding.scanning.local_copy import download
from orchestrator.checkpoint.retention import best_or_newest
from orchestrator.checkpoint.store import CheckpointError, CheckpointStore
from orchestrator.config.parse import ConfigError, parse
from orchestrator.config.schema import Config
from orchestrator.launch.checks.model_cost import check_makeable
from orchestrator.launch.torch_subprocess import run_torch_worker
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir, RunError

_DEADLINE_S = 1800


def fetch_fitting_weights(run: RunDir, config: Config, plan: Plan) -> dict[str, Any] | None:
    """Fetch the weights of `init_from`, if it is given, and load them into the run's network."""
    if config.init_from is None:
        return None
    facts = fetch_initial_weights(config.init_from, run.init_file)
    try:
        check_makeable(config, plan, (run.init_file, facts["sha256"]))
    except ConfigError as error:
        source_model, model = facts.get("model"), config.model.name
        if source_model in (None, model):
            raise
        raise ConfigError(
            f"init_from={config.init_from} is {source_model}, and this run is {model}: "
            f"{error.problem}",
            value=config.init_from,
            hint=error.hint,
        ) from None
    return facts


def fetch_initial_weights(source: str, target: Path) -> dict[str, Any]:
    """Write the weights of `init_from` to a file, and return their provenance."""
    try:
        with _open_source(source, target) as (path, facts):
            if path != target:
                _link_or_copy(path, target, is_checkpoint="step" in facts)
        with safe_open(target, "np") as file:
            num_tensors = len(file.keys())
        with target.open("rb") as data:
            digest = file_digest(data, "sha256").hexdigest()
    except ConfigError:
        raise
    except SafetensorError as error:
        raise ConfigError(
            f"init_from={source} is no safetensors file ({error}), and no other format is read: a "
            "pickle can run code",
            value=source,
            hint="Convert it: safetensors.torch.save_file(state_dict, FILE)",
        ) from None
    except Exception as error:  # every store raises its own kinds
        raise ConfigError(
            f"init_from={source} cannot be read: {type(error).__name__}: {error}",
            value=source,
            hint="It is a run directory, a checkpoint in it, a safetensors file at a path or URL, "
            "or timm/NAME.",
        ) from error
    return {"source": source, **facts, "num_tensors": num_tensors, "sha256": digest}


@contextmanager
def _open_source(source: str, target: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the path of the weights, which may be the target, and what is known of them."""
    if source.startswith("timm/"):
        request = {"name": source, "file": str(target)}
        run_torch_worker(
            "torch_workers.launch_functions:fetch_pretrained", request, deadline_s=_DEADLINE_S
        )
        yield target, {"model": source}
        return
    local = filesystem.local_path(source)
    if local is None:
        download(source, target)
        yield target, {}
    elif (local / "config.yaml").exists():
        with _open_run(RunDir(local)) as (path, facts):
            yield path, facts
    elif (local / "manifest.json").exists():
        step = int(local.name.rpartition("-")[2])
        with _open_checkpoint(CheckpointStore(str(local.parent)), step) as path:
            yield path, {"step": step}
    else:
        yield local, {}


@contextmanager
def _open_run(run: RunDir) -> Iterator[tuple[Path, dict[str, Any]]]:
    try:
        config = parse(run.read_config())
    except RunError as error:
        raise ConfigError(error.problem, value=error.value, hint=error.hint) from None
    store = CheckpointStore.for_run(run, config)
    manifests = store.manifests()
    if not manifests:
        raise ConfigError(
            f"init_from={run.path}: this run has no checkpoint yet",
            value=run.path,
            hint="Wait for one, or take another run.",
        )
    step = best_or_newest(manifests, config.checkpoint).step
    uid = (run.read_json(run.identity_file) or {}).get("uid")
    with _open_checkpoint(store, step) as path:
        yield path, {"run": run.id, "uid": uid, "step": step, "model": config.model.name}


@contextmanager
def _open_checkpoint(store: CheckpointStore, step: int) -> Iterator[Path]:
    try:
        name = store.manifest(step).weights_file()
        with store.open(step, [name]) as files:
            yield files[name]
    except CheckpointError as error:
        raise ConfigError(
            f"init_from: {error.problem}",
            value=error.value,
            hint=f"{error.hint} Take another step: `tahoe ckpt verify RUN`".lstrip(),
        ) from None


def _link_or_copy(path: Path, target: Path, *, is_checkpoint: bool) -> None:
    """Hard-link a file of a checkpoint, which never changes; copy any other.

    A user's file may be overwritten in place (`cp`), which would change the link too. A checkpoint
    on another file system is copied.
    """
    target.unlink(missing_ok=True)
    if is_checkpoint:
        with suppress(OSError):
            os.link(path, target)
            return
    shutil.copyfile(path, target)
