"""A job that does not train: it starts ranks like a run's job, and they check their nodes."""

from slurm.job_script import LAUNCH_RANKS, PREAMBLE
from slurm.sbatch import SbatchRequest, render_template, sbatch_options

_TIMEOUT_MIN = 5


def render_node_check(job: SbatchRequest, *, worker: str) -> str:
    """Render the script of a check of the nodes that a job would run on.

    Args:
        worker: the module that each rank runs.
    """
    replaced = {
        "job-name": "tahoe doctor",
        "time": _TIMEOUT_MIN,
        "signal": None,
        "requeue": False,
        "no-requeue": True,
    }
    return render_template(
        PREAMBLE + LAUNCH_RANKS + _CHECK,
        job,
        sbatch_options(job, replaced),
        purpose="A check of the nodes that a run would be given. Written by `tahoe doctor`.",
        module=worker,
    )


_CHECK = r"""
attempt=1 nodes=$$SLURM_JOB_NODELIST num_nodes=$$SLURM_JOB_NUM_NODES
mkdir -p "$$run/logs/attempt-0001"

# Ranks on a node that does not see this directory could not report it. NFS may take a while.
srun --ntasks="$$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 bash -c '
    for _ in {1..30}; do [ -d "$$0/logs/attempt-0001" ] && exit; sleep 1; done; hostname' \
    "$$run" >"$$run/blind" || exit
[ ! -s "$$run/blind" ] || exit 1

launch_ranks
exit "$$code"
"""
