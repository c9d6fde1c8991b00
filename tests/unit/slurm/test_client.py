"""Slurm's commands, and their errors where there is no Slurm or it fails."""

import math
import time
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


def test_a_machine_without_slurm_is_an_error(
    bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(bin_dir))
    with pytest.raises(SlurmError) as raised:
        client.submit(bin_dir / "job.sbatch")
    assert raised.value.value == "sbatch"
    assert "`train`" in raised.value.hint
    assert client.queued_jobs([]) == {}  # no query is needed


def test_nodes_that_the_site_drains_are_not_down(bin_dir: Path) -> None:
    states = {"a": "alloc", "b": "drng", "c": "drain", "d": "down*", "e": "mix", "f": "failg"}
    lines = "".join(f"{node} {state}\\n" for node, state in states.items())
    program(bin_dir, "sinfo", f"printf '{lines}'")
    assert client.down_nodes("a,b,c,d,e,f") == ["d"]
    assert client.unfit_nodes("a,b,c,d,e,f") == ["b", "c", "d", "f"]


def test_an_error_contains_the_message_of_slurm(bin_dir: Path) -> None:
    message = "sbatch: error: invalid partition specified: gpuu"
    program(bin_dir, "sbatch", f"echo '{message}' >&2; exit 1")
    with pytest.raises(SlurmError, match=r"`sbatch` failed: invalid partition .*: gpuu"):
        client.submit(bin_dir / "job.sbatch")


def test_gpus_in_other_words_are_the_hint_of_an_unknown_resource(bin_dir: Path) -> None:
    message = "Batch job submission failed: Invalid generic resource (gres) specification"
    program(bin_dir, "sbatch", f"echo 'sbatch: error: {message}' >&2; exit 1")
    with pytest.raises(SlurmError, match="gres") as raised:
        client.submit(bin_dir / "job.sbatch")
    assert "`additional_parameters.gres`" in raised.value.hint


def test_a_submission_from_inside_a_job_inherits_nothing_from_it(
    bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    monkeypatch.setenv("SLURM_CONF", "/etc/mine.conf")
    program(bin_dir, "sbatch", "env > $0.env; echo '7;cluster'")
    assert client.submit(bin_dir / "job.sbatch") == "7"
    seen = (bin_dir / "sbatch.env").read_text().splitlines()
    assert [line for line in seen if line.startswith("SLURM")] == ["SLURM_CONF=/etc/mine.conf"]


def test_only_the_requested_jobs_are_returned(bin_dir: Path) -> None:
    line = "%s|PENDING|Resources|2|2026-01-01T00:00:00|1:00|1:00"
    program(bin_dir, "squeue", f"printf '{line}\\n' 3 4_1 5")
    jobs = client.queued_jobs(["4_1", "9"])
    assert list(jobs) == ["4_1"]
    assert (jobs["4_1"].state, jobs["4_1"].num_nodes) == ("PENDING", 2)


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
def test_unknown_fields_are_empty(
    bin_dir: Path, line: str, reason: str, start: str | None, time_left: str
) -> None:
    program(bin_dir, "squeue", f"echo '5|{line}'")
    job = client.queued_jobs(["5"])["5"]
    assert (job.reason, job.time_left) == (reason, time_left)
    assert start is None or job.start == start


def test_accounting_is_queried_if_it_exists(bin_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bin_dir))
    assert client.final_states(["5"]) == {}  # no such program
    program(bin_dir, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert client.final_states(["5"]) == {}
    program(bin_dir, "sacct", 'echo "$@" > $0.argv; printf "4_1|NODE_FAIL\\n5|CANCELLED by 0\\n"')
    assert client.final_states(["4_1", "5"]) == {"4_1": "NODE_FAIL", "5": "CANCELLED by 0"}
    assert "--jobs 4_1,5" in (bin_dir / "sacct.argv").read_text()
    program(bin_dir, "sacct", "echo '5|FAILED'")
    assert client.final_states([]) == {}


def test_a_test_submission_returns_the_start_time(bin_dir: Path) -> None:
    program(bin_dir, "sbatch", 'echo "$1 $2" > $0.argv; echo "sbatch: Job 3 to start at 9" >&2')
    script = bin_dir / "job.sbatch"
    assert client.test_submission(script) == "Job 3 to start at 9"
    assert (bin_dir / "sbatch.argv").read_text() == f"--test-only {script}\n"


def test_variables_of_the_shell_do_not_overrule_the_script(
    bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch's input variables win over the options of a script."""
    ignored = {"SBATCH_TIMELIMIT": "1", "SBATCH_NO_REQUEUE": "1", "SBATCH_WAIT": "1"}
    for name, value in (ignored | {"SBATCH_ACCOUNT": "mine"}).items():
        monkeypatch.setenv(name, value)
    program(bin_dir, "sbatch", "env > $0.env; echo 7")
    script = bin_dir / "job.sbatch"
    assert client.ignored_variables(script) == ignored
    client.submit(script)
    seen = (bin_dir / "sbatch.env").read_text().splitlines()
    assert [line for line in seen if line.startswith("SBATCH")] == ["SBATCH_ACCOUNT=mine"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1-02:03:04", 93_784.0),
        ("2:03:04", 7_384.0),
        ("3:04", 184.0),
        ("0:00", 0.0),
        ("UNLIMITED", math.inf),
        ("INVALID", math.inf),
    ],
)
def test_the_time_that_is_left_is_in_seconds(text: str, seconds: float) -> None:
    assert client.parse_time_s(f"{text}\n") == seconds


def test_nodes_that_do_not_respond_cost_the_timeout_at_most(bin_dir: Path) -> None:
    program(bin_dir, "srun", "echo node2; exec sleep 60")
    started_s = time.monotonic()
    assert client.responding_nodes("7", ["node1", "node2"], timeout_s=0.3) == ["node2"]
    assert time.monotonic() - started_s < 20
