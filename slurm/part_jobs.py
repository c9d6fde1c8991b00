"""The jobs of a work that is done in parts: an array, and a job that follows it.

Unlike the ranks of a run, parts know nothing of each other: an element is one process on one node,
which finds in its directory what is left to do, and is requeued by itself. Nothing is lost with a
process but what it has not recorded there.
"""

from dataclasses import replace

from slurm.job_array import element_range
from slurm.job_script import PREAMBLE
from slurm.sbatch import SbatchRequest, render_template, sbatch_options


def one_process(job: SbatchRequest) -> SbatchRequest:
    """Return the request for a part: of the options of a run, those for one process without GPU."""
    return replace(job, nodes=1, spare_nodes=0, tasks_per_node=1, gpus_per_node=0)


def render_parts(
    job: SbatchRequest, *, worker: str, num_parts: int | None, max_restarts: int
) -> str:
    """Render the script of the array, or of the job that follows it.

    Args:
        job: a request for one process; its run directory is that of the work.
        worker: the module of a part, with that directory as its argument. It exits with 75 if the
            signal before the time limit has stopped it, and finds the number of its part in
            SLURM_ARRAY_TASK_ID.
        num_parts: the number of elements; None for the job that follows.
        max_restarts: the number of times that Slurm may have started a part again, beyond which a
            part that was killed is not.

    Raises:
        ValueError: an option of sbatch has a line break.
    """
    options: dict[str, object] = {"job-name": f"{job.name} (end)"}
    if num_parts is not None:
        options = {
            "output": f"{job.run_dir.replace('%', '%%')}/slurm/%A_%a.out",
            "array": element_range(num_parts, job.array_parallelism),
        }
    return render_template(
        PREAMBLE + _PART.replace("$max_restarts", str(max_restarts)),
        job,
        sbatch_options(job, options),
        purpose="A part of a data set, or its end. Written by `tahoe shard --on`.",
        module=worker,
    )


_PART = r"""
# In an array SLURM_JOB_ID of one element is the id of the whole array.
job=$${SLURM_ARRAY_JOB_ID:+$${SLURM_ARRAY_JOB_ID}_$$SLURM_ARRAY_TASK_ID}
job=$${job:-$$SLURM_JOB_ID}
nodes=$$SLURM_JOB_NODELIST num_nodes=1 logs=$$run/logs/end
[ -z "$$SLURM_ARRAY_TASK_ID" ] || logs=$$run/logs/part-$$(printf %04d "$$SLURM_ARRAY_TASK_ID")
mkdir -p "$$logs" || exit
export SRUN_CPUS_PER_TASK=$${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch

srun $srun \
    $interpreter -m $module "$$run"
code=$$?

# 75: stopped before the time limit. Above 128: killed, and not by SIGTERM as a cancelled job is.
if [ "$$code" -eq 75 ] || { [ "$$code" -gt 128 ] && [ "$$code" -ne 143 ] \
    && [ "$${SLURM_RESTART_COUNT:-0}" -lt $max_restarts ]; }; then
    trap "" TERM # requeue sends it to every process of the job
    scontrol requeue "$$job" && exit 75
fi
exit "$$code"
"""
