"""The text of job scripts, in parts: templates that `slurm.sbatch` fills in.

The script of a run takes the run's lock and makes attempts: it records an attempt, starts the ranks
with srun, and leaves the choice of the next action to the module `hooks`. Submitting it by hand has
the same effect.
"""

PREAMBLE = r"""#!/bin/bash
$directives

# $purpose
run=$run
python=$python
# Set by --export=NONE: srun would not pass on to the ranks what is exported here.
unset SLURM_EXPORT_ENV
# From the shell that submitted this: sbatch would prefer them for the next attempt.
unset $input_variables
# Slurm takes soft limits from the shell that submitted this; on a login node, minutes of CPU.
for limit in -t -n -l -v -d -u; do ulimit -S $$limit hard; done
$exports

${setup}"""

LAUNCH_RANKS = r"""launch_ranks() { # as $$attempt, on $$nodes
    first_node=$$(scontrol show hostnames "$$nodes" | head -n 1)
    [ -n "$$first_node" ] || { echo "error: scontrol names no node of this job" >&2; exit 1; }
    # By the address that Slurm itself uses: other nodes, and containers, may not know the name.
    address=$$(scontrol --oneliner show node "$$first_node" | grep -o ' NodeAddr=[^ ]*')
    address=$${address#*=}
    export MASTER_ADDR=$${address:-$$first_node}
    # Another for each attempt: a socket of the last one may linger.
    export MASTER_PORT=$$((20000 + (SLURM_JOB_ID * 101 + attempt) % 12000))
    export TAHOE_ATTEMPT=$$attempt LOCAL_WORLD_SIZE=$tasks_per_node
    export SRUN_CPUS_PER_TASK=$${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch
    logs=$$run/logs/attempt-$$(printf %04d "$$attempt")
    [ -z "$$signalled" ] || return # it would not reach ranks that start after it

    srun $srun \
        bash -c 'trap "" TERM USR1 USR2 # until the worker handles them
            export RANK=$$SLURM_PROCID LOCAL_RANK=$$SLURM_LOCALID WORLD_SIZE=$$SLURM_NTASKS
            exec "$$@" -m $module "$$0"' "$$run" \
        $interpreter 2>"$$logs/srun.log" &
    interrupted=yes
    while [ -n "$$interrupted" ]; do # a signal interrupts `wait`, but not srun
        interrupted=
        wait "$$!"
        code=$$?
    done
    cat "$$logs/srun.log" >&2
}
"""

_TAKE_RUN = r"""# In an array SLURM_JOB_ID of one element is the id of the whole array.
job=$${SLURM_ARRAY_JOB_ID:+$${SLURM_ARRAY_JOB_ID}_$$SLURM_ARRAY_TASK_ID}
job=$${job:-$$SLURM_JOB_ID}
state() { squeue --noheader --jobs "$$job" --format '%T %r'; }
resubmitted= excluded=
resubmit() {
    [ -z "$$resubmitted" ] || return 0
    local new
    new=$$(sbatch --parsable --dependency=afterany:"$$job" \
        $${excluded:+--exclude="$$excluded"} "$$run/job.sbatch") || return
    printf '{"slurm_job_id": "%s"}\n' "$${new%%;*}" >>"$$run/slurm_jobs.jsonl"
    resubmitted=yes
}

# The ranks handle signals: they save and exit. This shell waits for them, and starts none after a
# signal; but at the time limit it is killed if that takes long, so the next job is submitted first.
signalled=
trap 'interrupted=yes signalled=signalled' USR1 USR2
trap 'interrupted=yes signalled=signalled; [[ $$(state) == *TimeLimit ]] && resubmit' TERM

exec 9>>"$$run/lock"
flock --timeout 60 9
case $$? in
0) ;;
1)
    echo "error: another attempt of $$run is running, on $$(cat "$$run/lock")" >&2
    exit 1
    ;;
*)
    echo "error: $$run is on a file system without locks: attempts would overwrite each other's" \
        "files. Mount it with locks (Lustre: -o flock), or choose another: runs_dir=DIR" >&2
    exit 1
    ;;
esac

"""

_ATTEMPTS = r"""
nodes=$$SLURM_JOB_NODELIST
while true; do # one attempt after the other
    attempt=$$("$$python" -m $hooks begin "$$run" "$$nodes") || exit # 75: stopped
    [ -n "$$attempt" ] || exit 0 # already finished
    # Not `<<<`: bash before 5.1 needs a file for it, and the disk of the node may be full.
    read -r attempt nodes num_nodes < <(echo "$$attempt")

    code=143 # of an attempt that a signal has prevented
    $launch

    next=$$("$$python" -m $hooks end "$$run" "$$attempt" "$$code" \
        "$$(state)" $$signalled) || exit
    read -r next nodes pause < <(echo "$$next")
    [ "$$next" = restart ] || break
    sleep "$$pause" &
    wait "$$!" # until a signal comes
done

[ -z "$$resubmitted" ] || exit 75
excluded=$$nodes # that the run has failed on too often
case $$next in
    requeue)
        trap "" TERM # requeue sends it to every process of the job
        if scontrol requeue "$$job"; then
            # Slurm accepts it only for a waiting job.
            [ -z "$$excluded" ] || scontrol update JobId="$$job" ExcNodeList="$$excluded"
            exit 75
        fi
        ;;
    resubmit) ;;
    *) exit "$$next" ;;
esac
resubmit || exit
exit 75
"""

# Slurm lets a job of --no-kill run on without the node of its script: it would hold the other nodes
# until its limit. So while ranks run, the job's last node looks for that one.
_WATCH_SCRIPT = r"""
watch_script() {
    local nodes='squeue --noheader --format %N --jobs' names='scontrol show hostnames'
    # Without the options of the job, which are in SLURM_*: its memory and GPUs are the ranks'.
    env $(compgen -e SLURM_ | grep -vx SLURM_CONF | sed 's/^/-u /') \
        srun --jobid="$SLURM_JOB_ID" --overlap --nodes=1 --ntasks=1 --ntasks-per-node=1 \
        --gres=none --mpi=none --input=none \
        --nodelist="$($names "$($nodes "$job")" | grep -vx "$SLURMD_NODENAME" | tail -n 1)" \
        bash -c 'trap "" USR1 USR2
            while sleep 20; do
                left=$('"$nodes"' "$0") && [ -n "$left" ] || continue
                left=$('"$names"' "$left") && [ -n "$left" ] || continue
                echo "$left" | grep -qx "$1" || scontrol requeue "$0"
            done' "$job" "$SLURMD_NODENAME" &>/dev/null &
    watcher=$!
}
"""
_LAUNCH_WATCHED = """watch_script
    launch_ranks
    kill "$watcher" 2>/dev/null"""


def attempts(*, watches_script: bool) -> str:
    """Return the part of a run's script after the preamble.

    Args:
        watches_script: the ranks' nodes requeue the job when the node of the script is lost.
    """
    if not watches_script:
        return _TAKE_RUN + LAUNCH_RANKS + _ATTEMPTS.replace("$launch", "launch_ranks")
    watch, launch = (text.replace("$", "$$") for text in (_WATCH_SCRIPT, _LAUNCH_WATCHED))
    return _TAKE_RUN + LAUNCH_RANKS + watch + _ATTEMPTS.replace("$launch", launch)
