"""The status of runs, from their directories and from fake commands of Slurm."""

import json
import time
from pathlib import Path

import pytest

from orchestrator.jobs import logs, status
from orchestrator.jobs.logs import follow_log
from orchestrator.run.node_times import NodeTimes, to_json
from orchestrator.run.rundir import RunDir, RunError, append_json_line


def log_step(run: RunDir, step: int) -> None:
    figures = {"train/loss": 1 / step, "perf/images_per_s": 100.0}
    line = {"step": step, "time_ms": 1000 * step, "attempt": 1, "metrics": figures}
    append_json_line(run.metrics_file, line)


def test_a_run_that_was_never_started_is_scheduled(run: RunDir) -> None:
    (one,) = status.run_statuses([run])
    assert (one.state, one.num_attempts, one.step, one.metrics) == ("scheduled", 0, None, {})


def test_a_stopped_run_has_its_steps_metrics_and_ends(run: RunDir) -> None:
    attempt = run.begin_attempt(num_steps=14)
    for step in (1, 2, 3):
        log_step(run, step)
    with run.metrics_file.open("a") as file:
        file.write('{"step": 4, "metr')  # torn
    checkpoint = run.checkpoints_dir / "step-000000002" / "manifest.json"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("{}")
    outcome = {"outcome": "stopped", "step": 3, "attempt": attempt, "reason": "asked to stop"}
    run.write_json(run.outcome_file, outcome)
    run.end_attempt(attempt, exit_code=75)
    (one,) = status.run_statuses([run])
    assert (one.state, one.why, one.step, one.num_steps) == ("stopped", "asked to stop", 3, 14)
    assert one.metrics["train/loss"] == pytest.approx(1 / 3)
    assert one.checkpoint_age_s is not None
    assert one.checkpoint_age_s < 60
    assert one.ends == ("asked to stop",)
    assert one.eta_s is None  # nothing runs
    assert json.loads(status.as_json([one]))[0]["images_per_s"] == 100


def test_killed_attempts_are_counted(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.end_attempt(run.begin_attempt(), exit_code=75)
    run.begin_attempt()  # and was killed
    run.end_attempt(run.begin_attempt(), exit_code=1)
    (one,) = status.run_statuses([run])
    assert (one.num_attempts, len(one.ends)) == (3, 3)
    assert "75" in one.ends[0]
    assert "no end is known" in one.ends[1]
    status.print_details(one)
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("attempt")]
    assert [line.split()[1] for line in lines] == ["1", "2", "3"]
    assert "exit code 1" in lines[2]
    run.begin_attempt()
    with run.lock():
        (one,) = status.run_statuses([run])
    assert one.ends[3] == "running"


def test_details_keep_space_between_a_long_name_and_its_value(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {"perf/host_mem_peak_gb": 1.65503, "eval/ten-crop-224-of-256/real_top1": 70.0}
    append_json_line(run.metrics_file, {"step": 1, "time_ms": 1, "attempt": 1, "metrics": figures})
    status.print_details(status.run_statuses([run])[0])
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines() if "/" in line[:8])
    assert shown["perf/host_mem_peak_gb"] == "1.655"
    assert shown["eval/ten-crop-224-of-256/real_top1"] == "70.00"


def test_a_slow_node_is_named_and_how_to_leave_it_out(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    run.begin_attempt(num_steps=14)
    times = {"node1": NodeTimes(1.0, 0.0, 0.2), "node2": NodeTimes(1.23, 0.0, 0.0)}
    line = to_json(times, step=100, attempt=1, num_steps=100)
    append_json_line(run.node_times_file, line)
    append_json_line(run.jobs_file, {"slurm_job_id": "5", "num_steps": 14})
    config = run.read_config()
    config["slurm"]["exclude"] = "node7"
    run.write_config(config)
    (one,) = status.run_statuses([run])
    assert json.loads(status.as_json([one]))[0]["slow_nodes"][0]["node"] == "node2"
    status.print_details(one)
    (text,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("slow nodes")]
    assert "23 %" in text
    assert text.endswith("slurm.exclude=node7,node2")


def test_a_running_attempt_has_an_eta(run: RunDir) -> None:
    run.begin_attempt(num_steps=14)
    log_step(run, 4)
    with run.lock():
        (one,) = status.run_statuses([run])
    batch = run.read_config()["recipe"]["global_batch_size"]
    assert (one.state, one.eta_s) == ("running", 10 * batch / 100)


def test_status_needs_no_slurm(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    append_json_line(run.jobs_file, {"slurm_job_id": "5", "submitted_s": time.time()})
    monkeypatch.setenv("PATH", "")
    (one,) = status.run_statuses([run])
    assert one.state == "scheduled"
    assert "no `squeue` on this machine" in capsys.readouterr().err


def test_a_narrow_terminal_cuts_the_reason_alone(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt = run.begin_attempt(num_steps=14)
    log_step(run, 3)
    outcome = {"outcome": "stopped", "step": 3, "attempt": attempt, "reason": "why " * 50}
    run.write_json(run.outcome_file, outcome)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    status.print_statuses(status.run_statuses([run]))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if run.id in line]
    assert "3/14" in line
    assert "0.3333" in line
    assert line.rstrip().endswith("…")
    assert len(line) < 110


@pytest.mark.parametrize(
    ("squeue", "sacct", "said"),
    [
        ("5|CANCELLED|None|1|N/A|1:00|1:00", None, "CANCELLED"),
        ("", None, "forgotten"),
        ("", "5|CANCELLED by 7", "CANCELLED by 7"),
    ],
)
def test_a_run_whose_job_has_ended_is_not_pending(
    run: RunDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    squeue: str,
    sacct: str | None,
    said: str,
) -> None:
    for name, answer in (("squeue", squeue), ("sacct", sacct)):
        if answer is not None:
            (tmp_path / name).write_text(f"#!/bin/sh\n[ -z '{answer}' ] || echo '{answer}'\n")
            (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    append_json_line(run.jobs_file, {"slurm_job_id": "5", "num_steps": 14})
    (one,) = status.run_statuses([run])
    assert (one.state, one.why) == ("stopped", f"ended before an attempt began (job 5: {said})")
    assert status.never_begun([run]) == {run: one.why}
    run.begin_attempt()
    assert status.never_begun([run]) == {}
    (one,) = status.run_statuses([run])
    assert (one.state, one.why) == ("crashed", f"attempt 1 left no outcome (job 5: {said})")


def test_the_table_prints_long_reasons_whole_without_a_terminal(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt = run.begin_attempt()
    reason = "diverged: " + "the loss became nan between steps 1 and 10. " * 8
    outcome = {"outcome": "failed_permanently", "step": 3, "attempt": attempt, "reason": reason}
    run.write_json(run.outcome_file, outcome)
    append_json_line(run.metrics_file, {"step": 3, "time_ms": 1, "metrics": {"val/map": 62.5}})
    status.print_statuses(status.run_statuses([run]))
    printed = capsys.readouterr().out
    assert ("mAP" in printed, "top-1" in printed, "62.50" in printed) == (True, False, True)
    (line,) = [line for line in printed.splitlines() if run.id in line]
    assert line.split()[: run.id.count(" ") + 3][-2:] == ["failed_permanently", "-"]
    assert reason.strip() in line


def test_logs_follow_all_attempts(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_CHECK_EVERY_S", 0)
    with pytest.raises(RunError) as refused:
        list(follow_log(run, 0, is_active=lambda: False))
    assert refused.value.value == 0
    for attempt, text in ((1, "one\n"), (2, "two\nand")):
        run.log_dir(attempt).mkdir(parents=True)
        (run.log_dir(attempt) / "rank-00000.log").write_text(text)
    active = iter([True, False])
    assert list(follow_log(run, 0, is_active=lambda: next(active))) == [
        *("== attempt-0001", "one", "== attempt-0002", "two")
    ]


@pytest.mark.parametrize(
    ("squeue", "state", "why", "start"),
    [
        ("RUNNING|None|2|N/A|364-23:59:54|365-00:00:00", "running", "2 nodes, no time limit", None),
        ("RUNNING|None|1|N/A|59:54|1:00:00", "running", "1 node, 59:54 left", None),
        ("PENDING|None|1|N/A|1:00|1:00", "pending", "in the queue", None),
        ("PENDING|Priority|1|2026-01-01T00:00:00|1:00|1:00", "pending", "Priority", "2026"),
    ],
)
def test_a_queued_job_gives_state_reason_and_start(
    run: RunDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    squeue: str,
    state: str,
    why: str,
    start: str | None,
) -> None:
    (tmp_path / "squeue").write_text(f"#!/bin/sh\necho '5|{squeue}'\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    append_json_line(run.jobs_file, {"slurm_job_id": "5", "num_steps": 14})
    (one,) = status.run_statuses([run])
    assert (one.state, one.why.endswith(why)) == (state, True)
    assert (one.start or "")[:4] == (start or "")
