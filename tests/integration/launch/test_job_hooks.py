"""The hooks of the job script: the policy after an attempt case by case, and its records."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3_server import take_out_of_reach

from orchestrator.jobs import job_hooks
from orchestrator.jobs.job_hooks import (
    AttemptEnd,
    choose_next_action,
    excluded_nodes,
    on_job_end,
    on_job_start,
)
from orchestrator.run.outcome import ExitCode, RunOutcome, read_attempts
from orchestrator.run.rundir import RunDir, read_json_lines


def after(
    outcome: str | None, state: str = "RUNNING None", *, crashes: int = 0, stop: bool = False
) -> str | int:
    ended = AttemptEnd(outcome, state=state, crashes=crashes)
    return choose_next_action(ended, stop_requested=stop, max_failures=3).next


@pytest.mark.parametrize(
    ("outcome", "state", "crashes", "stop", "expected"),
    [
        ("finished", "RUNNING None", 0, False, 0),
        ("finished", "COMPLETING None", 0, True, 0),
        ("failed_permanently", "RUNNING None", 0, False, 93),
        ("stopped", "RUNNING None", 0, False, "requeue"),
        ("stopped", "RUNNING None", 0, True, 75),  # somebody asked for it
        ("stopped", "COMPLETING None", 0, False, 75),  # preempted or cancelled: Slurm's to decide
        ("stopped", "COMPLETING TimeLimit", 0, False, "resubmit"),
        (None, "COMPLETING TimeLimit", 0, False, "resubmit"),  # killed while saving
        (None, "COMPLETING NodeFail", 0, False, 75),
        (None, "RUNNING None", 1, False, "requeue"),
        (None, "RUNNING None", 3, False, "requeue"),
        (None, "RUNNING None", 4, False, 93),
        (None, "RUNNING None", 1, True, 75),
        ("stopped", "", 0, False, "requeue"),  # squeue did not answer
        (None, "", 4, False, 93),
    ],
)
def test_the_next_action_follows_outcome_state_and_crashes(
    outcome: str | None, state: str, crashes: int, stop: bool, expected: str | int
) -> None:
    assert after(outcome, state, crashes=crashes, stop=stop) == expected


@given(
    outcome=st.sampled_from([None, "stopped", "finished", "failed_permanently"]),
    state=st.sampled_from(["RUNNING None", "COMPLETING None", "COMPLETING TimeLimit", ""]),
    crashes=st.integers(0, 9),
)
def test_a_requested_stop_never_restarts(outcome: str | None, state: str, crashes: int) -> None:
    assert isinstance(after(outcome, state, crashes=crashes, stop=True), int)


NODES = "node[1-2]"
SCONTROL = """
case "$2 $3" in
hostnames*) printf 'node1\nnode2\n' ;;
hostlist*) echo "$3" ;;
esac
"""


def put_program(directory: Path, name: str, shell: str) -> None:
    (directory / name).write_text(f"#!/bin/sh\n{shell}")
    (directory / name).chmod(0o755)


@pytest.fixture
def in_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the one directory where programs are found, in which Slurm's may be put."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("PATH", str(tmp_path))
    put_program(tmp_path, "scontrol", SCONTROL)
    return tmp_path


def test_the_next_attempt_records_the_end_of_a_lost_one(run: RunDir, in_a_job: Path) -> None:
    assert on_job_start(run, NODES) == "1 node1 1"
    put_program(in_a_job, "sinfo", "printf 'node1 alloc\\nnode2 down*\\nnode2 down*\\n'")
    assert on_job_start(run, NODES) == "2 node1 1"
    first, lost, second = read_json_lines(run.attempts_file)
    assert (first["slurm_job_id"], lost["attempt"], lost["lost"]) == ("7", 1, True)
    assert lost["failed_node"] == "node2"
    assert second["attempt"] == 2


def test_no_attempt_begins_while_the_stop_file_exists(
    run: RunDir, capfd: pytest.CaptureFixture[str]
) -> None:
    run.stop_file.parent.mkdir()
    run.stop_file.touch()
    code = job_hooks.main(["begin", str(run.path), NODES])  # jobs that depend on it do not start
    assert (code, capfd.readouterr().out) == (ExitCode.STOPPED, "")
    assert run.num_attempts == 0


def test_a_node_that_two_attempts_died_of_is_excluded(
    run: RunDir, capfd: pytest.CaptureFixture[str]
) -> None:
    said = (
        "node3: task 7: Killed",
        "node1: task 0: Exited with exit code 1",
        "node3: task 6: Killed",
    )
    excluded = []
    for what in said:
        attempt = run.begin_attempt()
        run.log_dir(attempt).mkdir(parents=True)
        (run.log_dir(attempt) / "srun.log").write_text(f"srun: error: {what}\n")
        assert on_job_end(run, attempt, 137, "RUNNING None").next == "requeue"
        excluded.append(excluded_nodes(run))
    assert excluded == ["", "", "node3"]
    assert "excluded from now on: node3" in capfd.readouterr().err
    config = run.read_config()
    run.write_config(config | {"slurm": config["slurm"] | {"exclude": "node[7-9]"}})
    assert excluded_nodes(run) == "node[7-9],node3"


def test_an_unreachable_checkpoint_store_counts_as_no_progress(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it gone on with for ever: nobody can tell that anything was gained."""
    take_out_of_reach(monkeypatch)
    config = run.read_config()
    elsewhere = config["checkpoint"] | {"url": "s3://bucket/run"}
    max_crashes = config["slurm"] | {"max_consecutive_failures": 1}
    run.write_config(config | {"checkpoint": elsewhere, "slurm": max_crashes})
    attempt = run.begin_attempt()
    run.end_attempt(attempt, checkpoint_step=20)
    for expected in ("requeue", 93):
        attempt = ended_rank(run, "task 3: Exited with exit code 1", "not allowed to read\n")
        assert on_job_end(run, attempt, 1, "RUNNING None").next == expected
    lines = [line for line in read_json_lines(run.attempts_file) if "ended_s" in line]
    assert [line["checkpoint_step"] for line in lines] == [20, 20, 20]


@pytest.mark.usefixtures("in_a_job")
def test_a_job_that_slurm_ends_blames_only_lost_nodes(run: RunDir) -> None:
    killed, lost = "srun: error: node3: task 7: Killed\n", "srun: error: Node failure on node4\n"
    for said in (killed, killed + lost):
        for is_noted in (True, False):
            attempt = run.begin_attempt()
            run.log_dir(attempt).mkdir(parents=True)
            (run.log_dir(attempt) / "srun.log").write_text(said)
            if is_noted:
                on_job_end(run, attempt, 137, "COMPLETING None")
    on_job_start(run, NODES)  # closes those that nobody has
    lines = sorted(read_json_lines(run.attempts_file), key=lambda line: line["attempt"])
    blamed = [line["failed_node"] for line in lines if "ended_s" in line]
    assert blamed == [None, None, "node4", "node4"]


def ended_rank(run: RunDir, said: str, log: str) -> int:
    """Begin an attempt whose rank 3 ended first; return its number."""
    attempt = run.begin_attempt()
    run.log_dir(attempt).mkdir(parents=True)
    others = "srun: error: node1: tasks 0-2: Killed"
    (run.log_dir(attempt) / "srun.log").write_text(f"srun: error: node2: {said}\n{others}\n")
    (run.log_dir(attempt) / "rank-00003.log").write_text(log)
    return attempt


def test_the_reason_is_that_of_the_first_failed_rank(run: RunDir) -> None:
    """srun's exit code is the highest, of the ranks that it killed."""
    log = "step 3\nTraceback:\nRuntimeError: a bad layer\n[W] closing\n"
    log += "slurmstepd-node2: error: *** STEP 2.0 ON node1 CANCELLED: an Error ***\n"
    attempt = ended_rank(run, "task 3: Exited with exit code 1", log)
    assert on_job_end(run, attempt, 137, "RUNNING None").next == "requeue"
    line = [*read_json_lines(run.attempts_file)][-1]
    assert line["why"].startswith("rank 3 on node2: Exited with exit code 1 (RuntimeError: a bad")
    assert (line["crashed"], line["failed_node"]) == (True, None)


def test_a_taken_port_does_not_count_as_a_crash(run: RunDir) -> None:
    for _ in range(9):  # slurm.max_consecutive_failures is fewer
        attempt = ended_rank(run, "task 3: Exited with exit code 1", "... EADDRINUSE ...\n")
        assert on_job_end(run, attempt, 137, "RUNNING None").next == "requeue"
    assert not any(line.get("crashed") for line in read_json_lines(run.attempts_file))


def test_a_taken_port_is_rank_0s_whoever_failed_first(run: RunDir) -> None:
    """The others meet whatever has the port, a web server say, and may give up before rank 0."""
    attempt = ended_rank(run, "task 3: Exited with exit code 1", "RuntimeError: unexpected data\n")
    said = "DistNetworkError: port: 20013, name: EADDRINUSE, message: address already in use\n"
    (run.log_dir(attempt) / "rank-00000.log").write_text(said)
    on_job_end(run, attempt, 137, "RUNNING None")
    line = [*read_json_lines(run.attempts_file)][-1]
    assert (line["crashed"], line["lost"]) == (False, True)
    assert line["why"].startswith("rank 0 (DistNetworkError")


def test_a_lost_node_is_the_cause_of_what_came_before(run: RunDir) -> None:
    """The ranks of the others miss it at once, and Slurm minutes later; a spare one replaces it."""
    attempt = ended_rank(run, "task 3: Exited with exit code 1", "Connection reset by peer\n")
    with (run.log_dir(attempt) / "srun.log").open("a") as log:
        log.write("srun: error: Node failure on node1\n")
    assert on_job_end(run, attempt, 137, "RUNNING None").next == "requeue"
    end = read_attempts(run)[attempt]
    assert (end["failed_node"], end["lost"], end["crashed"]) == ("node1", True, False)


def test_a_node_that_a_rank_refuses_is_left_out(run: RunDir) -> None:
    """One of its GPUs is lost, say. What all ranks refuse, rank 0 would have recorded."""
    said = "2026-11-30 17:53:35,832 ERROR   local rank 7 has no GPU: torch sees 6\n"
    for _ in range(2):
        attempt = ended_rank(run, "task 3: Exited with exit code 93", said)
        on_job_end(run, attempt, 137, "RUNNING None")
    line = [*read_json_lines(run.attempts_file)][-1]
    assert "(local rank 7 has no GPU: torch sees 6)" in line["why"]
    assert line["failed_node"] == "node2"
    assert excluded_nodes(run) == "node2"


def test_a_full_disk_excludes_no_node(run: RunDir) -> None:
    for _ in range(2):
        attempt = ended_rank(run, "task 3: Killed", "OSError: No space left on device\n")
        on_job_end(run, attempt, 137, "RUNNING None")
    assert excluded_nodes(run) == ""


@pytest.mark.usefixtures("in_a_job")
def test_an_attempt_that_had_saved_is_not_lost(run: RunDir) -> None:
    """Killed while it waited for what it sends to MLflow, say."""
    attempt = run.begin_attempt()
    RunOutcome("stopped", 7, "asked to stop; saved at step 7").write(run, attempt)
    on_job_start(run, NODES)
    closed = [line for line in read_json_lines(run.attempts_file) if "ended_s" in line]
    assert [line["why"] for line in closed] == ["asked to stop; saved at step 7"]
    assert not closed[0].get("lost")


END = """
import resource, sys
from orchestrator.jobs import job_hooks
job_hooks._DISK_WAIT_S, job_hooks._DISK_POLL_S = 0.2, 0.05
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # nothing can be written to any file
sys.exit(job_hooks.main(sys.argv[1:]))
"""


def test_the_next_action_needs_no_disk_space(run: RunDir) -> None:
    attempt = run.begin_attempt()
    before = run.attempts_file.read_bytes()
    command = [sys.executable, "-c", END, "end", str(run.path), str(attempt), "143", "RUNNING None"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=full, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stdout.split()) == (0, ["requeue"])
    assert run.attempts_file.read_bytes() == before
