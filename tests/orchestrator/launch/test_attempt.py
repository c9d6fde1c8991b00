"""What comes after an attempt: the whole policy, case by case."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.launch.attempt import Ended, begin, decide, end, excluded_nodes
from orchestrator.rundir import RunDir, read_json_lines


def after(
    verdict: str | None, state: str = "RUNNING None", *, crashes: int = 0, stop: bool = False
) -> str | int:
    ended = Ended(verdict, code=1, state=state, crashes=crashes)
    return decide(ended, stop_requested=stop, max_crashes=3).next


@pytest.mark.parametrize(
    ("verdict", "state", "crashes", "stop", "expected"),
    [
        ("finished", "RUNNING None", 0, False, 0),
        ("finished", "COMPLETING None", 0, True, 0),
        ("never_restart", "RUNNING None", 0, False, 93),
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
def test_each_case(
    verdict: str | None, state: str, crashes: int, stop: bool, expected: str | int
) -> None:
    assert after(verdict, state, crashes=crashes, stop=stop) == expected


@given(
    verdict=st.sampled_from([None, "stopped", "finished", "never_restart"]),
    state=st.sampled_from(["RUNNING None", "COMPLETING None", "COMPLETING TimeLimit", ""]),
    crashes=st.integers(0, 9),
)
def test_a_stop_that_was_asked_for_is_never_undone(
    verdict: str | None, state: str, crashes: int
) -> None:
    assert isinstance(after(verdict, state, crashes=crashes, stop=True), int)


@pytest.fixture
def in_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the one directory where programs are found, in which Slurm's may be put."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-2]")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_an_attempt_whose_end_nobody_noted_is_closed(run: RunDir, in_a_job: Path) -> None:
    assert begin(run) == "1"
    sinfo = in_a_job / "sinfo"
    sinfo.write_text("#!/bin/sh\nprintf 'node1 alloc\\nnode2 down*\\nnode2 down*\\n'\n")
    sinfo.chmod(0o755)
    assert begin(run) == "2"
    first, lost, second = read_json_lines(run.attempts_file)
    assert (first["slurm_job_id"], lost["attempt"], lost["lost"]) == ("7", 1, True)
    assert lost["failed_node"] == "node2"
    assert second["attempt"] == 2


def test_nothing_begins_where_a_stop_is_asked_for(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    run.stop_file.parent.mkdir()
    run.stop_file.touch()
    assert begin(run) == ""
    assert "remove it" in capsys.readouterr().err
    assert run.num_attempts == 0


def test_the_second_death_on_a_node_excludes_it(
    run: RunDir, capsys: pytest.CaptureFixture[str]
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
        assert end(run, attempt, 137, "RUNNING None") == "requeue"
        excluded.append(excluded_nodes(run))
    assert excluded == ["", "", "node3"]
    assert "excluded from now on: node3" in capsys.readouterr().err
    config = run.read_config()
    run.write_config(config | {"cluster": config["cluster"] | {"exclude": "node[7-9]"}})
    assert excluded_nodes(run) == "node[7-9],node3"


@pytest.mark.usefixtures("in_a_job")
def test_where_slurm_ends_a_job_only_a_lost_node_is_blamed(run: RunDir) -> None:
    killed, lost = "srun: error: node3: task 7: Killed\n", "srun: error: Node failure on node4\n"
    for said in (killed, killed + lost):
        for is_noted in (True, False):
            attempt = run.begin_attempt()
            run.log_dir(attempt).mkdir(parents=True)
            (run.log_dir(attempt) / "srun.log").write_text(said)
            if is_noted:
                end(run, attempt, 137, "COMPLETING None")
    begin(run)  # closes those that nobody has
    lines = sorted(read_json_lines(run.attempts_file), key=lambda line: line["attempt"])
    blamed = [line["failed_node"] for line in lines if "ended_s" in line]
    assert blamed == [None, None, "node4", "node4"]
