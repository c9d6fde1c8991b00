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

"""

_END = r"""exit "$$code"
"""
