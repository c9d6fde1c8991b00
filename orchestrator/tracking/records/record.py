"""Read a run's directory into one flat record: its config, its state and its results."""

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.config.parse import flatten
from orchestrator.redact import of_the_run, one_line, redact
from orchestrator.run.metric_stream import PointDeduplicator, read_records
from orchestrator.run.outcome import read_attempts, read_run_state
from orchestrator.run.rundir import RunDir, read_json_lines
from orchestrator.run.sweepdir import sweep_of

EXTENDED = "extended"  # the key in `Record.config` of an extension; see `extended`
CRASHED = "crashed"  # the status of an attempt without an outcome, which may still be alive
IMPORTED = "imported"  # the status of others' results; see mlflow_store.import_results


@dataclass(frozen=True)
class Record:
    """One run: its config and its results; None where a value is not known.

    Args:
        config: flat, with dotted keys; without secrets and the published results. EXTENDED is among
            the keys if the end of the learning-rate schedule was moved during training.
        published: the results of the paper; see orchestrator.config.schema.Reference.
        data_fingerprint: the fingerprint of the bytes of both splits, or of all folds.
        status: one of outcome.STATES or IMPORTED.
        reason: the reason for the status.
        attempt_outcomes: the outcome of each attempt.
        job_ids: the Slurm jobs.
        nodes: the Slurm nodes of the last attempt.
        step: the highest step that was logged; `num_images` were seen until then.
        last_step: the step that was logged last: after a rollback, it may be lower.
        metrics: the last value of each metric.
        training_s: the wall time of all attempts.
        device_s: the wall time times the number of ranks: a GPU or a CPU slot has one rank.
        images_per_s: the median over the run.
        petaflop: the compute of training until the last log; see plan.training_petaflop.
        init_from: the origin of the initial weights; see launch.init_weights.
        evaluations: the log of `tahoe evaluate`.
    """

    id: str
    path: str
    uid: str | None = None
    mlflow_id: str | None = None
    created_s: float | None = None
    config: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)
    data_fingerprint: str | None = None
    status: str = CRASHED
    reason: str = ""
    num_attempts: int = 0
    attempt_outcomes: list[str] = field(default_factory=list)
    job_ids: list[str] = field(default_factory=list)
    nodes: str | None = None
    num_steps: int | None = None
    last_step: int | None = None
    step: int | None = None
    num_images: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    training_s: float | None = None
    device_s: float | None = None
    images_per_s: float | None = None
    petaflop: float | None = None
    init_from: dict[str, Any] | None = None
    sweep: str | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def model_title(self) -> str:
        """The title of the model's paper, or the network's name."""
        return str(self.published.get("title") or self.config.get("model.name"))

    @property
    def weights(self) -> str | None:
        """The weights that the metrics `val/...` belong to: raw or averaged."""
        return evaluated_weights(self.config.get("recipe.ema_decay", "?"))


def read_record(run: RunDir) -> Record:
    """Read the record of a run from its directory."""
    config = run.read_config()
    info = run.read_json(run.identity_file) or {}
    data = info.get("data") or {}
    jobs, attempts = [*read_json_lines(run.jobs_file)], read_attempts(run)
    state, logged, sweep = read_run_state(run), _read_metrics(run), sweep_of(run)
    if state.attempt in attempts:  # its launcher may still wait for the shipper
        attempts[state.attempt] |= run.attempt_outcome(state.attempt)
    durations = [*_attempt_durations(attempts, logged.last_time_ms)]
    flat_config = flatten(redact(of_the_run(config)))
    if extension := extended(run, config):
        flat_config[EXTENDED] = extension
    lengths = [line["num_steps"] for line in (*jobs, *attempts.values()) if "num_steps" in line]
    step = max((step for step, _ in logged.metrics.values()), default=None)
    metrics = {key: value for key, (_, value) in logged.metrics.items()}
    return Record(
        id=run.id,
        path=str(run.path),
        uid=info.get("uid"),
        mlflow_id=(run.read_json(run.mlflow_file) or {}).get("run_id"),
        created_s=info.get("created_s"),
        config=flat_config,
        published=(config.get("model") or {}).get("published") or {},
        data_fingerprint=data.get("folds_fingerprint", data.get("fingerprint")),
        status=state.state,
        reason=one_line(state.reason),
        num_attempts=state.attempt,
        attempt_outcomes=[
            _attempt_end(attempts.get(n, {})) for n in range(1, max(attempts, default=0) + 1)
        ],
        job_ids=[str(line["slurm_job_id"]) for line in jobs],
        nodes=attempts[max(attempts)].get("nodes") if attempts else None,
        num_steps=lengths[-1] if lengths else None,
        last_step=logged.last_step,
        step=step,
        num_images=num_images(flat_config, step),
        metrics=metrics,
        training_s=sum(seconds for seconds, _ in durations) if durations else None,
        device_s=sum(seconds * ranks for seconds, ranks in durations) if durations else None,
        images_per_s=statistics.median(logged.speeds) if logged.speeds else None,
        petaflop=metrics.get("perf/total_pflop"),
        init_from=info.get("init_from"),
        sweep=str(sweep.path) if sweep else None,
        evaluations=[*read_json_lines(run.evaluations_file)],
    )


def num_images(config: Mapping[str, Any], step: int | None) -> int | None:
    """Return the number of training images until a step, by a flat config."""
    batch = config.get("recipe.global_batch_size")
    return step * batch if step is not None and batch else None


def evaluated_weights(ema_decay: Any) -> str | None:
    """Return the weights that a run is evaluated with; None where the config does not say."""
    return None if ema_decay == "?" else "raw" if ema_decay is None else "averaged"


def extended(run: RunDir, config: Mapping[str, Any]) -> str | None:
    """Describe the extension of a run during training, such as "100 -> 200 steps".

    None without one, and where the learning rate does not depend on the number of steps: such a run
    equals one of the full length. The rate after an extension is in schedule.cycles.
    """
    schedule = (config.get("recipe") or {}).get("schedule")
    if not isinstance(schedule, Mapping) or schedule.get("name") not in ("cosine", "linear"):
        return None
    if schedule.get("min_lr_factor") == 1:
        return None
    job_lengths = {
        line.get("slurm_job_id"): line.get("num_steps") for line in read_json_lines(run.jobs_file)
    }
    lengths = {
        attempt: line.get("num_steps") or job_lengths.get(line.get("slurm_job_id"))
        for attempt, line in sorted(read_attempts(run).items())
    }
    if len({*lengths.values()}) < 2:
        return None
    lines = (line for _, line in read_records(run.metrics_file, start_bytes=0))
    trained = {line["attempt"] for line in lines if line.get("step", 0) > 0 and "attempt" in line}
    distinct = dict.fromkeys(n for attempt, n in lengths.items() if n and attempt in trained)
    return f"{' -> '.join(map(str, distinct))} steps" if len(distinct) > 1 else None


@dataclass
class _Logged:
    """The content of a metrics file.

    Args:
        metrics: the last step and value of each metric.
        last_time_ms: the time of the last log of each attempt.
    """

    metrics: dict[str, tuple[int, float]] = field(default_factory=dict)
    speeds: list[float] = field(default_factory=list)
    last_time_ms: dict[int, int] = field(default_factory=dict)
    last_step: int | None = None


def _read_metrics(run: RunDir) -> _Logged:
    logged, deduplicator = _Logged(), PointDeduplicator()
    for _, record in read_records(run.metrics_file, start_bytes=0):
        for point in deduplicator.new_points(record):
            if point.step >= logged.metrics.get(point.key, (0,))[0]:
                logged.metrics[point.key] = (point.step, point.value)
            if point.key == "perf/images_per_s" and 0 < point.value < math.inf:
                logged.speeds.append(point.value)
        match record:
            case {"attempt": int(attempt), "time_ms": int(time_ms), "step": int(step)}:
                logged.last_time_ms[attempt], logged.last_step = time_ms, step
    return logged


def _attempt_durations(
    attempts: Mapping[int, Mapping[str, Any]], last_time_ms: Mapping[int, int]
) -> Iterator[tuple[float, int]]:
    """Yield the seconds and ranks of each attempt, without the shipping and plots after training.

    A killed attempt ended when it last logged.
    """
    for attempt, line in attempts.items():
        if "started_s" in line:
            last_s = last_time_ms.get(attempt, 0) / 1000
            ended_s = line.get("trained_until_s") or line.get("ended_s") or last_s
            yield max(0.0, ended_s - line["started_s"]), int(line.get("world_size", 1))


def _attempt_end(attempt: Mapping[str, Any]) -> str:
    if reason := attempt.get("why"):
        return one_line(str(reason))
    if "exit_code" in attempt:
        return f"ended with exit code {attempt['exit_code']}"
    return "no end is known: it was killed, or its machine was lost"
