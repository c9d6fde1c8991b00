"""A job array: one job script that runs many others, each as an element with a fate of its own.

An element becomes the job script of its run, so that it is requeued, excluded from nodes and ended
like any job; what differs is that Slurm takes all of them in one call, and can hold some back.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import Template

from slurm.sbatch import SbatchRequest, sbatch_options


@dataclass(frozen=True)
class JobArray:
    """What is submitted in one call.

    Args:
        name: of the array.
        directory: absolute path; the outputs of the elements lie there.
        runs_file: in it, a run directory a line, whose `job.sbatch` element 0, 1, ... is.
        job: one of those jobs; the others ask Slurm for the same.
        num_elements: how many there are.
    """

    name: str
    directory: str
    runs_file: str
    job: SbatchRequest
    num_elements: int


def resource_key(job: SbatchRequest) -> tuple[str, ...]:
    """Return what a job asks Slurm for; jobs of which this is equal can be one array."""
    asked = sbatch_options(replace(job, name="", run_dir=""))
    return (*asked, f"array-parallelism={job.array_parallelism}")


def group_compatible(jobs: Sequence[SbatchRequest]) -> list[list[int]]:
    """Return the indices of the jobs, those that can be one array together, in their order."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, job in enumerate(jobs):
        groups.setdefault(resource_key(job), []).append(i)
    return list(groups.values())


def render_array(array: JobArray) -> str:
    """Return the script of an array.

    Raises:
        ValueError: an option of sbatch holds a line break, which no script can.
    """
    at_most = array.job.array_parallelism
    options = {
        "job-name": array.name,
        "output": f"{array.directory.replace('%', '%%')}/%A_%a.out",
        "array": f"0-{array.num_elements - 1}" + (f"%{at_most}" if at_most else ""),
    }
    return Template(_SCRIPT).substitute(
        directives="\n".join(
            f"#SBATCH --{option}" for option in sbatch_options(array.job, options)
        ),
        directory=shlex.quote(array.directory),
        runs_file=shlex.quote(array.runs_file),
    )


_SCRIPT = r"""#!/bin/bash
$directives

# A sweep of Tahoe. Each element is the job script of the run on its line of the list.
directory=$directory
run=$$(sed -n "$$((SLURM_ARRAY_TASK_ID + 1))p" "$$directory"/$runs_file)
[ -n "$$run" ] || { echo "error: $$directory/$runs_file has no such line" >&2; exit 1; }

# The output of an element is that of its run as well.
output=$${SLURM_ARRAY_JOB_ID}_$$SLURM_ARRAY_TASK_ID.out
ln -f "$$directory/$$output" "$$run/slurm/" 2>/dev/null \
    || ln -sf "$$directory/$$output" "$$run/slurm/"
exec bash "$$run/job.sbatch"
"""
