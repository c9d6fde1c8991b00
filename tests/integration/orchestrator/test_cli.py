"""The command line: instant help, completion, errors in one message, exit codes."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_runner import Tahoe

import conf
from orchestrator.cli.main import main
from orchestrator.launch import local_launcher
from orchestrator.run.rundir import RunDir
from orchestrator.run.sweepdir import SweepDir, sweep_of

VERBS = (
    *(
        "train",
        "resume",
        "create",
        "submit",
        "status",
        "list",
        "logs",
        "cancel",
        "doctor",
        "evaluate",
    ),
    *("models", "compare", "report", "register", "import", "sync", "ui", "ckpt", "shard"),
    *("drill", "local-cluster"),
)
TAHOE = Path(sys.executable).with_name("tahoe")

LIST_HEAVY_MODULES = """
import sys
import conf
from orchestrator.cli.main import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "mlflow", "hydra", "omegaconf", "pydantic", "numpy", "rich", "yaml"}
    print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [verb for verb in listed if verb in VERBS] == [*VERBS]


@pytest.mark.parametrize(
    ("verb", "promised"),
    [
        ("train", "tahoe train -m model=lenet5_1998,resnet18 seed=1,2"),
        ("resume", "recipe.epochs=N extends the run"),
        ("shard", "digits"),
        ("compare", "KEY=VALUE"),
        ("report", "--protocol NAME"),
        ("sync", "MLflow"),
        ("ui", "sqlite:///mlflow.db"),
    ],
)
def test_each_verb_has_its_help(
    verb: str, promised: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--help"]) == 0
    assert promised in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["-h"], ["shard", "csv", "-h"], *([verb, "-h"] for verb in VERBS)]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-c", LIST_HEAVY_MODULES, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("[]\n", 0)


def test_help_comes_at_once() -> None:
    for arguments in (["--help"], ["train", "--help"]):
        assert min(seconds(arguments) for _ in range(3)) < 0.5


def seconds(arguments: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run([TAHOE, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def test_the_config_is_printed_from_any_directory(tahoe: Tahoe) -> None:
    done = tahoe("train", "--cfg", "job", "model=timm/resnet18", "recipe.optimizer.lr=0.5")
    assert "  name: timm/resnet18\n" in done.stdout
    assert "    lr: 0.5\n" in done.stdout
    assert (done.stderr, list(tahoe.cwd.iterdir())) == ("", [])


def test_info_prints_the_defaults_tree(tahoe: Tahoe) -> None:
    tree = tahoe("train", "--info", "defaults-tree", "recipe=adamw", "model=timm/resnet18").stdout
    assert "model: timm/resnet18" in tree
    assert "recipe: adamw" in tree
    assert list(tahoe.cwd.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "exit_code", "expected"),
    [
        (["train", "sede=1"], 93, "did you mean 'seed'?"),
        (["train", "-m", "--cfg", "job"], 93, "Only one of --run, --multirun, --cfg"),
        (["train", "data.url=nowhere"], 1, "no data set at "),
        (["resume", "nowhere"], 1, "no run at "),
        (["resume", "{file}"], 1, "no run at "),
        (["compare", "nowhere"], 1, "no run at "),
        (["sync", "nowhere"], 1, "no run at "),
        # words may follow options
        (["resume", "nowhere", "--schedule", "keep", "recipe.epochs=3"], 1, "no run at "),
        (["resume", "nowhere", "seed=1", "--schedule=keep", "recipe.epochs=3"], 1, "no run at "),
        (["status", "{file}", "--json", "nowhere"], 1, "no run at "),
        (["compare", "nowhere", "--limit", "3", "seed=1"], 1, "no run at "),
        (["ckpt", "ls", "--json", "nowhere"], 1, "no run at "),
    ],
)
def test_errors_are_one_message_and_an_exit_code(
    arguments: list[str],
    exit_code: int,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.touch()
    assert main([argument.format(file=file) for argument in arguments]) == exit_code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert expected in printed.err
    assert "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("arguments", "similar"),
    [
        (["trian"], "train"),
        (["ckpt", "verfy"], "verify"),
        (["shard", "indx"], "index"),
        (["resume", "a", "--shcedule", "keep"], "--schedule"),
        (["evaluate", "a", "--split=vla"], "val"),
    ],
)
def test_similar_names_are_suggested(
    arguments: list[str], similar: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert f"'{similar}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["resume", "a", "--sched", "keep"], "No such option '--sched'"),  # no abbreviations
        (["resume", "--schedule", "keep"], "Missing argument 'RUN'"),
        (["ckpt", "ls", "a", "--json", "b"], "unexpected extra argument (b)"),
        (["shard", "digits", "a", "--max-side=9", "--short-side=9"], "--short-side"),
        (["status"], "Missing argument 'RUN...'"),
    ],
)
def test_invalid_usage_is_refused(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["list"],
        ["models"],  # printed by rich, which handles a closed pipe itself
        ["models", "--json"],
        ["train", "--cfg", "job"],
        ["train", "sede=1"],
        ["submit", "--dry-run"],
        ["shard", "verify", "nowhere"],
    ],
)
def test_a_closed_pipe_ends_a_verb_silently(
    arguments: list[str], digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "datasets").symlink_to(digits.parent)
    reading, writing = os.pipe()
    os.close(reading)
    with (tmp_path / "stderr").open("w") as stderr:
        both = ("train" in arguments and "--cfg" not in arguments) or "verify" in arguments
        command = [str(TAHOE), *arguments]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            stdout=writing,
            stderr=writing if both else stderr,
            timeout=100,
            check=False,
        )
    os.close(writing)
    assert done.returncode in (0, 1, 128 + signal.SIGPIPE)
    assert (tmp_path / "stderr").read_text() == ""


@pytest.mark.usefixtures("capfd")
def test_other_broken_pipes_are_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(overrides: object, **_: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("orchestrator.launch.compose.compose", fail)
    with pytest.raises(BrokenPipeError):
        main(["train"])


def test_the_installed_command_prints_errors(tahoe: Tahoe) -> None:
    done = subprocess.run(
        [TAHOE, "train", "seed=x"], cwd=tahoe.cwd, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (93, "")
    assert done.stderr.startswith("error: the config cannot be run:\n  seed: ")


def test_the_second_point_is_checked_before_the_first_is_started(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = ["-m", "recipe.global_batch_size=128,129", "data.num_lanes=32"]
    assert main(["train", f"data.url='{shards}'", *sweep]) == 93
    assert (
        "data.num_lanes=32 does not divide recipe.global_batch_size=129" in capsys.readouterr().err
    )
    assert not list(tmp_path.glob("runs/*/attempts.jsonl"))


@pytest.mark.parametrize(
    ("ends", "exit_code", "num_started"),
    [([0, 0], 0, 2), ([1, 0], 1, 2), ([93, 0], 93, 2), ([75, 0], 75, 1), ([130, 0], 130, 1)],
)
def test_a_sweep_ends_at_a_stop_but_not_at_a_failure(
    ends: list[int],
    exit_code: int,
    num_started: int,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    codes = iter(ends)
    monkeypatch.setattr(local_launcher, "run_attempt", lambda *_, **__: next(codes))
    assert main(["train", f"data.url='{shards}'", "-m", "seed=1,2"]) == exit_code
    assert len(list(codes)) == 2 - num_started
    (place,) = (tmp_path / "runs" / "sweeps").iterdir()
    points = SweepDir(place).points()  # who is a parent in MLflow, as of a sweep on Slurm
    assert sorted(points.values()) == [[f"data.url='{shards}'", f"seed={n}"] for n in (1, 2)]
    assert {sweep_of(run) for run in points} == {SweepDir(place)}


@pytest.mark.slow
def test_a_sweep_skips_points_that_run_elsewhere(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    started: list[RunDir] = []
    monkeypatch.setattr(
        local_launcher, "run_attempt", lambda run, *_, **__: started.append(run) or 0
    )
    command = ["train", f"data.url='{shards}'", "-m", "seed=1,2,3"]
    assert main(command) == 0
    first, second, third = started
    with second.lock():
        assert main(command) == 1
        assert second.id in capsys.readouterr().err
        assert started[3:] == [first, third]
        assert main([*command[:-1], "seed=2"]) == 1
        assert len(started) == 5


@pytest.fixture(scope="module")
def replies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return what bash offers when Tab is pressed after each of some lines."""
    lines = ("tahoe tr", "tahoe ", "tahoe resume ", "tahoe train mod", "tahoe train model=")
    lines += ("tahoe train model=timm/resnet18 recipe.schedule.dec", "tahoe submit --dry-run recip")
    lines += ("tahoe submit --af", "tahoe local-cluster k", "tahoe shard ind")
    script = 'eval "$(tahoe train -sc install=bash)"\n'
    for line in lines:
        words = line.split() + [""] * line.endswith(" ")
        script += (
            f"COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}\n"
            f"COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1}\n"
            "hydra_bash_completion\n"
            """printf '%s\\t' "${COMPREPLY[@]}"; echo\n"""
        )
    anywhere = tmp_path_factory.mktemp("anywhere")
    (anywhere / "tahoe").symlink_to(TAHOE)  # Hydra's script fails where the path has a space
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=anywhere,
        env=os.environ | {"PATH": f"{anywhere}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    shown = [line.split("\t")[:-1] for line in done.stdout.splitlines()]
    return dict(zip(lines, shown, strict=True))


def test_bash_completes_verbs(replies: dict[str, list[str]]) -> None:
    assert replies["tahoe tr"] == ["train"]
    assert {*replies["tahoe "]} == {*VERBS}
    assert replies["tahoe local-cluster k"] == ["kill-node"]
    assert replies["tahoe shard ind"] == ["index"]
    assert replies["tahoe submit --af"] == ["--after"]


def test_bash_completes_paths_itself(replies: dict[str, list[str]]) -> None:
    assert not {*VERBS} & {*replies["tahoe resume "]}


def test_bash_completes_groups(replies: dict[str, list[str]]) -> None:
    assert {"model=", "model."} & {*replies["tahoe train mod"]}
    assert {"recipe=", "recipe."} & {*replies["tahoe submit --dry-run recip"]}


def test_bash_completes_the_choices_of_a_group(replies: dict[str, list[str]]) -> None:
    choices = sorted(file.stem for file in Path(conf.__file__).parent.glob("model/*.yaml"))
    assert {"custom", "lenet5_1998", "resnet18", "timm", "torchvision"} < set(choices)
    assert replies["tahoe train model="] == [f"model={choice}" for choice in choices]


def test_bash_completes_keys_after_a_named_model_too(replies: dict[str, list[str]]) -> None:
    line = "tahoe train model=timm/resnet18 recipe.schedule.dec"
    assert replies[line] == [
        "recipe.schedule.decay_every_epochs=",
        "recipe.schedule.decay_milestones.",
        "recipe.schedule.decay_rate=",
    ]


@pytest.mark.parametrize(("shell", "words"), [("bash", "tahoe ckpt ver"), ("zsh", "tahoe ckpt v")])
def test_other_shells_complete_by_click(shell: str, words: str) -> None:
    environ = {"_TAHOE_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": "2"}
    done = subprocess.run(
        [TAHOE], env=os.environ | environ, capture_output=True, text=True, check=False
    )
    assert "verify" in done.stdout
