"""The script of an array: the reviewed one, and run by a real shell."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from sbatch_requests import sbatch_request

from slurm.job_array import JobArray, group_compatible, render_array
from slurm.sbatch import SbatchRequest

GOLDEN = Path(__file__).parents[2] / "support" / "golden"
JOB = sbatch_request("tahoe run", "/runs/a", "/venv/bin/python", nodes=2, array_parallelism=8)


def test_the_script_is_the_reviewed_one() -> None:
    array = JobArray("tahoe sweep-1", "/runs/sweeps/a sweep", "array-1.txt", JOB, 200)
    assert render_array(array) == (GOLDEN / "array.sbatch").read_text()


def test_jobs_that_request_the_same_resources_are_grouped() -> None:
    def job(i: int, **options: int) -> SbatchRequest:
        return replace(JOB, name=f"tahoe run-{i}", run_dir=f"/runs/{i}", **options)

    assert group_compatible([job(0), job(1), job(2)]) == [[0, 1, 2]]
    assert group_compatible([job(0), job(1, nodes=4), job(2), job(3, nodes=4)]) == [[0, 2], [1, 3]]
    assert group_compatible([job(0), job(1, array_parallelism=1)]) == [[0], [1]]
    assert group_compatible([]) == []


@pytest.mark.parametrize("name", ["a run", "it's", '"$(touch x)"', "%j;*"])
def test_an_element_runs_the_job_script_of_its_run(tmp_path: Path, name: str) -> None:
    sweep = tmp_path / f"sweep {name}"
    runs = [tmp_path / f"{name}-{i}" for i in range(3)]
    for directory in (sweep, *(run / "slurm" for run in runs)):
        directory.mkdir(parents=True)
    for run in runs:
        (run / "job.sbatch").write_text('printf %s "$0" && exit 75\n')
    (sweep / "array-1.txt").write_text("".join(f"{run}\n" for run in runs))
    (sweep / "7_1.out").write_text("output\n")
    script = render_array(JobArray("n", str(sweep), "array-1.txt", JOB, 3))

    def element(i: int) -> "subprocess.CompletedProcess[str]":
        environ = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(i), "PATH": "/bin"}
        return subprocess.run(
            ["/bin/bash", "-c", script],
            env=environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    first, again = element(1), element(1)  # it is requeued
    assert (first.stdout, first.returncode) == (f"{runs[1]}/job.sbatch", 75)
    assert (again.stdout, again.stderr) == (first.stdout, "")
    assert (runs[1] / "slurm" / "7_1.out").read_text() == "output\n"
    assert "has no such line" in element(3).stderr
    assert not (tmp_path / "x").exists()
