"""A look at the nodes that a run would be given: submitted, waited for, and judged."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.parse import to_dict
from orchestrator.config.schema import Config
from orchestrator.jobs.submit import job_request
from orchestrator.launch.checks.model_cost import ModelCost
from orchestrator.launch.code_snapshot import current_python_path
from orchestrator.number_format import pluralize
from orchestrator.preflight.check_result import CheckResult
from orchestrator.run.rundir import RunDir, RunError, write_atomic
from slurm import client
from slurm.errors import SlurmError
from slurm.node_check import render_node_check

_ASK_EVERY_S = 5.0
_MAX_SKEW_S = 1.0
_TAIL_CHARACTERS = 2000
_MAX_LOGS = 3

_SHARE = "Choose a runs_dir that all nodes share and write to"

Report = Sequence[dict[str, Any]]


def check_nodes(config: Config, cost: ModelCost | None) -> Iterator[CheckResult]:
    """Yield what the ranks of a job like this find on their nodes.

    The job's directory, in `runs_dir`, is removed if all is well.

    Raises:
        RunError: no directory can be made for the job.
        SlurmError, ConfigError: Slurm does not take it.
    """
    run = RunDir(_make_directory(Path(config.runs_dir, "doctor")))
    run.write_config(to_dict(config))
    job = job_request(run, config, current_python_path())
    write_atomic(
        run.job_script, render_node_check(job, worker="orchestrator.torch_workers.node_probe")
    )
    job_id = client.submit(run.job_script)
    try:
        state = _wait_for(job_id)
    except KeyboardInterrupt:
        client.cancel([job_id])
        print(f"job {job_id} is cancelled", file=sys.stderr)
        raise
    report, blind = run.path / "report.json", run.path / "blind"
    if blind.exists() and (hosts := blind.read_text().split()):
        told = f"{', '.join(hosts)} cannot see {run.path}. {_SHARE}"
        yield CheckResult("fail", "run directory", told)
        return
    if not report.exists():
        yield CheckResult("fail", "nodes", f"job {job_id} {state}: no report. {_tail_logs(run)}")
        return
    findings = list(evaluate_report(config, cost, json.loads(report.read_text())))
    yield from findings
    if all(one.status == "ok" for one in findings):
        shutil.rmtree(run.path)
    else:
        print(f"what the nodes have said is in {run.path}", file=sys.stderr)


def _make_directory(place: Path) -> Path:
    try:
        place.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=time.strftime("%Y-%m-%d-"), dir=place))
        (path / "slurm").mkdir()
    except OSError as error:
        raise RunError(
            f"{place} cannot be made: {error.strerror}. The nodes were not looked at, since they "
            "would have written there. Choose another place: runs_dir=DIR"
        ) from None
    return path


def _wait_for(job_id: str) -> str:
    """Return in what state a job has ended; meanwhile say what it waits for."""
    told = ""
    while True:
        try:
            job = client.queued_jobs([job_id]).get(job_id)
        except SlurmError as error:  # the job goes on, whether asked for or not
            now = f"job {job_id}: {error}"
        else:
            if job is None:
                return "has ended"
            if job.state in client.ENDED:
                return f"has ended as {job.state}"
            now = f"job {job_id}: {job.state.lower()} {job.reason}".rstrip()
        if now != told:
            print(now, file=sys.stderr, flush=True)
            told = now
        time.sleep(_ASK_EVERY_S)


def _tail_logs(run: RunDir) -> str:
    logs = sorted(run.path.glob("logs/*/*.log"))
    outputs = [*run.path.glob("slurm/*.out"), *logs[:_MAX_LOGS]]
    said = [f"{file}:\n{text[-_TAIL_CHARACTERS:]}" for file in outputs if (text := _text(file))]
    return "\n".join(said or [f"Nor is anything written in {run.path}: can the nodes see it?"])


def _text(file: Path) -> str:
    return file.read_text(errors="replace").strip()


def evaluate_report(
    config: Config, cost: ModelCost | None, report: Report
) -> Iterator[CheckResult]:
    """Yield what the report of the ranks comes to."""
    yield _gpus(config, report)
    yield _versions(report)
    yield _shared(report)
    yield _clock(report)
    if len(report) > 1:
        yield _all_reduce(report, cost)
    yield from _read(report)
    if config.data.cache != "none":
        yield from _cache(config.data.cache.max_gb, report)


def _by_host(report: Report) -> dict[str, dict[str, Any]]:
    """Return what the first rank of each node has found."""
    found: dict[str, dict[str, Any]] = {}
    for one in report:
        found.setdefault(one["host"], one)
    return found


def _gpus(config: Config, report: Report) -> CheckResult:
    asked = config.slurm.gpus_per_node
    seen = {host: one["num_gpus"] for host, one in _by_host(report).items()}
    told = ", ".join(f"{host}: {num}" for host, num in seen.items())
    kinds = sorted({one["gpu"] for one in report if one["gpu"]})
    told = f"{asked} a node asked for; seen by torch: {told} {' '.join(kinds)}".rstrip()
    fewest = min(seen.values())
    if asked and fewest == 0:
        told += ". Ranks would train on the CPU: is this torch built for CUDA, the driver loaded?"
        return CheckResult("fail", "GPUs", told)
    if 1 < fewest < asked:  # a site may show each rank its own GPU alone
        told += ". Some ranks would find no GPU of their own: is one broken? See `nvidia-smi` there"
        return CheckResult("fail", "GPUs", told)
    if not asked and max(seen.values()) > 0:
        return CheckResult("warn", "GPUs", f"{told}. They stay unused: set slurm.gpus_per_node")
    return CheckResult("ok", "GPUs", told)


def _versions(report: Report) -> CheckResult:
    by_host = {host: one["versions"] for host, one in _by_host(report).items()}
    if len(set(by_host.values())) == 1:
        return CheckResult(
            "ok", "software", f"{report[0]['versions']} on {pluralize(len(by_host), 'node')}"
        )
    told = ", ".join(f"{host}: {found}" for host, found in by_host.items())
    return CheckResult(
        "fail",
        "software",
        f"{told}. Ranks would compute different things. Put the environment where all nodes see it",
    )


def _shared(report: Report) -> CheckResult:
    blind = {one["host"]: one["unseen"] for one in report if one["unseen"]}
    unlocked = {one["host"]: one["unlocked"] for one in report if one["unlocked"]}
    if unlocked:
        host, why = next(iter(unlocked.items()))
        told = f"no locks on {len(unlocked)} of {pluralize(len(_by_host(report)), 'node')}"
        return CheckResult("fail", "run directory", f"{told}, as {host}: {why}")
    if not blind:
        told = "every rank sees the files of all others, and their locks"
        return CheckResult("ok", "run directory", told)
    told = "; ".join(f"{host} does not see those of ranks {ranks}" for host, ranks in blind.items())
    return CheckResult("fail", "run directory", f"{told}. {_SHARE}")


def _clock(report: Report) -> CheckResult:
    ahead = [one["clock"]["ahead_s"] for one in report]
    within = max(one["clock"]["within_s"] for one in report)
    skew = max(ahead) - min(ahead)
    told = f"clocks differ by {1000 * skew:.1f} ms at most (+- {1000 * within:.1f})"
    if skew - within > _MAX_SKEW_S:
        told += ". Times in logs and MLflow would be out of order: have NTP put right on the nodes"
        return CheckResult("warn", "clocks", told)
    return CheckResult("ok", "clocks", told)


def _all_reduce(report: Report, cost: ModelCost | None) -> CheckResult:
    speed = min(one["all_reduce"]["bytes_per_s"] for one in report)
    latency_s = max(one["all_reduce"]["latency_s"] for one in report)
    ranks = pluralize(len(report), "rank")
    told = f"{speed / 1e9:.3g} GB/s between {ranks}, {1000 * latency_s:.2f} ms at least"
    if cost:
        carried = 2 * (len(report) - 1) / len(report) * 4 * cost.num_params
        told += f"; this network's gradients take {1000 * carried / speed:.3g} ms a step"
    return CheckResult("ok", "all-reduce", told)


def _read(report: Report) -> Iterator[CheckResult]:
    reads = {one["host"]: one["read"] for one in report if one["read"]}
    errors = {host: read["error"] for host, read in reads.items() if "error" in read}
    if errors:
        host, error = next(iter(errors.items()))
        told = f"{len(errors)} of {len(reads)} nodes cannot read the data, as {host}: {error}"
        yield CheckResult("fail", "shards", told)
    reads = {host: read for host, read in reads.items() if host not in errors}
    rates = {
        host: (read["num_bytes"] / read["seconds"], read["num_images"] / read["seconds"])
        for host, read in reads.items()
        if read["num_bytes"]
    }
    if len(rates) < len(reads):
        told = f"{len(reads) - len(rates)} nodes found no shard of their own to read"
        yield CheckResult(
            "warn", "shards", f"{told}: fewer shards than nodes make all read the same"
        )
    if rates:
        slow, fast = min(rates.values()), max(rates.values())
        told = f"{slow[0] / 1e6:,.0f} to {fast[0] / 1e6:,.0f} MB/s a node read at the same time"
        yield CheckResult("ok", "shards", f"{told}, {slow[1]:,.0f} to {fast[1]:,.0f} images/s")


def _cache(max_gb: float, report: Report) -> Iterator[CheckResult]:
    """Yield whether the nodes can keep remote shards, if there are any."""
    caches = {host: one["cache"] for host, one in _by_host(report).items() if one["cache"]}
    errors = {host: cache["error"] for host, cache in caches.items() if "error" in cache}
    if errors:
        host, error = next(iter(errors.items()))
        told = f"{len(errors)} of {pluralize(len(caches), 'node')} have none, as {host}: {error}"
        yield CheckResult("fail", "cache", told)
    free = {host: cache["free_bytes"] for host, cache in caches.items() if host not in errors}
    if free:
        yield check_node_caches(max_gb, free)


def check_node_caches(max_gb: float, free_bytes: Mapping[str, int]) -> CheckResult:
    """Return whether the cache of remote shards finds room on each node."""
    tightest = min(free_bytes, key=lambda host: free_bytes[host])
    free_gb = free_bytes[tightest] / 1e9
    told = f"{free_gb:,.0f} GB free on {tightest}, and data.cache.max_gb={max_gb:g}"
    if free_gb < max_gb:
        told += ". The cache would fill the disk: take less, or another data.cache.dir"
        return CheckResult("warn", "cache", told)
    return CheckResult("ok", "cache", told)
