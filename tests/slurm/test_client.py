"""What is told where there is no Slurm, or none that answers."""

from pathlib import Path

import pytest

from slurm import client
from slurm.errors import SlurmError


def program(directory: Path, name: str, body: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    (tmp_path / "job.sbatch").write_text("#!/bin/bash\n#SBATCH --time=60\n#SBATCH --requeue\n")
    return tmp_path


def test_a_machine_without_slurm_is_told_so(bin_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bin_dir))
    with pytest.raises(SlurmError, match=r"no `sbatch` on this machine.*tahoe train"):
        client.submit(bin_dir / "job.sbatch")
    assert client.queued_jobs([]) == {}  # nothing was submitted, so nobody need be asked


def test_what_slurm_says_is_passed_on(bin_dir: Path) -> None:
    said = "sbatch: error: invalid partition specified: gpuu"
    program(bin_dir, "sbatch", f"echo '{said}' >&2; exit 1")
    with pytest.raises(SlurmError, match=r"`sbatch` failed: invalid partition .*: gpuu"):
        client.submit(bin_dir / "job.sbatch")


def test_a_submit_from_inside_a_job_takes_nothing_from_it(
    bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    monkeypatch.setenv("SLURM_CONF", "/etc/mine.conf")
    program(bin_dir, "sbatch", "env > $0.env; echo '7;cluster'")
    assert client.submit(bin_dir / "job.sbatch") == "7"
    seen = (bin_dir / "sbatch.env").read_text().splitlines()
    assert [line for line in seen if line.startswith("SLURM")] == ["SLURM_CONF=/etc/mine.conf"]


def test_only_jobs_that_were_asked_for_are_told(bin_dir: Path) -> None:
    line = "%s|PENDING|Resources|2|2026-01-01T00:00:00|1:00|1:00"
    program(bin_dir, "squeue", f"printf '{line}\\n' 3 4_1 5")
    found = client.queued_jobs(["4_1", "9"])
    assert list(found) == ["4_1"]
    assert (found["4_1"].state, found["4_1"].num_nodes) == ("PENDING", 2)


@pytest.mark.parametrize(
    ("line", "reason", "start", "time_left"),
    [
        ("RUNNING|None|1|2026-01-01T00:00:00|59:54|1:00:00", "", "2026-01-01T00:00:00", "59:54"),
        ("RUNNING|None|1|2026-01-01T00:00:00|364-23:59:54|365-00:00:00", "", None, ""),
        ("RUNNING|None|1|2026-01-01T00:00:00|UNLIMITED|UNLIMITED", "", None, ""),
        ("PENDING|Priority|1|N/A|1:00|1:00", "Priority", "", "1:00"),
        ("PENDING|None|1|N/A|NOT_SET|NOT_SET", "", "", ""),
    ],
)
def test_what_slurm_does_not_know_is_nothing(
    bin_dir: Path, line: str, reason: str, start: str | None, time_left: str
) -> None:
    program(bin_dir, "squeue", f"echo '5|{line}'")
    job = client.queued_jobs(["5"])["5"]
    assert (job.reason, job.time_left) == (reason, time_left)
    assert start is None or job.start == start


def test_accounting_is_asked_where_there_is_any(
    bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(bin_dir))
    assert client.final_states(["5"]) == {}  # no such program
    program(bin_dir, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert client.final_states(["5"]) == {}
    program(bin_dir, "sacct", 'echo "$@" > $0.asked; printf "4_1|NODE_FAIL\\n5|CANCELLED by 0\\n"')
    assert client.final_states(["4_1", "5"]) == {"4_1": "NODE_FAIL", "5": "CANCELLED by 0"}
    assert "--jobs 4_1,5" in (bin_dir / "sacct.asked").read_text()
    program(bin_dir, "sacct", "echo '5|FAILED'")
    assert client.final_states([]) == {}  # nobody need be asked


def test_slurm_says_when_a_job_would_start(bin_dir: Path) -> None:
    program(bin_dir, "sbatch", 'echo "$1 $2" > $0.asked; echo "sbatch: Job 3 to start at 9" >&2')
    script = bin_dir / "job.sbatch"
    assert client.test_submission(script) == "Job 3 to start at 9"
    assert (bin_dir / "sbatch.asked").read_text() == f"--test-only {script}\n"


def test_variables_of_the_shell_do_not_overrule_the_script(
    bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch's input variables win over the options of a script."""
    unused = {"SBATCH_TIMELIMIT": "1", "SBATCH_NO_REQUEUE": "1", "SBATCH_WAIT": "1"}
    for name, value in (unused | {"SBATCH_ACCOUNT": "mine"}).items():
        monkeypatch.setenv(name, value)
    program(bin_dir, "sbatch", "env > $0.env; echo 7")
    script = bin_dir / "job.sbatch"
    assert client.unused_variables(script) == unused
    client.submit(script)
    seen = (bin_dir / "sbatch.env").read_text().splitlines()
    assert [line for line in seen if line.startswith("SBATCH")] == ["SBATCH_ACCOUNT=mine"]
