"""A run as one flat record: what it is, and what it came to. Read from its directory alone."""

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

EXTENDED = "extended"  # the key of a record's config that says so of a run
CRASHED = "crashed"  # what a directory says of an attempt that left no verdict, and may be alive

IMPORTED = "imported"  # the status of what others have measured; see mlflow_store.import_results


@dataclass(frozen=True)
class Record:
    """One run; None where a thing is not known.

    Args:
        config: with dotted keys, without secrets and what the paper published. `extended` is among
            them where the rate of the run was to fall to an end that was moved after it had begun.
        published: what the paper published; see orchestrator.config.schema.Published.
        data_fingerprint: of the bytes of both splits.
        status: one of outcome.STATES or IMPORTED, and `reason` why.
        attempt_outcomes: why each attempt ended, or that no end of it is known.
        job_ids, nodes: Slurm's, of all jobs, and of the last attempt.
        step: the highest that was logged; `num_images` were seen until then.
        last_step: the last that was logged: after a rollback, it may be lower.
        metrics: the last value of each figure.
        training_s: the wall time of all attempts together.
        device_s: the same, each attempt times its ranks: a GPU or a CPU slot has one rank.
        images_per_s: the median over the run.
        petaflop: spent on training, as far as was logged; see plan.training_petaflop.
        init_from: the weights it began with; see launch.init_weights.
        evaluations: what `tahoe evaluate` has noted.
    """

    id: str
    path: str
    uid: str | None
    mlflow_id: str | None
    created_s: float | None
    config: dict[str, Any]
    published: dict[str, Any]
    data_fingerprint: str | None
    status: str
    reason: str
    num_attempts: int
    attempt_outcomes: list[str]
    job_ids: list[str]
    nodes: str | None
    num_steps: int | None
    last_step: int | None
    step: int | None
    num_images: int | None
    metrics: dict[str, float]
    training_s: float | None
    device_s: float | None
    images_per_s: float | None
    petaflop: float | None
    init_from: dict[str, Any] | None
    sweep: str | None
    evaluations: list[dict[str, Any]]

    @property
    def model_title(self) -> str:
        """What was trained: the title of its paper, or the network's name."""
        return str(self.published.get("title") or self.config.get("model.name"))

    @property
    def weights(self) -> str | None:
        """Whose figures `val/...` are: of the averaged weights, or of those that are trained."""
        return weights_of(self.config.get("recipe.ema_decay", "?"))


def read_record(run: RunDir) -> Record:
    """Return the record of a run.

    Raises:
        RunError: there is no run at this path.
    """
    config = run.read_config()
    identity = run.read_json(run.identity_file) or {}
    model = config.get("model") or {}
    published = model.get("published") or {}
    known = flatten(redact(of_the_run(config)))
    logged, told = _read_metrics(run), extended(run, config)
    known |= {EXTENDED: told} if told else {}
    metrics, step = logged.metrics, max((step for step, _ in logged.metrics.values()), default=None)
    batch, petaflop = known.get("recipe.global_batch_size"), metrics.get("perf/total_pflop")
    num_images = step * batch if step is not None and batch else None
    known_attempts, jobs, end = (
        read_attempts(run),
        [*read_json_lines(run.jobs_file)],
        read_run_state(run),
    )
    if end.attempt in known_attempts:  # whose launcher may still wait for what is sent
        known_attempts[end.attempt] |= run.attempt_outcome(end.attempt)
    tries = [*_attempt_durations(known_attempts, logged.last_time_ms)]
    sized = [line for line in (*jobs, *known_attempts.values()) if "num_steps" in line]
    return Record(
        id=run.id,
        path=str(run.path),
        uid=identity.get("uid"),
        mlflow_id=(run.read_json(run.mlflow_file) or {}).get("run_id"),
        created_s=identity.get("created_s"),
        config=known,
        published=published,
        data_fingerprint=(identity.get("data") or {}).get("fingerprint"),
        status=end.state,
        reason=one_line(end.reason),
        num_attempts=end.attempt,
        attempt_outcomes=[
            _end(known_attempts.get(n, {})) for n in range(1, max(known_attempts, default=0) + 1)
        ],
        job_ids=[str(line["slurm_job_id"]) for line in jobs],
        nodes=known_attempts[max(known_attempts)].get("nodes") if known_attempts else None,
        num_steps=sized[-1]["num_steps"] if sized else None,
        last_step=logged.at_step,
        step=step,
        num_images=num_images,
        metrics={key: value for key, (_, value) in metrics.items()},
        training_s=sum(s for s, _ in tries) if tries else None,
        device_s=sum(s * num_ranks for s, num_ranks in tries) if tries else None,
        images_per_s=statistics.median(logged.speeds) if logged.speeds else None,
        petaflop=petaflop[1] if petaflop else None,
        init_from=identity.get("init_from"),
        sweep=str(sweep.path) if (sweep := sweep_of(run)) else None,
        evaluations=[*read_json_lines(run.evaluations_file)],
    )


def weights_of(ema_decay: Any) -> str | None:
    """Return which weights a run is evaluated with; None where it is not known."""
    return None if ema_decay == "?" else "raw" if ema_decay is None else "averaged"


def extended(run: RunDir, config: Mapping[str, Any]) -> str | None:
    """Say from how many steps to how many a run was extended that had begun to train.

    None if it was not, and where its learning rate did not depend on its end: such a run is the
    same as one that was as long from the start. What the rate then did is in schedule.cycles.
    """
    schedule = (config.get("recipe") or {}).get("schedule")
    if not isinstance(schedule, Mapping) or schedule.get("name") not in ("cosine", "linear"):
        return None
    if schedule.get("min_lr_factor") == 1:
        return None
    of_jobs = {
        line.get("slurm_job_id"): line.get("num_steps") for line in read_json_lines(run.jobs_file)
    }
    lengths = {
        number: line.get("num_steps") or of_jobs.get(line.get("slurm_job_id"))
        for number, line in sorted(read_attempts(run).items())
    }
    if len({*lengths.values()}) < 2:
        return None
    trained = _trained(run)
    known = dict.fromkeys(n for attempt, n in lengths.items() if n and attempt in trained)
    return f"{' -> '.join(map(str, known))} steps" if len(known) > 1 else None


def _trained(run: RunDir) -> set[int]:
    """Return the attempts that have done a step."""
    lines = (line for _, line in read_records(run.metrics_file, start_bytes=0))
    return {line["attempt"] for line in lines if line.get("step", 0) > 0 and "attempt" in line}


@dataclass
class _Logged:
    """What a metrics file says: of each figure the last step and value, of attempts when last."""

    metrics: dict[str, tuple[int, float]] = field(default_factory=dict)
    speeds: list[float] = field(default_factory=list)
    last_time_ms: dict[int, int] = field(default_factory=dict)
    at_step: int | None = None


def _read_metrics(run: RunDir) -> _Logged:
    found, sieve = _Logged(), PointDeduplicator()
    for _, record in read_records(run.metrics_file, start_bytes=0):
        for point in sieve.new_points(record):
            if point.step >= found.metrics.get(point.key, (0,))[0]:
                found.metrics[point.key] = (point.step, point.value)
            if point.key == "perf/images_per_s" and 0 < point.value < math.inf:
                found.speeds.append(point.value)
        match record:
            case {"attempt": int(attempt), "time_ms": int(time_ms), "step": int(step)}:
                found.last_time_ms[attempt], found.at_step = time_ms, step
    return found


def _attempt_durations(
    known: Mapping[int, Mapping[str, Any]], last_time_ms: Mapping[int, int]
) -> Iterator[tuple[float, int]]:
    """Yield the seconds and ranks of each attempt, less what was sent and drawn after it.

    One that was killed ended when it last logged.
    """
    for attempt, line in known.items():
        if "started_s" in line:
            last_s = last_time_ms.get(attempt, 0) / 1000
            ended_s = line.get("trained_until_s") or line.get("ended_s") or last_s
            yield max(0.0, ended_s - line["started_s"]), int(line.get("world_size", 1))


def _end(attempt: Mapping[str, Any]) -> str:
    if why := attempt.get("why"):
        return one_line(str(why))
    if "exit_code" in attempt:
        return f"ended with exit code {attempt['exit_code']}"
    return "no end is known: it was killed, or its machine was lost"
