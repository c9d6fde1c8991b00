"""Checks of the nodes of a run: a job's ranks report on their nodes."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.parse import to_dict
from orchestrator.config.schema import Config
from orchestrator.jobs.trial_jobs import run_node_check
from orchestrator.launch.checks.model_cost import ModelCost
from orchestrator.number_format import pluralize
from orchestrator.preflight.local_checks import CheckResult, check_cache_sizes
from orchestrator.run.rundir import RunDir, RunError

_MAX_SKEW_S = 1.0
_TAIL_CHARACTERS = 2000
_MAX_LOGS = 3
_SHARED_DIR_HINT = "Choose a runs_dir that all nodes share and write to"

Report = Sequence[dict[str, Any]]


def check_nodes(config: Config, cost: ModelCost | None) -> Iterator[CheckResult]:
    """Check the nodes of a job like this config's.

    The job's directory, in `runs_dir`, is removed if all is well.
    """
    run = RunDir(_make_directory(Path(config.runs_dir, "doctor")))
    run.write_config(to_dict(config))
    ended = run_node_check(run, config)
    report, blind = run.path / "report.json", run.path / "blind"
    if blind.exists() and (hosts := blind.read_text().split()):
        message = f"{', '.join(hosts)} cannot see {run.path}. {_SHARED_DIR_HINT}"
        yield CheckResult("fail", "run directory", message)
        return
    if not report.exists():
        yield CheckResult("fail", "nodes", f"{ended}: no report. {_tail_logs(run)}")
        return
    results = list(evaluate_report(config, cost, json.loads(report.read_text())))
    yield from results
    if all(result.status == "ok" for result in results):
        shutil.rmtree(run.path)
    else:
        print(f"the report of the nodes is in {run.path}", file=sys.stderr)


def _make_directory(parent: Path) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=time.strftime("%Y-%m-%d-"), dir=parent))
        (path / "slurm").mkdir()
    except OSError as error:
        raise RunError(
            f"{parent} cannot be made: {error.strerror}. The nodes were not checked, since they "
            "would have written there",
            value=parent,
            hint="Choose another directory with runs_dir=DIR.",
        ) from None
    return path


def _tail_logs(run: RunDir) -> str:
    logs = sorted(run.path.glob("logs/*/*.log"))
    files = [*run.path.glob("slurm/*.out"), *logs[:_MAX_LOGS]]
    texts = {file: file.read_text(errors="replace").strip() for file in files}
    tails = [f"{file}:\n{text[-_TAIL_CHARACTERS:]}" for file, text in texts.items() if text]
    return "\n".join(tails or [f"Nor is there any output in {run.path}: can the nodes see it?"])


def evaluate_report(
    config: Config, cost: ModelCost | None, report: Report
) -> Iterator[CheckResult]:
    """Evaluate the report of the ranks."""
    yield _check_gpus(config, report)
    yield _check_software(report)
    yield _check_run_dir(report)
    yield _check_clocks(report)
    if len(report) > 1:
        yield _check_all_reduce(report, cost)
    yield from _check_reads(report)
    if config.data.cache != "none":
        yield from _check_caches(config.data.cache.max_gb, report)


def _first_ranks(report: Report) -> dict[str, dict[str, Any]]:
    """Return the report of the first rank of each node."""
    first: dict[str, dict[str, Any]] = {}
    for rank in report:
        first.setdefault(rank["host"], rank)
    return first


def _check_gpus(config: Config, report: Report) -> CheckResult:
    requested = config.slurm.gpus_per_node
    counts = {host: rank["num_gpus"] for host, rank in _first_ranks(report).items()}
    visible = ", ".join(f"{host}: {count}" for host, count in counts.items())
    names = " ".join(sorted({rank["gpu"] for rank in report if rank["gpu"]}))
    message = f"{requested} a node requested; visible to torch: {visible} {names}".rstrip()
    fewest = min(counts.values())
    if requested and fewest == 0:
        hint = "Ranks would train on the CPU: is this torch built for CUDA, the driver loaded?"
        return CheckResult("fail", "GPUs", f"{message}. {hint}")
    if 1 < fewest < requested:  # a site may show each rank its own GPU alone
        hint = "Some ranks would find no GPU of their own: is one broken? See `nvidia-smi` there"
        return CheckResult("fail", "GPUs", f"{message}. {hint}")
    if not requested and max(counts.values()) > 0:
        return CheckResult("warn", "GPUs", f"{message}. They stay unused: set slurm.gpus_per_node")
    return CheckResult("ok", "GPUs", message)


def _check_software(report: Report) -> CheckResult:
    versions = {host: rank["versions"] for host, rank in _first_ranks(report).items()}
    if len(set(versions.values())) == 1:
        message = f"{report[0]['versions']} on {pluralize(len(versions), 'node')}"
        return CheckResult("ok", "software", message)
    listed = ", ".join(f"{host}: {software}" for host, software in versions.items())
    hint = "Ranks would compute different things. Put the environment where all nodes see it"
    return CheckResult("fail", "software", f"{listed}. {hint}")


def _check_run_dir(report: Report) -> CheckResult:
    unseen = {rank["host"]: rank["unseen"] for rank in report if rank["unseen"]}
    unlocked = {rank["host"]: rank["unlocked"] for rank in report if rank["unlocked"]}
    if unlocked:
        host, why = next(iter(unlocked.items()))
        nodes = pluralize(len(_first_ranks(report)), "node")
        message = f"no locks on {len(unlocked)} of {nodes}, as {host}: {why}"
        return CheckResult("fail", "run directory", message)
    if unseen:
        listed = (f"{host} does not see those of ranks {ranks}" for host, ranks in unseen.items())
        return CheckResult("fail", "run directory", f"{'; '.join(listed)}. {_SHARED_DIR_HINT}")
    message = "every rank sees the files of all others, and their locks"
    return CheckResult("ok", "run directory", message)


def _check_clocks(report: Report) -> CheckResult:
    ahead_s = [rank["clock"]["ahead_s"] for rank in report]
    within_s = max(rank["clock"]["within_s"] for rank in report)
    skew_s = max(ahead_s) - min(ahead_s)
    message = f"clocks differ by {1000 * skew_s:.1f} ms at most (+- {1000 * within_s:.1f})"
    if skew_s - within_s > _MAX_SKEW_S:
        message += ". Times in logs and MLflow would be out of order: synchronize them with NTP"
        return CheckResult("warn", "clocks", message)
    return CheckResult("ok", "clocks", message)


def _check_all_reduce(report: Report, cost: ModelCost | None) -> CheckResult:
    bytes_per_s = min(rank["all_reduce"]["bytes_per_s"] for rank in report)
    latency_s = max(rank["all_reduce"]["latency_s"] for rank in report)
    ranks = pluralize(len(report), "rank")
    message = f"{bytes_per_s / 1e9:.3g} GB/s between {ranks}, {1000 * latency_s:.2f} ms at least"
    if cost:
        num_bytes = 2 * (len(report) - 1) / len(report) * 4 * cost.num_params
        step_ms = 1000 * num_bytes / bytes_per_s
        message += f"; this network's gradients take {step_ms:.3g} ms a step"
    return CheckResult("ok", "all-reduce", message)


def _check_reads(report: Report) -> Iterator[CheckResult]:
    reads = {rank["host"]: rank["read"] for rank in report if rank["read"]}
    errors = {host: read["error"] for host, read in reads.items() if "error" in read}
    if errors:
        host, error = next(iter(errors.items()))
        message = f"{len(errors)} of {len(reads)} nodes cannot read the data, as {host}: {error}"
        yield CheckResult("fail", "shards", message)
    succeeded = [read for host, read in reads.items() if host not in errors]
    rates = [
        (read["num_bytes"] / read["seconds"], read["num_images"] / read["seconds"])
        for read in succeeded
        if read["num_bytes"]
    ]
    if num_idle := len(succeeded) - len(rates):
        message = f"{num_idle} nodes had no shard of their own to read: there are fewer shards"
        yield CheckResult("warn", "shards", f"{message} than nodes, so some read the same")
    if rates:
        slow, fast = min(rates), max(rates)
        message = f"{slow[0] / 1e6:,.0f} to {fast[0] / 1e6:,.0f} MB/s a node read at the same time"
        yield CheckResult("ok", "shards", f"{message}, {slow[1]:,.0f} to {fast[1]:,.0f} images/s")


def _check_caches(max_gb: float, report: Report) -> Iterator[CheckResult]:
    """Check the caches of the nodes, if the data are remote."""
    caches = {host: rank["cache"] for host, rank in _first_ranks(report).items() if rank["cache"]}
    errors = {host: cache["error"] for host, cache in caches.items() if "error" in cache}
    if errors:
        host, error = next(iter(errors.items()))
        nodes = pluralize(len(caches), "node")
        yield CheckResult(
            "fail", "cache", f"{len(errors)} of {nodes} have none, as {host}: {error}"
        )
    free = {host: cache["free_bytes"] for host, cache in caches.items() if host not in errors}
    if free:
        yield check_cache_sizes(max_gb, free)
