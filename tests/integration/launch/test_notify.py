"""Receivers of a run's end: a real server and a real command, for each event and each sender."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from webhook import Webhook, webhook

from orchestrator.config.parse import ConfigError, parse
from orchestrator.jobs.job_hooks import on_job_end
from orchestrator.launch.create_run import make_plan_for
from orchestrator.launch.local_launcher import run_attempt
from orchestrator.run import notify
from orchestrator.run.outcome import RunOutcome
from orchestrator.run.rundir import RunDir, append_json_line, read_json_lines

SUPPORT = Path(__file__).parents[2] / "support"
WATCHDOG_LINE = "step 3\nTimeout (0:30:01)!\nThread 0x00007f (most recent call first):\n"


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as running:
        yield running


def set_receivers(run: RunDir, *, url: str | None = None, command: str | None = None) -> None:
    run.write_config(run.read_config() | {"notify": {"url": url, "command": command}})


def end_job(run: RunDir, ended: str | None, *, log: str = "", state: str = "RUNNING None") -> None:
    attempt = run.begin_attempt(slurm_job_id="7_3", num_steps=14)
    run.log_dir(attempt).mkdir(parents=True)
    (run.log_dir(attempt) / "rank-00001.log").write_text(log)
    (run.log_dir(attempt) / "srun.log").touch()
    if ended:
        RunOutcome(ended, 9, "the ranks' reason").write(run, attempt)  # type: ignore[arg-type]
    on_job_end(run, attempt, 1, state)


@pytest.mark.parametrize(
    ("ended", "log", "max_failures", "expected"),
    [
        ("finished", "", 3, "finished"),
        ("failed_permanently", "", 3, "gave_up"),
        (None, "", 0, "gave_up"),  # the budget of crashes is spent
        (None, WATCHDOG_LINE, 0, "gave_up"),
        (None, WATCHDOG_LINE, 3, "stalled"),
        (None, "", 3, "requeued"),
        ("stopped", WATCHDOG_LINE, 3, "requeued"),  # the line is older than the end
    ],
)
def test_each_end_of_a_job_is_an_event(
    run: RunDir, hook: Webhook, ended: str | None, log: str, max_failures: int, expected: str
) -> None:
    config = run.read_config()
    run.write_config(
        config | {"slurm": config["slurm"] | {"max_consecutive_failures": max_failures}}
    )
    set_receivers(run, url=hook.url)
    end_job(run, ended, log=log)
    ((_, content_type, event),) = hook.posts
    assert content_type == "application/json"
    assert event["event"] == expected
    assert (event["run"], event["run_dir"]) == (run.id, str(run.path))
    assert (event["attempt"], event["num_steps"], event["job_id"]) == (1, 14, "7_3")
    assert event["step"] == (9 if ended else None)
    if ended in ("finished", "failed_permanently"):
        assert event["reason"] == "the ranks' reason"


def test_a_requested_stop_is_no_event(run: RunDir, hook: Webhook) -> None:
    set_receivers(run, url=hook.url)
    run.stop_file.parent.mkdir()
    run.stop_file.touch()
    end_job(run, "stopped")
    assert hook.posts == []


def test_command_and_url_get_the_same_strict_json(
    run: RunDir, hook: Webhook, tmp_path: Path
) -> None:
    for step, top1 in ((7, 50.0), (14, 40.0), (21, float("nan"))):
        line = {"step": step, "time_ms": step, "attempt": 1, "metrics": {"val/top1": top1}}
        append_json_line(run.metrics_file, line)
    set_receivers(run, url=hook.url, command=f"cat >'{tmp_path}/event'")
    end_job(run, None)
    text = (tmp_path / "event").read_text()
    assert text.count("\n") == 1
    event = json.loads(text, parse_constant=pytest.fail)
    assert hook.posts[0][2] == event
    assert (event["metrics"], event["best_metrics"]) == ({"val/top1": 40.0}, {"val/top1": 50.0})
    assert event["step"] == 21


def test_receivers_that_hang_cost_the_timeout_once(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notify, "_TIMEOUT_S", 0.5)
    with webhook(answers=False) as hook:
        set_receivers(run, url=hook.url, command="sleep 60; true")
        start_s = time.monotonic()
        end_job(run, "finished")
        assert 0.2 < time.monotonic() - start_s < 3
    last = [*read_json_lines(run.attempts_file)][-1]
    assert last["exit_code"] == 0
    err = capfd.readouterr().err
    assert [err.count(f"{name}: ") for name in ("notify.command", "notify.url")] == [1, 1]


def test_a_secret_of_the_environment_is_used_and_not_logged(
    run: RunDir,
    hook: Webhook,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    set_receivers(run, url="$HOOK_URL/services/$HOOK_TOKEN")
    monkeypatch.setenv("HOOK_URL", hook.url)
    end_job(run, "finished")  # without the token
    assert hook.posts == []
    assert "HOOK_TOKEN" in capfd.readouterr().err
    monkeypatch.setenv("HOOK_TOKEN", "very-secret")
    for hook.status in (200, 500):
        end_job(run, "finished")
    assert [path for path, *_ in hook.posts] == ["/services/very-secret"] * 2
    monkeypatch.setenv("HOOK_URL", "http://127.0.0.1:1")  # nobody listens
    end_job(run, "finished")
    monkeypatch.setenv("HOOK_URL", "file:///etc")
    end_job(run, "finished")
    err = capfd.readouterr().err
    assert len([line for line in err.splitlines() if line.startswith("notify.url")]) == 3
    written = [path.read_text() for path in run.path.rglob("*") if path.is_file()]
    assert not any("very-secret" in text for text in (*written, err))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("url", "https://hooks.slack.com/services/T0AAAAAAA/B0AAAAAAA/abcdefgh1jklmnopqrstuvwx"),
        ("url", "https://hc-ping.com/3f2b1c00-aaaa-bbbb-cccc-0123456789ab"),
        ("url", "https://me:password@example.org/hook"),
        ("command", "curl -d @- 'https://example.org/hook?token=abc'"),
        ("command", "curl -d @- -H 'Authorization: Bearer ghp_x1y2z3w4' https://example.org/hook"),
    ],
)
def test_a_secret_in_plain_is_refused(values: dict[str, Any], key: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(values | {"notify": {key: text}})
    assert caught.value.value == [f"notify.{key}"]
    assert text not in str(caught.value)


def test_a_variable_in_place_of_a_secret_is_none(values: dict[str, Any]) -> None:
    url, command = (
        "https://h/x?token=$TOKEN",
        'curl -d @- "https://me:${PASSWORD}@h/$A_LONG_TOKEN_NAME_1"',
    )
    notify = parse(values | {"notify": {"url": url, "command": command}}).notify
    assert (notify.url, notify.command) == (url, command)


@pytest.mark.parametrize("url", ["ftp://host/path", "example.org", "/etc/passwd"])
def test_only_http_is_a_url(values: dict[str, Any], url: str) -> None:
    with pytest.raises(ConfigError):
        parse(values | {"notify": {"url": url}})


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("finished", "finished"),
        pytest.param("failed_permanently", "gave_up", marks=pytest.mark.slow),
        pytest.param("crashes", "gave_up", marks=pytest.mark.slow),
        pytest.param("hangs", "stalled", marks=pytest.mark.slow),
        pytest.param("stopped", None, marks=pytest.mark.slow),
    ],
)
def test_the_local_launcher_sends_the_end_of_an_attempt(
    run: RunDir, hook: Webhook, monkeypatch: pytest.MonkeyPatch, how: str, expected: str | None
) -> None:
    monkeypatch.setenv("SHORT_WORKER", how)
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT), prepend=os.pathsep)
    set_receivers(run, url=hook.url)
    config = parse(run.read_config())
    run_attempt(run, config, make_plan_for(config), worker="short_worker")
    events = [event for _, _, event in hook.posts]
    assert [event["event"] for event in events] == ([expected] if expected else [])
    assert all(event["num_steps"] == 14 for event in events)
