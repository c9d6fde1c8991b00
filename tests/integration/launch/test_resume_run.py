"""`tahoe resume` continues a run as it began, or refuses to."""

import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Tahoe

from data_sharding.errors import DataError
from data_sharding.format.manifest import read_manifest, write_manifest
from orchestrator.config.parse import ConfigError, parse
from orchestrator.launch.compose import ComposedConfig
from orchestrator.launch.create_run import create_or_open_run
from orchestrator.launch.extend_schedule import Choice
from orchestrator.launch.resume_run import resume_run
from orchestrator.run.rundir import RunDir, RunError, append_json_line


def end(run: RunDir, outcome: str, step: int) -> None:
    attempt = run.begin_attempt()
    run.write_json(run.outcome_file, {"outcome": outcome, "step": step, "attempt": attempt})


def set_schedule(run: RunDir, name: str, **options: Any) -> None:
    config = run.read_config()
    config["recipe"]["schedule"] |= {"name": name, **options}
    run.write_config(config)


def save_checkpoint(run: RunDir, step: int) -> None:
    directory = run.checkpoints_dir / f"step-{step:09d}"
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text("{}")


def test_an_unfinished_run_continues_with_its_config(run: RunDir) -> None:
    before = run.read_config()
    end(run, "stopped", 5)
    assert resume_run(run, []).num_steps == 14
    assert run.read_config() == before


def test_a_finished_run_continues_only_with_more_epochs(run: RunDir) -> None:
    end(run, "finished", 14)
    with pytest.raises(RunError, match="finished after 14 steps") as refused:
        resume_run(run, [])
    assert f"`tahoe resume '{run.path}' recipe.epochs=4`" in refused.value.hint


def test_a_run_from_before_a_key_was_there_is_continued(run: RunDir) -> None:
    values = run.read_config()
    for name in ("strategy", "init_from"):
        del values[name]
    for name in ("every_minutes", "keep_best"):
        del values["checkpoint"][name]
    del values["recipe"]["optimizer"]["layer_decay"]
    run.write_config(values)
    end(run, "stopped", 5)
    assert resume_run(run, ["strategy.name=ddp_zero1"]).num_steps == 14
    assert run.read_config()["strategy"]["name"] == "ddp_zero1"
    with pytest.raises(ConfigError) as refused:
        resume_run(run, ["strategy=fsdp2"])
    assert "strategy.name=" in str(refused.value.hint)
    with pytest.raises(ConfigError, match=r"recipe.optimizer.layer_decay cannot change"):
        resume_run(run, ["recipe.optimizer.layer_decay=0.7"])


@pytest.mark.parametrize("override", ["recipe.epochs=3", "recipe.steps=21", "recipe.images=2688"])
def test_a_finished_run_can_be_extended(run: RunDir, override: str) -> None:
    set_schedule(run, "constant")
    end(run, "finished", 14)
    assert resume_run(run, [override]).num_steps == 21
    recipe = run.read_config()["recipe"]
    assert sum(recipe[name] is not None for name in ("epochs", "images", "steps")) == 1


def test_an_extension_that_was_killed_is_continued(run: RunDir) -> None:
    set_schedule(run, "constant")
    end(run, "finished", 14)
    resume_run(run, ["recipe.epochs=3"])
    run.begin_attempt()
    assert resume_run(run, []).num_steps == 21


@pytest.mark.parametrize(
    ("name", "choice", "cycles", "steps"),
    [
        (
            "cosine",
            "restart",
            [[0, 14], [14, 28]],
            (0.1, 0.05 + 0.05 * math.cos(math.pi * 13 / 14)),
        ),
        ("linear", "stretch", [], (0.1 * 14 / 21, 0.1 / 21)),
        ("cosine", "keep", [[0, 14]], (0.01, 0.01)),
    ],
)
def test_the_schedule_of_an_extended_run_is_chosen(
    run: RunDir, name: str, choice: Choice, cycles: Any, steps: Any, capsys: Any
) -> None:
    set_schedule(run, name, warmup_epochs=1.0, min_lr_factor=0.1 if choice == "keep" else 0.0)
    end(run, "finished", 14)
    assert resume_run(run, ["recipe.epochs=4"], choice).num_steps == 28
    assert run.read_config()["recipe"]["schedule"]["cycles"] == cycles
    first, last = steps
    printed = capsys.readouterr().out
    assert f"{first:.4g} at step 15" in printed
    assert f"{last:.4g} at step 28" in printed
    run.begin_attempt()
    assert resume_run(run, []).num_steps == 28  # killed: there is nothing to choose any more


@pytest.mark.slow
def test_an_extension_that_changes_the_rate_requires_a_schedule(run: RunDir) -> None:
    before = run.read_config()
    end(run, "finished", 14)
    with pytest.raises(ConfigError, match=r"--schedule stretch(.|\n)*--schedule restart") as asked:
        resume_run(run, ["recipe.epochs=4"])
    assert "--schedule keep" not in str(asked.value)  # at a rate of 0 nothing would be learned
    with pytest.raises(ConfigError, match="--schedule keep is impossible"):
        resume_run(run, ["recipe.epochs=4"], "keep")
    assert run.read_config() == before


@pytest.mark.slow
def test_a_shorter_run_requires_a_schedule_too(run: RunDir) -> None:
    end(run, "stopped", 5)
    with pytest.raises(ConfigError, match=r"--schedule stretch(.|\n)*--schedule keep") as asked:
        resume_run(run, ["recipe.steps=7"])
    assert "--schedule restart" not in str(asked.value)
    assert resume_run(run, ["recipe.steps=7"], "keep").num_steps == 7
    assert run.read_config()["recipe"]["schedule"]["cycles"] == [[0, 14]]


def test_before_its_first_step_a_run_needs_no_schedule(run: RunDir) -> None:
    assert resume_run(run, ["recipe.epochs=4"]).num_steps == 28
    assert run.read_config()["recipe"]["schedule"]["cycles"] == []


def test_steps_trained_again_at_other_rates_are_printed(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    run.begin_attempt()  # killed before it had saved
    append_json_line(run.metrics_file, {"step": 6, "metrics": {"val/top1": 50.0}})
    resume_run(run, [])
    assert "steps 1 to 6" not in capsys.readouterr().err
    resume_run(run, ["recipe.epochs=4"])
    assert "steps 1 to 6" in capsys.readouterr().err


def test_a_run_cannot_be_shortened(run: RunDir) -> None:
    set_schedule(run, "constant")
    end(run, "stopped", 10)
    assert resume_run(run, ["recipe.steps=10"]).num_steps == 10
    with pytest.raises(ConfigError, match="has done 10 steps, more than the 9"):
        resume_run(run, ["recipe.steps=9"])
    run.begin_attempt()  # killed after it had saved
    save_checkpoint(run, 12)
    with pytest.raises(ConfigError, match="has done 12 steps, more than the 11"):
        resume_run(run, ["recipe.steps=11"])
    append_json_line(run.metrics_file, {"step": 13, "metrics": {"val/top1": 50.0}})  # not saved
    with pytest.raises(ConfigError, match="has done 13 steps, more than the 12"):
        resume_run(run, ["recipe.steps=12"])
    assert run.read_config()["recipe"]["steps"] == 10


@pytest.mark.parametrize(
    "override",
    [
        "launcher.nproc_per_node=4",
        "runtime.device=cpu",
        "data.num_workers=3",
        "logging.every_steps=1",
        "tracking.enabled=false",
        "checkpoint.every_steps=7",
    ],
)
def test_mutable_keys_may_change(run: RunDir, override: str) -> None:
    before = run.read_config()
    resume_run(run, [override])
    key, _, value = override.partition("=")
    section, name = key.split(".")
    after = run.read_config()
    assert str(after[section][name]).lower() == value
    after[section][name] = before[section][name]
    assert after == before


def test_the_micro_batches_of_a_run_stay_whatever_fits_a_device(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = resume_run(run, ["runtime.max_images_per_device=8"])
    assert plan.num_micro_batches == run.read_config()["recipe"]["num_micro_batches"]
    assert "runtime.max_images_per_device has no effect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=1", "seed"),
        ("recipe.optimizer.lr=1", "recipe.optimizer.lr"),
        ("data.eval_protocol=center-24-of-32", "data.eval_protocol"),
        ("evaluate.batch_size=8", "evaluate.batch_size"),
        ("model.kwargs.rbf=true", "model.kwargs.rbf"),
    ],
)
def test_other_keys_may_not_change(run: RunDir, override: str, key: str) -> None:
    before = run.read_config()
    with pytest.raises(ConfigError) as refused:
        resume_run(run, ["launcher.nproc_per_node=2", override])
    assert key in refused.value.value
    assert "launcher.nproc_per_node" not in refused.value.value
    assert "launcher, runtime, slurm, logging" in refused.value.hint
    assert run.read_config() == before


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["recipe=adamw"], "a group cannot be chosen again"),
        (["sede=1"], "did you mean 'seed'"),
        (["seed='1'"], "valid integer"),
        (["recipe.steps=20", "recipe.images=2000"], "one of epochs, images, steps"),
        (["launcher.nproc_per_node=3"], "launcher.nproc_per_node=2   "),
    ],
)
def test_invalid_overrides_are_refused(run: RunDir, overrides: list[str], expected: str) -> None:
    before = run.read_config()
    with pytest.raises(ConfigError) as refused:
        resume_run(run, overrides)
    assert expected in str(refused.value)
    assert run.read_config() == before


def test_ranks_that_do_not_fit_are_refused_with_ranks_that_do(run: RunDir) -> None:
    with pytest.raises(ConfigError) as refused:
        resume_run(run, ["launcher.nproc_per_node=3"])
    proposals = [line.split("   ")[0].strip() for line in refused.value.hint.splitlines()[1:]]
    assert proposals == ["launcher.nproc_per_node=2", "launcher.nproc_per_node=4"]


def test_a_moved_data_set_needs_its_new_url(run: RunDir, shards: Path) -> None:
    shards.rename(shards.with_name("moved"))
    with pytest.raises(DataError, match="no data set at"):
        resume_run(run, [])
    resume_run(run, [f"data.url={shards.with_name('moved')}"])


def test_the_config_of_a_running_attempt_stays(run: RunDir) -> None:
    with run.lock(), pytest.raises(RunError, match="is running"):
        resume_run(run, ["logging.every_steps=1"])
    assert run.read_config()["logging"]["every_steps"] == 10


def test_resume_without_a_run_is_an_error(tahoe: Tahoe) -> None:
    done = tahoe("resume", "nothing here", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: no run at {tahoe.cwd}/nothing here: config.yaml is ")


@pytest.mark.slow
def test_another_data_set_at_the_same_url_is_refused_by_the_worker(
    values: dict[str, Any], shards: Path, tahoe: Tahoe
) -> None:
    values["data"]["url"] = str(shards)
    values["tracking"]["enabled"] = False
    run, _ = create_or_open_run(
        ComposedConfig(parse(values | {"run_dir": str(tahoe.cwd / "run")}), ())
    )
    for split in ("train", "val"):
        manifest = read_manifest(str(shards), split)
        write_manifest(str(shards), split, replace(manifest, classes=manifest.classes[::-1]))
    done = tahoe("resume", run.path.name, check=False)
    assert done.returncode == 93
    assert f"error: the data set at {shards} is not the one that run started with" in done.stderr
    assert "start a new run" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def is_rank(pid: int) -> bool:
    """Whether a child of the launcher is a rank already, and not still a copy of the launcher."""
    return b"orchestrator.training.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_rank_that_outlives_its_launcher_keeps_others_out(tahoe: Tahoe, shards: Path) -> None:
    started = tahoe.start("train", "run_dir=run", f"data.url='{shards}'", "tracking=none")
    started.wait_for("run directory: ")
    while not (ranks := started.rank_pids()) or not is_rank(ranks[0]):
        time.sleep(0.01)
    try:
        os.kill(ranks[0], signal.SIGSTOP)  # it is slow to notice, or to save
        started.process.kill()
        started.finish()
        with pytest.raises(RunError, match="an attempt of run is running"):
            resume_run(RunDir(tahoe.cwd / "run"), [])
    finally:
        os.kill(ranks[0], signal.SIGKILL)
