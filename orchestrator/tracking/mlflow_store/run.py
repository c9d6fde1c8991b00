"""The MLflow run of a run directory: made once, found again, continued by every attempt.

Importing this module imports MLflow, which takes about two seconds.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from orchestrator.redact import mlflow_safe_name, redact, redact_urls, truncate_json
from orchestrator.run.copied_run import make_own, original_of
from orchestrator.run.metric_stream import Point, as_stored
from orchestrator.run.outcome import RunState
from orchestrator.run.rundir import RunDir, RunError
from orchestrator.run.sweepdir import SweepDir, sweep_of
from orchestrator.tracking.mlflow_store import run_metadata
from orchestrator.tracking.mlflow_store.client import (
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    MlflowClient,
    MlflowException,
    Param,
    Run,
    RunTag,
    experiment_id,
    open_client,
    to_stderr,
)
from orchestrator.tracking.mlflow_store.rejected import RejectedValues
from orchestrator.tracking.mlflow_store.sweep_run import (
    CHILD_TAG,
    child_run_name,
    get_or_create_sweep_run,
    tell_in_words,
    update_sweep_status,
)
from orchestrator.tracking.records.record import read_record

T = TypeVar("T")

MAX_METRICS_A_CALL = 1000  # MLflow's limits: mlflow/utils/validation.py
MAX_PARAMS_A_CALL = 100
STATUS = {
    "scheduled": "SCHEDULED",
    "running": "RUNNING",
    "finished": "FINISHED",
    "stopped": "KILLED",
    "never_restart": "FAILED",
    "crashed": "FAILED",
}


@dataclass
class MlflowRun:
    """A run directory and its MLflow run. Every method may be called again after an error."""

    run: RunDir
    config: Mapping[str, Any]
    client: MlflowClient
    run_id: str
    experiment_id: str
    start_ms: int
    shipped_bytes: dict[str, int]  # of each file, by its path in the run directory
    sweep: SweepDir | None  # that the run was submitted in, and the id of its MLflow run
    parent_id: str | None

    def __post_init__(self) -> None:
        self.refusals = RejectedValues(lambda: _check_active(self.client.get_run(self.run_id)))

    def log_metadata(self) -> None:
        """Send params, tags and published figures; a param that changed since becomes a tag."""
        known = self.client.get_run(self.run_id).data
        wanted = run_metadata.run_params(self.config)
        new = [Param(key, value) for key, value in wanted.items() if key not in known.params]
        for params in _chunks(new, MAX_PARAMS_A_CALL):
            self.refusals.send_texts(params, self._send_params)
        changed = {}
        for key, value in wanted.items():
            # A param that the server took in part only is there as a whole, as far as tags go.
            tag = mlflow_safe_name(f"tahoe.changed.{key}")
            if self.refusals.told.get(key) or (
                known.tags.get(tag, known.params.get(key, value)) != value
            ):
                changed[tag] = value
        parent = {}
        if self.sweep and self.parent_id:
            name = child_run_name(self.sweep, self.run)
            parent = {CHILD_TAG: self.parent_id, "mlflow.runName": name}
        self.set_tags({**run_metadata.run_tags(self.run, self.config), **changed, **parent})
        # The time of the run's creation, not of this call, so that MLflow knows a repetition.
        said = run_metadata.published(self.config).items()
        self._log([Point(key, value, step=0, time_ms=self.start_ms) for key, value in said])
        self._log(run_metadata.evaluations(self.run))
        if data := run_metadata.dataset(self.run, self.config):
            context = [InputTag("mlflow.data.context", "training")]
            self.refusals.send_rest(
                [DatasetInput(Dataset(**data), context)],
                lambda inputs: self.client.log_inputs(self.run_id, inputs),
                lambda one: f"the data set {one.dataset.name}",
            )

    def log_artifacts(self) -> None:
        """Send config.yaml, environment.yaml and code.patch, without secrets."""
        config = self.run.config_file
        clean = redact(self.config)
        text = config.read_text() if clean == self.config else yaml.safe_dump(clean)
        self._upload(config.name, text.encode())
        self._upload(
            "environment.yaml", yaml.safe_dump(run_metadata.environment(self.run)).encode()
        )
        if self.run.patch_file.exists():
            patch = self.run.patch_file.read_bytes().decode("latin-1")  # any bytes, there and back
            self._upload(self.run.patch_file.name, redact_urls(patch).encode("latin-1"))

    def send_directory(self, directory: Path) -> None:
        """Send the files of a directory under its own name."""
        self.client.log_artifacts(self.run_id, str(directory), directory.name)

    def log_points(self, points: Sequence[Point], file: Path, end_bytes: int) -> None:
        """Send points, and note that a file of them has been shipped up to `end_bytes`."""
        self._log(points)
        self.shipped_bytes[str(file.relative_to(self.run.path))] = end_bytes
        self.save_state()

    def shipped(self, file: Path) -> int:
        """Return up to which of its bytes a file has been shipped."""
        return self.shipped_bytes.get(str(file.relative_to(self.run.path)), 0)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        ready = [
            RunTag(key, truncate_json(value, run_metadata.MAX_TAG_CHARACTERS))
            for key, value in tags.items()
        ]
        for some in _chunks(ready, MAX_PARAMS_A_CALL):
            self.refusals.send_texts(some, self._send_tags)

    def set_status(self, outcome: RunState, ended_ms: int | None = None) -> None:
        """Set the status of the run, and when it ended, to how the run directory stands."""
        status = STATUS[outcome.state]
        if status in ("RUNNING", "SCHEDULED"):
            self.client.update_run(self.run_id, status)
        else:
            self.client.set_terminated(self.run_id, status, ended_ms)
        verdict = redact_urls(f"{outcome.state}: {outcome.reason}")
        record = read_record(self.run)
        taken = {} if status in ("RUNNING", "SCHEDULED") else run_metadata.time_tags(record)
        self.set_tags({"tahoe.verdict": verdict, **run_metadata.attempt_tags(self.run), **taken})
        tell_in_words(self.client, self.run_id, run_metadata.description(record))
        if self.sweep and self.parent_id:
            update_sweep_status(self.client, self.experiment_id, self.parent_id, self.sweep)

    def save_state(self) -> None:
        """Write mlflow.json. Deleting it is safe: the run is found by its tags and sent again."""
        record = {
            "run_id": self.run_id,
            "experiment_id": self.experiment_id,
            "tracking_uri": redact_urls(self.config["tracking"]["uri"]),
            "shipped_bytes": self.shipped_bytes,
        }
        self.run.write_json(self.run.mlflow_file, record)

    def _log(self, points: Sequence[Point]) -> None:
        metrics = [Metric(p.key, as_stored(p.value), p.time_ms, p.step) for p in points]
        for some in _chunks(metrics, MAX_METRICS_A_CALL):
            self.refusals.send_rest(some, self._send_metrics, lambda one: str(one.key))

    def _send_metrics(self, metrics: list[Metric]) -> None:
        self.client.log_batch(self.run_id, metrics=metrics, synchronous=True)

    def _send_params(self, params: list[Param]) -> None:
        self.client.log_batch(self.run_id, params=params, synchronous=True)

    def _send_tags(self, tags: list[RunTag]) -> None:
        self.client.log_batch(self.run_id, tags=tags, synchronous=True)

    def _upload(self, name: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / name
            file.write_bytes(content)
            self.client.log_artifact(self.run_id, str(file))


def get_or_create_run(
    run: RunDir, config: Mapping[str, Any], say: Callable[[str], None] = to_stderr
) -> MlflowRun:
    """Return the MLflow run of a run directory, which is made if there is none.

    Args:
        say: is told of what happens to the store itself.

    Raises:
        RunError: the run or its experiment has been deleted in MLflow.
        MlflowException, OSError: the store cannot be reached or written.
    """
    uri, experiment = config["tracking"]["uri"], config["tracking"]["experiment"]
    mark = run.read_json(run.mlflow_file) or {}
    with open_client(uri, say) as client:
        found = _recorded(client, mark)
        place = found.info.experiment_id if found else experiment_id(client, uri, experiment)
        found = found or _find_by_tag(client, run, place)
        if found and (original := original_of(run, found.data.tags.get("tahoe.run_dir"))):
            make_own(run, original)
            say(f"{run.path} is a copy of {original}: it is a run of its own in MLflow from now on")
            found = None
        found = found or _created(client, run, place)
        sweep = sweep_of(run)
        parent_id = (
            get_or_create_sweep_run(client, found.info.experiment_id, sweep) if sweep else None
        )
    known = mark.get("shipped_bytes") if found.info.run_id == mark.get("run_id") else None
    tracked = MlflowRun(
        run=run,
        config=config,
        client=client,
        run_id=found.info.run_id,
        experiment_id=found.info.experiment_id,
        start_ms=found.info.start_time,
        # A number is from before there were several files: all is sent again, and MLflow knows it.
        shipped_bytes=dict(known) if isinstance(known, dict) else {},
        sweep=sweep,
        parent_id=parent_id,
    )
    tracked.save_state()
    return tracked


def _recorded(client: MlflowClient, mark: Mapping[str, Any]) -> Run | None:
    if "run_id" not in mark:
        return None
    try:
        found = client.get_run(mark["run_id"])
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # another store than before
            return None
        raise
    _check_active(found)
    return found


def _check_active(found: Run) -> None:
    if found.info.lifecycle_stage != "active":
        run_id = found.info.run_id
        raise RunError(
            f"the MLflow run {run_id} has been deleted. Restore it with `mlflow runs restore "
            f"--run-id {run_id}`, then run `tahoe sync` again."
        )


def _find_by_tag(client: MlflowClient, run: RunDir, experiment: str) -> Run | None:
    """Return the run that an earlier start made and did not live to write down."""
    key, value = run_metadata.identity_tag(run)
    quote = '"' if "'" in value else "'"
    found = client.search_runs([experiment], f"tags.`{key}` = {quote}{value}{quote}", max_results=1)
    return found[0] if found else None


def _created(client: MlflowClient, run: RunDir, experiment: str) -> Run:
    created_s = (run.read_json(run.identity_file) or {}).get("created_s") or time.time()
    tags = run_metadata.creation_tags(run)
    return client.create_run(experiment, start_time=int(created_s * 1000), tags=tags)


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
