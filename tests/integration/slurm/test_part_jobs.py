"""The script of a part, run by a real shell with programs that stand for Slurm's."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from sbatch_requests import sbatch_request

from slurm.part_jobs import one_process, render_parts

GOLDEN = Path(__file__).parents[2] / "support" / "golden"
PROGRAMS = {
    "srun": '#!/bin/bash\necho "srun ${*//[[:space:]]/ }" >>calls\nexit "$(<code)"\n',
    "scontrol": '#!/bin/bash\necho "scontrol $*" >>calls\nexit "$(<requeue)"\n',
}
JOB = one_process(
    sbatch_request(
        "tahoe shards-photos-1a2b3c4d",
        "/runs/shards photos",
        "/venv/bin/python",
        ("/code",),
        nodes=4,
        spare_nodes=1,
        tasks_per_node=8,
        gpus_per_node=8,
        cpus_per_task=12,
        array_parallelism=5,
    )
)


def render(num_parts: int | None, run_dir: str = JOB.run_dir) -> str:
    job = replace(JOB, run_dir=run_dir)
    return render_parts(job, worker="worker", num_parts=num_parts, max_restarts=3)


def test_the_scripts_are_the_reviewed_ones() -> None:
    assert render(16) == (GOLDEN / "parts.sbatch").read_text()
    differing = {*render(None).splitlines()} - {*render(16).splitlines()}
    assert {line for line in differing if line.startswith("#SBATCH")} == {
        '#SBATCH --job-name="tahoe shards-photos-1a2b3c4d (end)"',
        '#SBATCH --output="/runs/shards photos/slurm/%j.out"',
    }


@pytest.mark.parametrize(
    ("code", "restarts", "refused", "expected", "is_requeued"),
    [
        (0, 0, 0, 0, False),
        (1, 0, 0, 1, False),  # an error, which it would meet again
        (75, 99, 0, 75, True),  # stopped before the time limit
        (137, 0, 0, 75, True),  # killed
        (137, 2, 0, 75, True),
        (137, 3, 0, 137, False),
        (143, 0, 0, 143, False),  # cancelled
        (75, 0, 1, 75, False),  # by a site without requeues
    ],
)
def test_a_part_that_was_stopped_is_requeued(
    code: int, restarts: int, refused: int, expected: int, is_requeued: bool, tmp_path: Path
) -> None:
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "code").write_text(str(code))
    (tmp_path / "requeue").write_text(str(refused))
    environ = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "9",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_JOB_NODELIST": "node2",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    script = render(4, str(tmp_path))
    done = subprocess.run(["bash", "-c", script], env=environ, cwd=tmp_path, check=False)
    assert done.returncode == expected
    started, *others = (tmp_path / "calls").read_text().splitlines()
    assert f"-m worker {tmp_path}" in started
    assert f"--output={tmp_path}/logs/part-0003/rank-%5t.log" in started
    assert others == ["scontrol requeue 7_3"] * (is_requeued or bool(refused))
