"""`tahoe shard ... --on slurm=NAME`: write a data set by jobs of Slurm, and watch them.

The source is listed here, once, and the jobs read the listing: what is wrong with it shows at once,
and no two parts can disagree about it. So are duplicates searched here.
"""

import os
import re
import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_sharding.io.text import truncated_list
from data_sharding.sources.base import Source
from data_sharding.writing.dataset_writer import is_published
from data_sharding.writing.parts import PlannedParts, load_parts, plan_parts, publish_parts
from data_sharding.writing.shard_tasks import WriteSettings
from orchestrator.cli.dataset import write_render
from orchestrator.cli.dataset.render import progress_bar
from orchestrator.cli.shared.commands import INTERRUPTED
from orchestrator.config.parse import ConfigError
from orchestrator.jobs.shard_jobs import ShardJobs
from orchestrator.launch.compose import absolute, compose
from orchestrator.number_format import pluralize
from orchestrator.run.rundir import RunError
from slurm import client
from slurm.errors import SlurmError

_OVERRIDE = re.compile(
    r"(?!slurm\.(nodes|spare_nodes|tasks_per_node|gpus_per_node)=)(\+?slurm[.=]|runs_dir=)"
)  # a part is one process on one node without GPU


def jobs_of(url: str, overrides: Sequence[str]) -> ShardJobs:
    """Return the jobs that write a data set, by overrides of the config group `slurm`."""
    for override in overrides:
        if not _OVERRIDE.match(override):
            raise ConfigError(
                f"--on {override}: the jobs of a data set have no use for it; nothing was written",
                value=override,
                hint="Each is one process on one node without GPU. Write slurm=NAME, "
                "slurm.KEY=VALUE or runs_dir=DIR; repeat --on for several.",
            )
    return ShardJobs.of(compose(("launcher=slurm", *overrides))[0].config, absolute(url))


def write(
    jobs: ShardJobs,
    opened: AbstractContextManager[Source],
    settings: WriteSettings,
    *,
    num_workers: int,
    num_parts: int,
    wait: bool,
) -> int:
    """Submit the jobs that write a set, unless they are there; return the exit code.

    Args:
        num_workers: the number of processes on this machine, for the search of duplicates.
        wait: whether to show the progress until the jobs end, and the findings then.
    """
    if reason := client.unreachable_reason():  # before the source is listed
        raise SlurmError(reason)
    try:
        if active := jobs.active():
            ids = sorted({job_id.partition("_")[0] for job_id in active})
            if not wait:
                raise _already_active(jobs, ids)
            print(f"jobs {', '.join(ids)} are writing {jobs.url}", flush=True)
            plan, source = load_parts(jobs.directory.path)
        else:
            with opened as source:
                plan = _plan(jobs, source, settings, num_workers, num_parts)
            _submit(jobs, plan, source)
        if not wait:
            return 0
        _wait(jobs, plan)
    except KeyboardInterrupt:
        write_render.print_interrupted(jobs.url, jobs_go_on=bool(jobs.active()))
        return INTERRUPTED
    if not is_published(jobs.url):
        raise _unfinished(jobs, plan)
    dataset = publish_parts(plan, source, lambda done, total: None)
    write_render.print_summary(jobs.url, source, replace(dataset, reused=False))
    return 0


def _plan(
    jobs: ShardJobs, source: Source, settings: WriteSettings, num_workers: int, num_parts: int
) -> PlannedParts:
    checks = settings.checks
    if checks and checks.shrink:
        write_render.print_resize_trial(checks.shrink, source, settings.seed)
    with write_render.progress_bars(source) as update:
        names = plan_parts(
            source,
            jobs.url,
            settings,
            num_workers=num_workers,
            on_hashing=partial(update, "hashing"),
        )
    num_parts = max(min(num_parts, len(names)), 1)
    num_cores = jobs.config.slurm.cpus_per_task or 1
    return PlannedParts(jobs.url, str(Path.cwd()), settings, names, num_parts, num_cores)


def _submit(jobs: ShardJobs, plan: PlannedParts, source: Source) -> None:
    array, end = jobs.submit(plan, source)
    shards, parts = pluralize(len(plan.names), "shard"), pluralize(plan.num_parts, "part")
    lines = (
        f"submitted array {array}: {shards} of {plan.url} in {parts}",
        f"submitted job {end}: publishes the set after them",
        f"  squeue --jobs {array},{end}    scancel {array} {end}",
        f"  tail -f {jobs.directory.shell_path}/logs/*/rank-*.log",
        "  The same command with --wait shows the progress. It continues where jobs have failed.",
    )
    print("\n".join(lines), flush=True)


def _wait(jobs: ShardJobs, plan: PlannedParts) -> None:
    with progress_bar("writing", len(plan.names), unit="shards") as show:
        jobs.wait(lambda: show(len(plan.names) if is_published(plan.url) else plan.num_finished()))


def _already_active(jobs: ShardJobs, ids: Sequence[str]) -> RunError:
    return RunError(
        f"jobs {', '.join(ids)} are writing {jobs.url} already; nothing was submitted",
        value=ids[0],
        hint=f"Add --wait to see their progress, or end them: scancel {' '.join(ids)}",
    )


def _unfinished(jobs: ShardJobs, plan: PlannedParts) -> RunError:
    logs = shlex.quote(os.fspath(jobs.directory.path / "logs"))
    causes = truncated_list([f" ({error})" for error in jobs.errors()], 2, "")
    return RunError(
        f"the jobs have ended after {plan.num_finished():,} of {len(plan.names):,} shards, and "
        f"{plan.url} is not published{causes}",
        value=plan.url,
        hint=f"Their logs are in {logs}. The same command writes what is missing.",
    )
