"""Create the MLflow run of a run directory, or find it again; every attempt continues it.

Importing this module imports MLflow, which takes about two seconds.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from orchestrator.redact import mlflow_safe_name, one_line, redact, redact_urls, truncate_json
from orchestrator.run.metric_stream import Point, as_stored
from orchestrator.run.outcome import RunState
from orchestrator.run.rundir import RunDir, RunError, assign_new_identity, original_of
from orchestrator.run.sweepdir import SweepDir, sweep_of
from orchestrator.tracking.mlflow_store import run_metadata
from orchestrator.tracking.mlflow_store.client import (
    experiment_id,
    open_client,
    print_to_stderr,
    tag_equals,
)
from orchestrator.tracking.mlflow_store.mlflow_records import (
    CHANGED_TAG,
    RECORD_FILE,
    RECORD_TAG,
    encode_record,
)
from orchestrator.tracking.mlflow_store.rejected import RejectedValues
from orchestrator.tracking.mlflow_store.sweep_run import (
    CHILD_TAG,
    child_run_name,
    get_or_create_sweep_run,
    set_description,
    update_sweep_status,
)
from orchestrator.tracking.records.record import Record, read_record

T = TypeVar("T")

MAX_METRICS_A_CALL = 1000  # MLflow's limits: mlflow/utils/validation.py
MAX_PARAMS_A_CALL = 100
STATUS = {
    "scheduled": "SCHEDULED",
    "running": "RUNNING",
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed_permanently": "FAILED",
    "crashed": "FAILED",
}


@dataclass
class MlflowRun:
    """A run directory and its MLflow run; every method may be repeated after an error.

    Args:
        shipped_bytes: the size of the sent part of each file, by its path in the run directory.
        sweep: the sweep that the run was submitted in; `parent_id` is that of its MLflow run.
    """

    run: RunDir
    config: Mapping[str, Any]
    client: MlflowClient
    run_id: str
    experiment_id: str
    start_ms: int
    shipped_bytes: dict[str, int]
    sweep: SweepDir | None
    parent_id: str | None

    def __post_init__(self) -> None:
        self.rejected = RejectedValues(lambda: _check_active(self.client.get_run(self.run_id)))
        self._params = run_metadata.run_params(self.config)
        self._long_record = ""  # for RECORD_FILE, if it does not fit in a tag

    def log_metadata(self) -> None:
        """Send params, tags and published results; a param that has changed becomes a tag."""
        stored = self.client.get_run(self.run_id).data
        new = [Param(key, value) for key, value in self._params.items() if key not in stored.params]
        for params in _chunks(new, MAX_PARAMS_A_CALL):
            self.rejected.send_texts(params, self._send("params"))
        changed = {}
        for key, value in self._params.items():
            # A param that the server has cut is sent as a tag, which may be longer.
            tag = mlflow_safe_name(f"{CHANGED_TAG}{key}")
            current = stored.tags.get(tag, stored.params.get(key, value))
            if key in self.rejected.reasons or current != value:
                changed[tag] = value
        parent = {}
        if self.sweep and self.parent_id:
            name = child_run_name(self.sweep, self.run)
            parent = {CHILD_TAG: self.parent_id, "mlflow.runName": name}
        self.set_tags({**run_metadata.run_tags(self.run, self.config), **changed, **parent})
        # The time of the run's creation, not of this call, so that MLflow recognises a repetition.
        published = run_metadata.published(self.config).items()
        self._log([Point(key, value, step=0, time_ms=self.start_ms) for key, value in published])
        self._log(run_metadata.evaluations(self.run))
        if data := run_metadata.dataset(self.run, self.config):
            context = [InputTag("mlflow.data.context", "training")]
            self.rejected.send_all(
                [DatasetInput(Dataset(**data), context)],
                lambda inputs: self.client.log_inputs(self.run_id, inputs),
                lambda data: f"the data set {data.dataset.name}",
            )

    def log_artifacts(self) -> None:
        """Send config.yaml, environment.yaml and the patch, without secrets."""
        config = self.run.config_file
        clean = redact(self.config)
        text = config.read_text() if clean == self.config else yaml.safe_dump(clean)
        self._upload(config.name, text.encode())
        environment = yaml.safe_dump(run_metadata.environment(self.run))
        self._upload("environment.yaml", environment.encode())
        if self.run.patch_file.exists():
            patch = self.run.patch_file.read_bytes().decode("latin-1")  # any bytes, there and back
            self._upload(self.run.patch_file.name, redact_urls(patch).encode("latin-1"))
        self.log_long_record()
        self.log_profiles()

    def log_profiles(self) -> None:
        """Send the reports and traces of profiled steps, each once."""
        for file in sorted(self.run.profile_dir.glob("attempt-*")):
            if self.num_shipped_bytes(file) != (num_bytes := file.stat().st_size):
                self.client.log_artifact(self.run_id, str(file), file.parent.name)
                self.shipped_bytes[str(file.relative_to(self.run.path))] = num_bytes
                self.save_state()

    def log_long_record(self) -> None:
        """Send the record as an artifact, if it is too long for a tag."""
        if self._long_record:
            self._upload(RECORD_FILE, self._long_record.encode())

    def send_directory(self, directory: Path) -> None:
        """Send the files of a directory under its own name."""
        self.client.log_artifacts(self.run_id, str(directory), directory.name)

    def log_points(self, points: Sequence[Point], file: Path, end_bytes: int) -> None:
        """Send points, and note that their file has been shipped up to `end_bytes`."""
        self._log(points)
        self.shipped_bytes[str(file.relative_to(self.run.path))] = end_bytes
        self.save_state()

    def num_shipped_bytes(self, file: Path) -> int:
        """Return the size of the shipped part of a file."""
        return self.shipped_bytes.get(str(file.relative_to(self.run.path)), 0)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, cut to the length that MLflow accepts."""
        texts = [
            RunTag(key, truncate_json(value, run_metadata.MAX_TAG_CHARACTERS))
            for key, value in tags.items()
        ]
        for chunk in _chunks(texts, MAX_PARAMS_A_CALL):
            self.rejected.send_texts(chunk, self._send("tags"))

    def set_status(self, state: RunState, ended_ms: int | None = None) -> None:
        """Set the status and the end of the run, and store its record."""
        status = STATUS[state.state]
        is_over = status not in ("RUNNING", "SCHEDULED")
        if is_over:
            self.client.set_terminated(self.run_id, status, ended_ms)
        else:
            self.client.update_run(self.run_id, status)
        record = read_record(self.run)
        outcome = {"tahoe.outcome": redact_urls(f"{state.state}: {state.reason}")}
        times = run_metadata.time_tags(record) if is_over else {}
        self.set_tags({**outcome, **run_metadata.attempt_tags(self.run), **times})
        self._send_record(replace(record, status=state.state, reason=one_line(state.reason)))
        set_description(self.client, self.run_id, run_metadata.description(record))
        if self.sweep and self.parent_id:
            update_sweep_status(self.client, self.experiment_id, self.parent_id, self.sweep)

    def save_state(self) -> None:
        """Write mlflow.json. Deleting it is safe: the run is found by its tags and sent again."""
        state = {
            "run_id": self.run_id,
            "experiment_id": self.experiment_id,
            "tracking_uri": redact_urls(self.config["tracking"]["uri"]),
            "shipped_bytes": self.shipped_bytes,
        }
        self.run.write_json(self.run.mlflow_file, state)

    def _send_record(self, record: Record) -> None:
        text = encode_record(record, self._params)
        is_long = len(text) > run_metadata.MAX_TAG_CHARACTERS
        self.set_tags({RECORD_TAG: "" if is_long else text})
        self._long_record = text if is_long or RECORD_TAG in self.rejected.reasons else ""

    def _log(self, points: Sequence[Point]) -> None:
        metrics = [Metric(p.key, as_stored(p.value), p.time_ms, p.step) for p in points]
        for chunk in _chunks(metrics, MAX_METRICS_A_CALL):
            self.rejected.send_all(chunk, self._send("metrics"), lambda metric: str(metric.key))

    def _send(self, kind: str) -> Callable[[list[Any]], object]:
        return lambda values: self.client.log_batch(self.run_id, synchronous=True, **{kind: values})

    def _upload(self, name: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / name
            file.write_bytes(content)
            self.client.log_artifact(self.run_id, str(file))


def get_or_create_run(
    run: RunDir, config: Mapping[str, Any], notify: Callable[[str], None] = print_to_stderr
) -> MlflowRun:
    """Return the MLflow run of a run directory; create it if it does not exist.

    Args:
        notify: the receiver of messages about the store itself.
    """
    uri, name = config["tracking"]["uri"], config["tracking"]["experiment"]
    state = run.read_json(run.mlflow_file) or {}
    with open_client(uri, notify) as client:
        found = _noted_run(client, state)
        experiment = found.info.experiment_id if found else experiment_id(client, uri, name)
        found = found or _find_by_tag(client, run, experiment)
        if found and (original := original_of(run, found.data.tags.get("tahoe.run_dir"))):
            assign_new_identity(run, original)
            notify(f"{run.path} is a copy of {original}: from now on, it has its own MLflow run")
            found = None
        found = found or _create_run(client, run, experiment)
        sweep = sweep_of(run)
        parent_id = (
            get_or_create_sweep_run(client, found.info.experiment_id, sweep) if sweep else None
        )
    is_noted = found.info.run_id == state.get("run_id")
    tracked = MlflowRun(
        run=run,
        config=config,
        client=client,
        run_id=found.info.run_id,
        experiment_id=found.info.experiment_id,
        start_ms=found.info.start_time,
        shipped_bytes=dict(state.get("shipped_bytes", {})) if is_noted else {},
        sweep=sweep,
        parent_id=parent_id,
    )
    tracked.save_state()
    return tracked


def _noted_run(client: MlflowClient, state: Mapping[str, Any]) -> Run | None:
    """Return the run that mlflow.json names, if the store has it."""
    if "run_id" not in state:
        return None
    try:
        run = client.get_run(state["run_id"])
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # it was sent to another store
            return None
        raise
    _check_active(run)
    return run


def _check_active(run: Run) -> None:
    if run.info.lifecycle_stage != "active":
        run_id = run.info.run_id
        raise RunError(
            f"the MLflow run {run_id} has been deleted",
            value=run_id,
            hint=f"Restore it with `mlflow runs restore --run-id {run_id}`, then run `tahoe sync` "
            "again.",
        )


def _find_by_tag(client: MlflowClient, run: RunDir, experiment: str) -> Run | None:
    """Find the run of an earlier attempt that was killed before it wrote mlflow.json."""
    tag = tag_equals(*run_metadata.identity_tag(run))
    runs = client.search_runs([experiment], tag, max_results=1)
    return runs[0] if runs else None


def _create_run(client: MlflowClient, run: RunDir, experiment: str) -> Run:
    created_s = (run.read_json(run.identity_file) or {}).get("created_s") or time.time()
    tags = run_metadata.creation_tags(run)
    return client.create_run(experiment, start_time=int(created_s * 1000), tags=tags)


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
