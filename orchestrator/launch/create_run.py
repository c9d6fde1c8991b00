"""A composed config -> a run directory with everything a worker needs, or a clear refusal."""

import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from data_sharding.format.manifest import Manifest, read_manifest
from orchestrator.checkpoint.owner import claim, owner, refusal
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.parse import ConfigError, config_hash, immutable_changes, parse, to_dict
from orchestrator.config.schema import Config
from orchestrator.launch.checks.data_check import check_data_matches_config
from orchestrator.launch.checks.model_cost import check_makeable
from orchestrator.launch.checks.unused_keys import warn_unused_keys
from orchestrator.launch.compose import ComposedConfig
from orchestrator.launch.init_weights import bring_fitting
from orchestrator.launch.software import current_software, record_software
from orchestrator.run.plan import Plan, data_fingerprint, make_plan
from orchestrator.run.rundir import RunDir, RunError, RunningError, write_atomic


def create_or_open_run(composed: ComposedConfig) -> tuple[RunDir, Plan]:
    """Make the run directory of a config, or find the one that an earlier attempt has made.

    Raises:
        RunError: a finished run, a running one, or a run of another config lies there.
        ConfigError, DataError: the config does not fit its data set.
    """
    config = composed.config
    run = run_of(config)
    if run.config_file.exists():
        _check_same(run, config)
    is_finished = run.config_file.exists() and run.is_finished
    if is_finished and config.if_finished == "error":
        raise RunError(
            f"{run.path} is finished. Training again would overwrite its results. Add epochs "
            f"with `tahoe resume {run.shell_path} recipe.epochs=N`, take another seed, or say "
            "if_finished=rerun (sets the old directory aside) or if_finished=skip."
        )
    train, val = (read_manifest(config.data.url, split) for split in ("train", "val"))
    plan = make_plan(config, config.world_size, train, val)
    if is_finished and config.if_finished == "skip":
        return run, plan
    is_new = is_finished or not run.config_file.exists()
    if is_new:
        if run.path != run_path(config):
            print(f"{run_path(config)} began with other data; {run.path} is a run of its own")
        _check_unused(config)
        warn_unused_keys(config, composed.overrides)
        check_data_matches_config(config, composed.overrides)
        if config.init_from is None:
            check_makeable(config, plan)
    if is_finished:
        _archive_finished_run(run)
    with _made_directory(run):
        if run.config_file.exists():
            _check_same(run, config)  # another may have been made meanwhile
            claim(run, config)
            record_software(run)
        else:
            _write_run_metadata(run, composed, plan, train, val)
            claim(run, config)
        run.write_config(to_dict(config))
    return run, plan


def create_or_open_runs(
    points: Sequence[ComposedConfig],
) -> list[tuple[RunDir, Plan | RunningError]]:
    """Open the run of each point, so that what is wrong with one is told before any is started.

    A point that runs elsewhere keeps no other from running: it has that in place of its plan.

    Raises:
        ConfigError: two points are one run, or what `create_or_open_run` raises; as do the others.
        RunError, DataError: what `create_or_open_run` raises.
    """
    for places in (
        [(run_path(one.config), one.config.run_dir or one.config.data.url) for one in points],
        [(one.config.checkpoint.url,) for one in points],
    ):
        _refuse_equal(points, places)
    opened = [_open_or_running(point) for point in points]
    _refuse_equal(points, [(run.path,) for run, _ in opened])  # two copies of the same data
    return opened


def _refuse_equal(
    points: Sequence[ComposedConfig], places: Sequence[tuple[Path | str | None, ...]]
) -> None:
    at: dict[object, ComposedConfig] = {}
    for point, place in zip(points, places, strict=True):
        other = at.setdefault(place, point)
        if place[0] and other is not point:
            raise ConfigError(
                f"two points of the sweep would be one run: [{' '.join(other.overrides)}] and "
                f"[{' '.join(point.overrides)}] both lie at {place[0]}, so that the second would "
                "continue the first. Take one of them out, or let the place depend on the "
                "point, e.g. run_dir='runs/${hydra:job.num}'; for checkpoint.url likewise."
            )


def _open_or_running(point: ComposedConfig) -> tuple[RunDir, Plan | RunningError]:
    try:
        return create_or_open_run(point)
    except RunningError as error:
        return run_of(point.config), error


def make_plan_for(config: Config) -> Plan:
    """Return what a config comes to on its data set.

    Raises:
        ConfigError, DataError: the config does not fit its data set.
    """
    train, val = (read_manifest(config.data.url, split) for split in ("train", "val"))
    return make_plan(config, config.world_size, train, val)


def run_of(config: Config) -> RunDir:
    """Return the run of a config; where one on other data has its directory, one beside that.

    Raises:
        DataError: a run is there, and what data it should have cannot be read.
    """
    run = RunDir(run_path(config))
    if config.run_dir or not run.config_file.exists():
        return run
    train, val = (read_manifest(config.data.url, split) for split in ("train", "val"))
    found, recorded = data_fingerprint(train, val), run.read_json(run.identity_file) or {}
    if found == recorded.get("data", {}).get("fingerprint", found):
        return run
    digest = sha256(found.encode()).hexdigest()[:8]
    return RunDir(run.path.with_name(f"{run.id}-{digest}"))


def run_path(config: Config) -> Path:
    """Return the directory of a config's run: the one it names, or its own under `runs_dir`."""
    return Path(config.run_dir or Path(config.runs_dir, run_id(config)))


def run_id(config: Config) -> str:
    """Return a readable name that is the same for the same config: MODEL-DATA-DIGEST."""
    model = re.sub(r"[^\w.\-]", "_", config.model.name.rpartition("/")[2])
    data = re.sub(r"[^\w.\-]", "_", config.data.name)
    return f"{model}-{data}-{config_hash(config)}"


def _check_same(run: RunDir, config: Config) -> None:
    changed = immutable_changes(to_dict(parse(run.read_config())), to_dict(config))
    if changed:
        listed = "; ".join(f"{key}: {values}" for key, values in changed.items())
        raise RunError(
            f"{run.path} holds a run of another config ({listed}). Continuing it with "
            "this one would give results of neither. Choose another run_dir, or leave run_dir out: "
            "each config then has a directory of its own."
        )


def _check_unused(config: Config) -> None:
    """Refuse to begin a run where the checkpoints of another lie: it would continue that one."""
    url = config.checkpoint.url
    if not url:
        return
    try:
        found = owner(url)
        steps = CheckpointStore(url).steps()  # from before stores had owners
    except Exception as error:  # every store raises its own kinds
        raise RunError(
            f"cannot read checkpoint.url={url}: {type(error).__name__}: {error}. Nothing was "
            "started, since checkpoints could not be saved: check the URL, the credentials and the "
            "network."
        ) from error
    if found:
        raise refusal(url, found["run"])
    if steps:
        raise RunError(
            f"checkpoint.url={url} holds the checkpoints of another run, up to step {steps[-1]}. A "
            "new run would continue from them. Give it a checkpoint.url of its own, or leave it "
            "out: checkpoints then lie in the run directory."
        )


def _archive_finished_run(run: RunDir) -> None:
    number = 1
    while (aside := run.path.with_name(f"{run.path.name}.{number}")).exists():
        number += 1
    with run.lock():
        if not run.is_finished:  # another has done so meanwhile
            return
        run.path.rename(aside)
    print(f"the finished run is kept as {aside}")


@contextmanager
def _made_directory(run: RunDir) -> Iterator[None]:
    """Make a run directory and hold it; where it is not filled after all, leave nothing."""
    path = run.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
            is_ours = True
        except FileExistsError:
            is_ours = False
            if not path.is_dir():
                raise
    except OSError as error:
        raise RunError(
            f"cannot make the run directory {path}: {error.strerror}. Nothing was started. Choose "
            "another place with runs_dir=DIR or run_dir=DIR."
        ) from None
    with ExitStack() as held:
        try:
            held.enter_context(run.lock())
            yield
        except RunningError:  # it is not touched
            raise
        except BaseException:
            if is_ours and not run.config_file.exists():  # nor is one made meanwhile
                shutil.rmtree(path, ignore_errors=True)
            raise


def _write_run_metadata(
    run: RunDir, composed: ComposedConfig, plan: Plan, train: Manifest, val: Manifest
) -> None:
    """Write everything but the config, whose presence says that the run directory is whole."""
    init_from = bring_fitting(run, composed.config, plan)
    software, patch = current_software(composed.config.model.name)
    if patch:
        write_atomic(run.patch_file, patch)
    write_atomic(run.classes_file, json.dumps(train.classes))
    run.write_json(
        run.identity_file,
        {
            "id": run.id,
            "uid": uuid4().hex,  # tells it from a run that was set aside under the same name
            "created_s": time.time(),
            "overrides": list(composed.overrides),
            **software,
            "init_from": init_from,
            "data": {
                "name": composed.config.data.name,
                "num_train": train.num_samples,
                "num_val": val.num_samples,
                "num_classes": len(train.classes),
                "fingerprint": data_fingerprint(train, val),
            },
        },
    )
