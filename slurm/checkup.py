"""A job that does not train: it starts ranks as a run's job does, and lets them look around."""

from slurm.job import HEAD, RANKS, Job, fill, sbatch_options

_TIMEOUT_MIN = 5


def render_checkup(job: Job) -> str:
    """Return the script of a check-up of the nodes that a job would run on.

    Raises:
        ValueError: an option of sbatch holds a line break, which no script can.
    """
    replaced = {
        "job-name": "tahoe doctor",
        "time": _TIMEOUT_MIN,
        "signal": None,
        "requeue": False,
        "no-requeue": True,
    }
    return fill(
        HEAD + _BEGIN + RANKS + _END,
        job,
        sbatch_options(job, replaced),
        purpose="A look at the nodes that a run would be given. Written by `tahoe doctor`.",
        module="orchestrator.training.checkup",
    )


_BEGIN = r"""attempt=1
mkdir -p "$$run/logs/attempt-0001"

# Ranks on a node that does not see this directory could not even say so. NFS may take a while.
srun --ntasks="$$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 bash -c '
    for _ in {1..30}; do [ -d "$$0/logs/attempt-0001" ] && exit; sleep 1; done; hostname' \
    "$$run" >"$$run/blind" || exit
[ ! -s "$$run/blind" ] || exit 1

"""

_END = r"""exit "$$code"
"""
