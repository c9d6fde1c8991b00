"""A config has one run directory, which records its provenance and is not overwritten."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from data_sharding.errors import DataError
from orchestrator.config.parse import ConfigError, parse, to_dict
from orchestrator.config.schema import Config
from orchestrator.launch.compose import ComposedConfig
from orchestrator.launch.create_run import (
    create_or_open_run,
    create_or_open_runs,
    make_plan_for,
    run_id,
    run_of,
    run_path,
)
from orchestrator.launch.resume_run import resume_run
from orchestrator.launch.software import code_version, current_software, record_software
from orchestrator.run.rundir import RunDir, RunError
from orchestrator.tracking.mlflow_store import run_metadata

ConfigOf = Callable[..., Config]


@pytest.fixture
def config_of(values: dict[str, Any], shards: Path, tmp_path: Path) -> ConfigOf:
    """Return a function: a config of the planned data set, with some of its keys changed."""
    defaults = {"runs_dir": str(tmp_path / "runs")}
    values["data"]["url"] = str(shards)

    def config_of(**changes: Any) -> Config:
        return parse(values | defaults | changes)

    return config_of


def opened(config: Config, *overrides: str) -> RunDir:
    run, _ = create_or_open_run(ComposedConfig(config, overrides))
    return run


def finish(run: RunDir) -> None:
    outcome = {"outcome": "finished", "step": 1, "attempt": run.begin_attempt(), "reason": ""}
    run.write_json(run.outcome_file, outcome)


def content(run: RunDir) -> dict[str, bytes]:
    files = (file for file in run.path.rglob("*") if file.is_file() and file.name != "lock")
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("lenet5_1998", "lenet5_1998"),
        ("timm/resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("my_package.nets:wide", "my_package.nets_wide"),
        ("timm/../../a b;c", "a_b_c"),
    ],
)
def test_the_id_of_a_run_is_readable(config_of: ConfigOf, name: str, shown: str) -> None:
    config = config_of(model={"name": name, "kwargs": {}, "published": None})
    assert re.fullmatch(re.escape(shown) + "-digits-[0-9a-f]{8}", run_id(config))


def test_a_config_has_a_directory_of_its_own(config_of: ConfigOf) -> None:
    run, again, other = (opened(config_of(seed=seed)) for seed in (1, 1, 2))
    assert run == again
    assert run.path.parent == other.path.parent
    assert run.path != other.path
    auto = {"recipe.num_micro_batches": "auto", "data.num_lanes": "auto"}
    assert parse(run.read_config()).replace(auto) == config_of(seed=1)


def sizes_of(run: RunDir) -> tuple[object, object]:
    config = parse(run.read_config())
    return config.recipe.num_micro_batches, config.data.num_lanes


def test_auto_sizes_are_fixed_when_a_run_is_created(config_of: ConfigOf) -> None:
    """The same command on other ranks, and a resume on others, continue with the same numbers."""

    def on(ranks: int, **changes: object) -> Config:
        return config_of(**changes).replace({"launcher.nproc_per_node": ranks})

    run, plan = create_or_open_run(ComposedConfig(on(2), ()))
    assert sizes_of(run) == (plan.num_micro_batches, plan.num_lanes) == (2, 32)
    for ranks in (1, 4, 64):
        again, plan = create_or_open_run(ComposedConfig(on(ranks), ()))
        assert again == run
        assert (plan.world_size, plan.num_micro_batches, plan.num_lanes) == (ranks, 2, 32)
        assert plan == make_plan_for(on(ranks))  # as a dry run does
        assert sizes_of(run) == (2, 32)
    plan = resume_run(run, ["launcher.nproc_per_node=8", "recipe.num_micro_batches=auto"])
    assert (plan.ranks_per_micro_batch, plan.num_micro_batches) == (4, 2)
    assert sizes_of(run) == (2, 32)
    with pytest.raises(ConfigError, match=r"recipe\.num_micro_batches"):
        resume_run(run, ["recipe.num_micro_batches=4"])

    explicit = on(2).replace({"run_dir": str(run.path), "recipe.num_micro_batches": 4})
    with pytest.raises(RunError, match=r"recipe\.num_micro_batches: 2 there, 4 now"):
        opened(explicit)
    assert opened(explicit.replace({"recipe.num_micro_batches": 2})) == run

    finish(run)
    assert sizes_of(opened(on(8, if_finished="rerun"))) == (8, 32)


def test_an_unfinished_run_is_opened_again_with_other_mutable_keys(config_of: ConfigOf) -> None:
    run = opened(config_of())
    before = run.read_json(run.identity_file)
    again, plan = create_or_open_run(
        ComposedConfig(config_of(logging={"every_steps": 3, "log_sample_ids": True}), ())
    )
    assert again == run
    assert plan.num_train == 1000
    assert run.read_config()["logging"]["every_steps"] == 3
    assert run.read_json(run.identity_file) == before


def test_a_finished_run_is_refused_with_the_alternatives(
    config_of: ConfigOf, tmp_path: Path
) -> None:
    config = config_of(run_dir=str(tmp_path / "my run"))
    run = opened(config)
    finish(run)
    before = content(run)
    with pytest.raises(RunError, match="is finished") as refused:
        opened(config)
    for alternative in (f"tahoe resume '{run.path}' recipe", "if_finished=rerun", "=skip"):
        assert alternative in refused.value.hint
    assert content(run) == before


def test_if_finished_skip_leaves_a_run_unchanged(config_of: ConfigOf) -> None:
    run = opened(config_of())
    finish(run)
    before = content(run)
    changed = config_of(if_finished="skip", logging={"every_steps": 3, "log_sample_ids": True})
    assert opened(changed).is_finished
    assert content(run) == before


def test_if_finished_rerun_archives_the_finished_runs(
    config_of: ConfigOf, capsys: pytest.CaptureFixture[str]
) -> None:
    run = opened(config_of())
    uids = []
    for number in (1, 2):
        finish(run)
        uids.append((run.read_json(run.identity_file) or {})["uid"])
        again = opened(config_of(if_finished="rerun"))
        old = RunDir(run.path.with_name(f"{run.path.name}.{number}"))
        assert (again, again.is_finished, again.num_attempts) == (run, False, 0)
        assert old.is_finished
        assert f"kept as {old.path}" in capsys.readouterr().out
    uids.append((run.read_json(run.identity_file) or {})["uid"])
    assert len(set(uids)) == 3


def test_a_finished_run_is_not_archived_for_one_that_cannot_start(
    config_of: ConfigOf, shards: Path
) -> None:
    run = opened(config_of())
    finish(run)
    shutil.rmtree(shards)
    with pytest.raises(DataError, match="no data set at"):
        opened(config_of(if_finished="rerun"))
    assert run.is_finished


def test_another_config_in_the_same_directory_is_refused(
    config_of: ConfigOf, tmp_path: Path
) -> None:
    where, options = str(tmp_path / "run"), {"head": "rbf", "border": 0}
    model = {"name": "lenet5_1998", "published": None}
    run = opened(config_of(run_dir=where, model=model | {"kwargs": options}))
    with pytest.raises(RunError) as refused:
        opened(config_of(run_dir=where, model=model | {"kwargs": {"head": "rbf"}}, seed=7))
    changes = "(seed: 0 there, 7 now; model.kwargs.border: 0 there, absent now)"
    assert changes in refused.value.problem
    assert run.read_config()["seed"] == 0


@pytest.fixture
def slow(shards: Path) -> Iterator[tuple[str, threading.Event, threading.Event]]:
    """Serve the data set: its URL, what tells that it is asked for, and what lets it answer."""
    asked, go_on = threading.Event(), threading.Event()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            go_on.wait(30)
            super().do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(shards))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked, go_on
        server.shutdown()
        thread.join()


def test_the_first_of_two_concurrent_configs_keeps_the_directory(
    config_of: ConfigOf, slow: tuple[str, threading.Event, threading.Event], tmp_path: Path
) -> None:
    where, (url, asked, go_on) = str(tmp_path / "run"), slow
    data = to_dict(config_of())["data"] | {"url": url}
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(opened, config_of(run_dir=where, data=data, seed=2))
        assert asked.wait(30)  # it has found no run there
        run = opened(config_of(run_dir=where, seed=1))
        go_on.set()
        with pytest.raises(RunError, match="seed: 1 there, 2 now"):
            second.result(30)
    assert run.read_config()["seed"] == 1


def test_the_first_of_two_concurrent_runs_fixes_the_auto_sizes(
    config_of: ConfigOf, slow: tuple[str, threading.Event, threading.Event], tmp_path: Path
) -> None:
    where, (url, asked, go_on) = str(tmp_path / "run"), slow
    data = to_dict(config_of())["data"] | {"url": url}
    config = config_of(run_dir=where).replace({"launcher.nproc_per_node": 4})
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(
            create_or_open_run, ComposedConfig(config_of(run_dir=where, data=data), ())
        )
        assert asked.wait(30)  # it has found no run there
        run = opened(config)
        go_on.set()
        _, plan = second.result(30)
    assert sizes_of(run) == (plan.num_micro_batches, plan.num_lanes) == (4, 32)


def test_the_config_of_a_running_attempt_stays(config_of: ConfigOf) -> None:
    run = opened(config_of())
    with run.lock(), pytest.raises(RunError, match="is running"):
        opened(config_of(logging={"every_steps": 3, "log_sample_ids": True}))
    assert run.read_config()["logging"]["every_steps"] == 10


def test_an_unwritable_runs_dir_is_refused(config_of: ConfigOf, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = config_of(runs_dir=str(tmp_path / "file"))
    with pytest.raises(RunError, match="cannot make") as refused:
        opened(config)
    assert refused.value.value == run_path(config)
    assert "runs_dir=DIR" in refused.value.hint


def test_an_impossible_plan_creates_no_directory(config_of: ConfigOf, tmp_path: Path) -> None:
    data = to_dict(config_of())["data"] | {"num_lanes": 3}
    with pytest.raises(ConfigError, match=r"data\.num_lanes=3"):
        opened(config_of(data=data))
    assert not (tmp_path / "runs").exists()


def test_points_of_a_sweep_that_are_one_run_are_refused(config_of: ConfigOf) -> None:
    logging = {"every_steps": 3, "log_sample_ids": True}
    first = ComposedConfig(config_of(), ("logging.every_steps=10",))
    second = ComposedConfig(config_of(logging=logging), ("logging.every_steps=3",))
    other = ComposedConfig(config_of(seed=1), ("seed=1",))
    with pytest.raises(ConfigError, match=r"one run: .*=10\] and \[logging\.every_steps=3\]"):
        create_or_open_runs([first, other, second])
    assert len({run.path for run, _ in create_or_open_runs([first, other])}) == 2


def test_runs_on_other_data_are_other_runs(
    config_of: ConfigOf, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other, and as points of a sweep; a copy of the same data is the same run."""
    for name in ("other", "copy"):
        shutil.copytree(shards, shards.with_name(name))
    file = shards.with_name("other") / "train" / "manifest.json"
    file.write_text(file.read_text().replace("0" * 64, "f" * 64))
    data = to_dict(config_of())["data"]

    def on(name: str) -> ComposedConfig:
        url = str(shards.with_name(name))
        return ComposedConfig(config_of(data=data | {"url": url}), (f"data.url={url}",))

    points = [on(shards.name), on("other")]
    for _ in range(2):
        (first, _), (second, _) = create_or_open_runs(points)
        assert first.path == run_path(points[0].config)
        assert second.path.parent == first.path.parent
        assert second.read_config()["data"]["url"] == str(shards.with_name("other"))
        assert first.read_config()["data"]["url"] == str(shards)
        assert run_of(points[1].config) == second
    (line,) = capsys.readouterr().out.splitlines()
    assert (str(first.path) in line, str(second.path) in line) == (True, True)
    finish(second)
    with pytest.raises(RunError, match="is finished"):
        create_or_open_run(points[1])
    assert create_or_open_run(on("copy"))[0] == first
    with pytest.raises(ConfigError, match=r"one run: .*/copy\]"):
        create_or_open_runs([points[0], on("copy")])


def test_points_of_a_sweep_with_equal_checkpoint_urls_are_refused(
    config_of: ConfigOf, tmp_path: Path
) -> None:
    checkpoint = to_dict(config_of())["checkpoint"] | {"url": str(tmp_path / "checkpoints")}
    points = [
        ComposedConfig(config_of(seed=n, checkpoint=checkpoint), (f"seed={n}",)) for n in (1, 2)
    ]
    with pytest.raises(ConfigError, match=r"\[seed=1\] and \[seed=2\]") as refused:
        create_or_open_runs(points)
    assert refused.value.value == checkpoint["url"]


def test_a_new_run_does_not_continue_the_checkpoints_of_another(
    config_of: ConfigOf, tmp_path: Path
) -> None:
    saved = tmp_path / "checkpoints" / "step-000000012" / "manifest.json"
    checkpoint = to_dict(config_of())["checkpoint"] | {"url": str(tmp_path / "checkpoints")}
    run = opened(config_of(seed=1, checkpoint=checkpoint))
    saved.parent.mkdir(parents=True)
    saved.write_text("{}")
    assert opened(config_of(seed=1, checkpoint=checkpoint)) == run
    finish(run)
    (tmp_path / "checkpoints" / "owner.json").unlink()
    for other in ({"seed": 2}, {"seed": 1, "if_finished": "rerun"}):
        with pytest.raises(RunError, match="up to step 12") as refused:
            opened(config_of(checkpoint=checkpoint, **other))
        assert refused.value.value == checkpoint["url"]
    assert run.is_finished


@pytest.mark.parametrize("url", ["nope://bucket", "/tmp/a::b"])
def test_an_invalid_checkpoint_url_starts_nothing(config_of: ConfigOf, url: str) -> None:
    config = config_of(checkpoint=to_dict(config_of())["checkpoint"] | {"url": url})
    with pytest.raises(RunError, match="ValueError") as refused:
        opened(config)
    assert refused.value.value == url
    assert not Path(config.runs_dir).exists()


def test_a_run_records_overrides_code_packages_and_data(config_of: ConfigOf) -> None:
    run = opened(config_of(), "seed=0", "data=digits")
    recorded = json.loads(run.identity_file.read_text())
    software, patch = current_software(run.read_config()["model"]["name"])
    assert recorded["id"] == run.path.name
    assert recorded["overrides"] == ["seed=0", "data=digits"]
    assert recorded["git"] == software["git"]
    assert run.patch_file.exists() == bool(patch)
    assert "network" not in recorded  # it is none of the user's
    assert recorded["python"] == sys.version.split()[0]
    assert recorded["packages"]["torch"] == version("torch")
    assert recorded["packages"]["tahoe-orchestrator"] == version("tahoe-orchestrator")
    assert {k: recorded["data"][k] for k in ("name", "num_train", "num_val", "num_classes")} == {
        "name": "digits",
        "num_train": 1000,
        "num_val": 100,
        "num_classes": 10,
    }
    assert len(recorded["data"]["fingerprint"]) == 33


def test_a_run_that_continues_with_other_software_records_it(
    config_of: ConfigOf, capsys: pytest.CaptureFixture[str]
) -> None:
    run = opened(config_of())
    opened(config_of())
    recorded = json.loads(run.identity_file.read_text())
    assert "continued_with" not in recorded
    recorded["packages"]["torch"] = "2.9.0"
    run.write_json(run.identity_file, recorded)
    capsys.readouterr()
    for _ in range(2):  # printed once
        opened(config_of())
    assert capsys.readouterr().err.count(f"torch 2.9.0 -> {version('torch')}") == 1
    (later,) = json.loads(run.identity_file.read_text())["continued_with"]
    assert later["packages"]["torch"] == version("torch")
    assert "continued_with" in run_metadata.environment(run)


def test_a_run_that_continues_with_another_user_network_records_it(
    config_of: ConfigOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = tmp_path / "code" / "their_nets"
    code.mkdir(parents=True)
    (code / "__init__.py").write_text("raise RuntimeError('imported')")
    (code / "wide.py").write_text("def make(num_classes, in_channels): return 1")
    monkeypatch.syspath_prepend(code.parent)
    model = {"name": "their_nets.wide:make", "kwargs": {}, "published": None}
    run, (software, _) = opened(config_of()), current_software(str(model["name"]))
    digest = sha256((code / "wide.py").read_bytes()).hexdigest()
    assert software["network"] == {"sha256": digest, "git": None}
    run.write_config(to_dict(config_of(model=model)))
    run.write_json(run.identity_file, software)
    record_software(run)
    assert run.read_json(run.identity_file) == software
    (code / "wide.py").write_text("def make(num_classes, in_channels): return 2")
    capsys.readouterr()
    for _ in range(2):  # printed once
        record_software(run)
    assert capsys.readouterr().err.count(digest[:8]) == 1
    (later,) = json.loads(run.identity_file.read_text())["continued_with"]
    assert later["network"]["sha256"] != digest


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository of two files, under a git configured against patches."""
    config = tmp_path / "gitconfig"
    config.write_text(
        "[user]\nname=a\nemail=a@b\n[color]\nui=always\n[diff]\nnoprefix=true\nexternal=false\n"
        "relative=true\n[core]\nautocrlf=false\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    path = tmp_path / "checkout"
    (path / "package").mkdir(parents=True)
    (path / "package" / "code.py").write_bytes(b"one\r\n\xe9\r\n")
    (path / "image").write_bytes(b"\0\1\2")
    git(path, "init", "--quiet")
    git(path, "add", ".")
    git(path, "commit", "--quiet", "--message", "first")
    return path


def git(path: Path, *arguments: str) -> str:
    command = ["git", "-C", str(path), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    state = code_version(checkout / "package" / "code.py")
    assert state == ({"commit": commit, "dirty": False}, b"")


def test_the_patch_of_a_dirty_checkout_can_be_applied(checkout: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(checkout), str(clone))
    (checkout / "package" / "code.py").write_bytes(b"one\r\n\xe9\xe8\r\ntwo\n")
    (checkout / "image").write_bytes(b"\0\1\3")
    state, patch = code_version(checkout / "package" / "code.py")
    assert state is not None
    assert state["dirty"]
    subprocess.run(["git", "-C", str(clone), "apply"], input=patch, check=True)
    for name in ("package/code.py", "image"):
        assert (clone / name).read_bytes() == (checkout / name).read_bytes()


def test_untracked_files_make_a_checkout_dirty(checkout: Path) -> None:
    (checkout / "new.py").touch()
    state, patch = code_version(checkout / "package" / "code.py")
    assert state is not None
    assert (state["dirty"], patch) == (True, b"")


def test_code_outside_a_checkout_has_no_commit(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, untracked = tmp_path / "code.py", checkout / "venv.py"
    for file in (outside, untracked):
        file.touch()
        assert code_version(file) == (None, b"")
    monkeypatch.setenv("PATH", str(tmp_path))  # a machine without git
    assert code_version(checkout / "package" / "code.py") == (None, b"")


OPEN_A_RUN = """
import sys
from orchestrator.launch.compose import compose
from orchestrator.launch.create_run import create_or_open_runs
from orchestrator.launch.local_launcher import run_attempt
from orchestrator.launch.resume_run import resume_run
((run, _),) = create_or_open_runs(compose(sys.argv[1:]))
resume_run(run, ["recipe.epochs=30"])
print(sorted({"torch", "mlflow", "timm", "sklearn"} & set(sys.modules)))
"""


def test_the_launcher_does_not_import_torch(shards: Path, tmp_path: Path) -> None:
    arguments = [f"data.url='{shards}'", "run_dir=run", "model=timm/resnet18"]
    command = [sys.executable, "-P", "-c", OPEN_A_RUN, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
