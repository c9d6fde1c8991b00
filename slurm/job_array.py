"""A job array: one job script that runs the job scripts of many runs.

An element becomes the job script of its run, so it is requeued, excluded from nodes and ended like
any job; but Slurm takes all of them in one call, and can limit how many run at a time.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import Template

from slurm.sbatch import SbatchRequest, directives, sbatch_options


@dataclass(frozen=True)
class JobArray:
    """An array that is submitted in one call.

    Args:
        directory: the absolute path of the directory for the elements' outputs.
        runs_file: a file in it with a run directory a line, whose `job.sbatch` an element runs.
        job: one of those jobs; the others request the same resources.
    """

    name: str
    directory: str
    runs_file: str
    job: SbatchRequest
    num_elements: int


def group_compatible(jobs: Sequence[SbatchRequest]) -> list[list[int]]:
    """Group the indices of jobs that request the same resources and so can be one array."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, job in enumerate(jobs):
        options = sbatch_options(replace(job, name="", run_dir=""))
        groups.setdefault((*options, job.array_parallelism), []).append(i)
    return list(groups.values())


def render_array(array: JobArray) -> str:
    """Render the script of an array; ValueError if an option of sbatch has a line break."""
    options = {
        "job-name": array.name,
        "output": f"{array.directory.replace('%', '%%')}/%A_%a.out",
        "array": element_range(array.num_elements, array.job.array_parallelism),
    }
    return Template(_SCRIPT).substitute(
        directives=directives(sbatch_options(array.job, options)),
        directory=shlex.quote(array.directory),
        runs_file=shlex.quote(array.runs_file),
    )


def element_range(num_elements: int, parallelism: int | None) -> str:
    """Return the value of sbatch's option --array.

    Args:
        parallelism: the most elements that run at the same time; None for no limit.
    """
    return f"0-{num_elements - 1}" + (f"%{parallelism}" if parallelism else "")


_SCRIPT = r"""#!/bin/bash
$directives

# A sweep of Tahoe. Each element is the job script of the run on its line of the list.
directory=$directory
run=$$(sed -n "$$((SLURM_ARRAY_TASK_ID + 1))p" "$$directory"/$runs_file)
[ -n "$$run" ] || { echo "error: $$directory/$runs_file has no such line" >&2; exit 1; }

# The output of an element is the output of its run as well.
output=$${SLURM_ARRAY_JOB_ID}_$$SLURM_ARRAY_TASK_ID.out
ln -f "$$directory/$$output" "$$run/slurm/" 2>/dev/null \
    || ln -sf "$$directory/$$output" "$$run/slurm/"
exec bash "$$run/job.sbatch"
"""
