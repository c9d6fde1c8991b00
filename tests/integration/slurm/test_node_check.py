"""The script of a node check is the reviewed one."""

import subprocess
from pathlib import Path

from sbatch_requests import sbatch_request

from slurm.node_check import render_node_check

GOLDEN = Path(__file__).parents[2] / "support" / "golden"
JOB = sbatch_request(
    "tahoe run",
    "/runs/doctor/a look",
    "/venv/bin/python",
    ("/code",),
    nodes=4,
    tasks_per_node=8,
    gpus_per_node=8,
    timeout_min=1440,
    partition="gpu",
    setup=("ulimit -n 65536",),
    additional_parameters={"reservation": "night"},
)


def test_the_script_is_the_reviewed_one(tmp_path: Path) -> None:
    script = render_node_check(JOB, worker="orchestrator.torch_workers.node_probe")
    assert script == (GOLDEN / "node_check.sbatch").read_text()
    (tmp_path / "job.sbatch").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "job.sbatch"], check=True)
