"""The loop of the job script, run by a real shell with programs that stand for Slurm's and ours."""

import os
import subprocess
from pathlib import Path

import pytest
from sbatch_requests import sbatch_request

from slurm import sbatch

HOOKS = """#!/bin/bash
# As `python -m hooks begin|end ...`: each call takes the next line of its file, and runs it.
echo "$3 ${*:5}" >>calls
line=$(sed -n "$(grep -c "^$3" calls)p" "$3")
eval "$line"
"""
PROGRAMS = {
    "python": HOOKS,
    "srun": '#!/bin/bash\necho "srun $MASTER_PORT ${*//[[:space:]]/ }" >>calls; exit 9\n',
    "scontrol": '#!/bin/bash\n[ "$1" = requeue ] && echo requeue >>calls; echo node1\n',
    "squeue": "#!/bin/bash\necho RUNNING None\n",
}


def run_script(directory: Path, begin: list[str], end: list[str]) -> tuple[int, list[str]]:
    """Run a job script whose hooks reply with these lines; return its exit code and the calls."""
    for name, text in PROGRAMS.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    for name, lines in (("begin", begin), ("end", end)):
        (directory / name).write_text("".join(f"{line}\n" for line in lines))
    for attempt in (1, 2, 3):
        (directory / f"logs/attempt-000{attempt}").mkdir(parents=True)
    job = sbatch_request("n", str(directory), str(directory / "python"))
    script = sbatch.render_sbatch(job, worker="worker", hooks="hooks")
    environ = {
        "PATH": f"{directory}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }
    done = subprocess.run(
        ["bash", "-c", f"echo $$ >pid\n{script}"],
        env=environ,
        cwd=directory,
        timeout=30,
        check=False,
    )
    return done.returncode, (directory / "calls").read_text().splitlines()


def test_attempts_follow_in_one_job_on_other_ports(tmp_path: Path) -> None:
    code, calls = run_script(
        tmp_path,
        ["echo 1 node1 1", "echo 2 node2 1"],
        ["echo restart node2,node3", "echo 0"],
    )
    assert code == 0
    kinds = [call.split()[0] for call in calls]
    assert kinds == ["begin", "srun", "end", "begin", "srun", "end"]
    assert calls[0] == "begin node[1-2]"
    assert calls[2] == "end 1 9 RUNNING None"
    assert calls[3] == "begin node2,node3"  # those that are well
    first, second = (call.split() for call in calls if call.startswith("srun"))
    assert first[1] != second[1]
    assert "--nodelist=node2" in second


@pytest.mark.parametrize("signal", ["USR1", "USR2", "TERM"])
@pytest.mark.parametrize("during", ["begin", "end"])
def test_no_signal_between_attempts_is_lost(tmp_path: Path, signal: str, during: str) -> None:
    """It starts no ranks, which would not know of it, and the hook learns of it."""
    kill = {
        name: f"kill -{signal} $(<pid); " if name == during else "" for name in ("begin", "end")
    }
    code, calls = run_script(
        tmp_path,
        ["echo 1 node1 1", f"{kill['begin']}echo 2 node1 1"],
        [f"{kill['end']}echo restart node1", "echo requeue"],
    )
    assert code == 75
    kinds = [call.split()[0] for call in calls]
    assert kinds == ["begin", "srun", "end", "begin", "end", "requeue"]
    assert calls[-2] == "end 2 143 RUNNING None signalled"
