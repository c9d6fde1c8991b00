"""Create the run directory of a config, with everything that a worker needs, or open it again."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from data_sharding.format.location import Location
from data_sharding.format.manifest import Manifest
from data_sharding.io.atomic_file import write_atomic
from data_sharding.tools.expand_patterns import refuse_other_listing
from orchestrator.checkpoint.owner import claim, owner, refusal
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.parse import ConfigError, config_hash, immutable_changes, parse, to_dict
from orchestrator.config.schema import Config
from orchestrator.launch.checks.data_check import check_data_matches_config
from orchestrator.launch.checks.model_cost import check_makeable
from orchestrator.launch.checks.unused_keys import warn_unused_keys
from orchestrator.launch.compose import ComposedConfig
from orchestrator.launch.init_weights import fetch_fitting_weights
from orchestrator.launch.software import current_software, record_software
from orchestrator.run.mix_plan import MixPlan
from orchestrator.run.plan import Plan, data_fingerprint, folds_fingerprint, make_largest_plan
from orchestrator.run.rundir import RunDir, RunError, RunningError
from orchestrator.run.sizes import keep_sizes
from orchestrator.run.train_data import Mixture, TrainData, read_data


def create_or_open_run(composed: ComposedConfig) -> tuple[RunDir, Plan]:
    """Create the run directory of a config, or open that of an earlier attempt.

    Raises:
        RunError: the directory holds a finished run, a running one, or one of another config.
        ConfigError, DataError: the config does not fit its data set.
    """
    config = composed.config
    run = run_of(config)
    exists = _is_there(run)
    is_finished = exists and run.is_finished
    is_new = not exists or (is_finished and config.if_finished == "rerun")
    if exists:
        continued = _continue_config(run, config)
        config = config if is_new else continued
    if is_finished and config.if_finished == "error":
        raise RunError(
            f"{run.path} is finished, and training again would overwrite its results",
            value=run.path,
            hint=f"Add epochs with `tahoe resume {run.shell_path} recipe.epochs=N`, take another "
            "seed, or give if_finished=rerun (archives the old directory) or if_finished=skip.",
        )
    train, val = read_data(config)
    plan = make_largest_plan(config, train, val)
    if is_finished and config.if_finished == "skip":
        return run, plan
    warn_unused_keys(config, composed.overrides)
    if is_new:
        if run.path != run_path(config):
            print(f"{run_path(config)} began with other data; {run.path} is a run of its own")
        _check_checkpoints_unused(config)
        check_data_matches_config(config, composed.overrides)
        _check_listings(config, train, val)
        if config.init_from is None:
            check_makeable(config, plan)
    if is_finished:
        _archive_finished_run(run)
    with _locked_directory(run):
        if run.config_file.exists():
            config = _continue_config(run, composed.config)  # it may have been created meanwhile
            plan = make_largest_plan(config, train, val)
            claim(run, config)
            record_software(run)
        else:
            _write_run_metadata(run, composed, plan, train, val)
            claim(run, config)
        run.write_config(to_dict(plan.with_sizes(config)))
    return run, plan


def create_or_open_runs(
    points: Sequence[ComposedConfig],
) -> list[tuple[RunDir, Plan | RunningError]]:
    """Open the runs of all points, so that an invalid one is found before any is started.

    A point that is already running stops no other: it has its error in place of its plan.
    """
    _check_distinct(
        points, [(run_path(p.config), p.config.run_dir or _data_of(p.config)) for p in points]
    )
    _check_distinct(points, [(point.config.checkpoint.url,) for point in points])
    opened: list[tuple[RunDir, Plan | RunningError]] = []
    for point in points:
        try:
            opened.append(create_or_open_run(point))
        except RunningError as error:
            opened.append((run_of(point.config), error))
    _check_distinct(points, [(run.path,) for run, _ in opened])  # two copies of the same data
    return opened


def _check_distinct(
    points: Sequence[ComposedConfig], locations: Sequence[tuple[object, ...]]
) -> None:
    first: dict[object, ComposedConfig] = {}
    for point, location in zip(points, locations, strict=True):
        other = first.setdefault(location, point)
        if location[0] and other is not point:
            raise ConfigError(
                f"two points of the sweep would be one run: [{' '.join(other.overrides)}] and "
                f"[{' '.join(point.overrides)}] are both at {location[0]}, so the second would "
                "continue the first",
                value=location[0],
                hint="Remove one of them, or let the path depend on the point, e.g. "
                "run_dir='runs/${hydra:job.num}'; for checkpoint.url likewise.",
            )


def make_plan_for(config: Config) -> Plan:
    """Make the plan of a config on its data set; `auto` is what it was when its run was created."""
    run = run_of(config)
    if _is_there(run):
        config = keep_sizes(config, parse(run.read_config()))
    return make_largest_plan(config, *read_data(config))


def run_of(config: Config) -> RunDir:
    """Return the run of a config; one on other data than the run at its path has another path."""
    run = RunDir(run_path(config))
    if config.run_dir or not _is_there(run):
        return run
    fingerprint = data_fingerprint(*read_data(config))
    recorded = (run.read_json(run.identity_file) or {}).get("data", {})
    if fingerprint == recorded.get("fingerprint", fingerprint):
        return run
    digest = sha256(fingerprint.encode()).hexdigest()[:8]
    return RunDir(run.path.with_name(f"{run.id}-{digest}"))


def _is_there(run: RunDir) -> bool:
    """Check for a run; where nothing may be entered there is none, as creating it will say."""
    return os.path.exists(run.config_file)  # noqa: PTH110  Path.exists raises PermissionError


def _data_of(config: Config) -> tuple[Location, ...]:
    return (config.data.location, *config.data.train_locations)


def run_path(config: Config) -> Path:
    """Return `run_dir`, or a directory under `runs_dir` that is named by the config."""
    return Path(config.run_dir or Path(config.runs_dir, run_id(config)))


def run_id(config: Config) -> str:
    """Return a readable name that is the same for the same config: MODEL-DATA-DIGEST.

    `auto` sizes count as `auto`: the same command on other ranks names the same run.
    """
    model = re.sub(r"[^\w.\-]", "_", config.model.name.rpartition("/")[2])
    data = re.sub(r"[^\w.\-]", "_", config.data.name)
    return f"{model}-{data}-{config_hash(config)}"


def _continue_config(run: RunDir, config: Config) -> Config:
    """Return the config that continues a run with its sizes; refuse one of another run."""
    frozen = parse(run.read_config())
    config = keep_sizes(config, frozen)
    changed = immutable_changes(to_dict(frozen), to_dict(config))
    if changed:
        listed = "; ".join(f"{key}: {values}" for key, values in changed.items())
        raise RunError(
            f"{run.path} holds a run of another config ({listed}), and continuing it with this one "
            "would give results of neither",
            value=run.path,
            hint="Choose another run_dir, or leave run_dir out: each config then has a directory "
            "of its own.",
        )
    return config


def _check_listings(config: Config, train: TrainData, val: Manifest) -> None:
    """Refuse to begin on shards that globs do not name as they did when they were counted."""
    manifests = [train] if isinstance(train, Manifest) else [s.manifest for s in train.sources]
    for location, manifest in zip(config.data.train_locations, manifests, strict=True):
        refuse_other_listing(location, "train", manifest)
    refuse_other_listing(config.data.location, "val", val)


def _check_checkpoints_unused(config: Config) -> None:
    """Refuse to start a new run at the checkpoints of another, which it would continue."""
    url = config.checkpoint.url
    if not url:
        return
    try:
        owned_by = owner(url)
        steps = CheckpointStore(url).steps()
    except Exception as error:  # every store raises its own kinds
        raise RunError(
            f"cannot read checkpoint.url={url}: {type(error).__name__}: {error}. Nothing was "
            "started, since checkpoints could not be saved",
            value=url,
            hint="Check the URL, the credentials and the network.",
        ) from error
    if owned_by:
        raise refusal(url, owned_by["run"])
    if steps:
        raise RunError(
            f"checkpoint.url={url} holds the checkpoints of another run, up to step {steps[-1]}, "
            "and a new run would continue from them",
            value=url,
            hint="Give it another checkpoint.url, or leave it out: checkpoints are then in the run "
            "directory.",
        )


def _archive_finished_run(run: RunDir) -> None:
    number = 1
    while (archive := run.path.with_name(f"{run.path.name}.{number}")).exists():
        number += 1
    with run.lock():
        if not run.is_finished:  # another process has archived it meanwhile
            return
        run.path.rename(archive)
    print(f"the finished run is kept as {archive}")


@contextmanager
def _locked_directory(run: RunDir) -> Iterator[None]:
    """Create and lock a run directory; if writing it fails, remove what was created."""
    created = False
    try:
        run.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            run.path.mkdir()
            created = True
        except FileExistsError:
            if not run.path.is_dir():
                raise
    except OSError as error:
        raise RunError(
            f"cannot make the run directory {run.path}: {error.strerror}. Nothing was started",
            value=run.path,
            hint="Choose another directory with runs_dir=DIR or run_dir=DIR.",
        ) from None
    with ExitStack() as stack:
        try:
            stack.enter_context(run.lock())
            yield
        except RunningError:  # the files of an attempt stay as they are
            raise
        except BaseException:
            if created and not run.config_file.exists():
                shutil.rmtree(run.path, ignore_errors=True)
            raise


def _write_run_metadata(
    run: RunDir, composed: ComposedConfig, plan: Plan, train: TrainData, val: Manifest
) -> None:
    """Write all files but the config, which marks the run directory as complete."""
    init_from = fetch_fitting_weights(run, composed.config, plan)
    software, patch = current_software(composed.config.model.name)
    if patch:
        write_atomic(run.patch_file, patch)
    write_atomic(run.classes_file, json.dumps(train.classes))
    identity = {
        "id": run.id,
        "uid": uuid4().hex,  # differs from that of an archived run with the same name
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
            **_describe_folds(composed.config, train, val),
            **({} if train.labels.kind == "single" else {"label_kind": train.labels.kind}),
            **({"mix": _describe_mix(train, plan.mix)} if isinstance(train, Mixture) else {}),
        },
    }
    run.write_json(run.identity_file, identity)


def _describe_folds(config: Config, train: TrainData, val: Manifest) -> dict[str, str]:
    """Describe the data set that a fold is of, by which runs on its folds are compared."""
    if config.data.fold is None or not isinstance(train, Manifest):
        return {}
    return {"folds_fingerprint": folds_fingerprint(train, val)}


def _describe_mix(train: Mixture, plan: MixPlan | None) -> list[dict[str, object]]:
    """Describe the data sets of a mixture: where they are, what they are, and their parts."""
    assert plan is not None
    return [
        {
            "name": source.name,
            "url": str(source.location),
            "num_train": source.manifest.num_samples,
            "fingerprint": source.manifest.fingerprint[:16],
            "weight": source.weight,
            "quota": quota,
        }
        for source, quota in zip(train.sources, plan.quotas, strict=True)
    ]
