"""Runs are meant by where they lie and by what their configs say."""

from pathlib import Path

import pytest

from orchestrator.cli.verbs.select_runs import select_runs
from orchestrator.run.rundir import RunDir, RunError
from orchestrator.run.sweepdir import SweepDir


@pytest.fixture
def place(create_tracked_run):
    for name, model, epochs in (("a", "timm/resnet50", 90), ("b", "alexnet", 90), ("c", "nin", 5)):
        tracked = create_tracked_run(name)
        published = {"title": "Network in Network", "year": 2013} if model == "nin" else None
        tracked.configure(model={"name": model, "published": published}, recipe={"epochs": epochs})
        tracked.run.write_json(tracked.run.mlflow_file, {"run_id": name * 32})
        tracked.run.write_json(tracked.run.identity_file, {"data": {"fingerprint": f"{name}0"}})
    tracked.run.begin_attempt()
    tracked.write_outcome("finished")
    return tracked.run.path.parent


def chosen(place, *words):
    return [one.id for one in select_runs(words, place)]


def test_no_words_mean_all(place) -> None:
    assert chosen(place) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model=resnet50"], ["a"]),
        (["model=timm/resnet50"], ["a"]),
        (["model=Network in Network"], ["c"]),
        (["model=*net*"], ["a", "b"]),
        (["model=alexnet,nin"], ["b", "c"]),
        (["recipe.epochs=90", "model=alexnet,nin"], ["b"]),
        (["data=digits", "status=finished"], ["c"]),
        (["fingerprint=b*"], ["b"]),
        (["recipe.schedule=*30*"], ["a", "b", "c"]),
        (["b" * 32, "a" * 32], ["b", "a"]),
    ],
)
def test_words(place, words, expected) -> None:
    assert chosen(place, *words) == expected


def test_directories_of_runs_and_sweeps(place) -> None:
    assert chosen(place, str(place / "b")) == ["b"]
    sweep = SweepDir(place / "sweeps" / "sweep-1")
    sweep.add((RunDir(place / name), []) for name in ("c", "a"))
    assert chosen(place, str(sweep.path), str(place / "a"), "recipe.epochs=90") == ["a"]
    assert chosen(place, str(sweep.path)) == ["c", "a"]


@pytest.mark.parametrize(
    ("words", "value", "hint"),
    [
        (["model=vgg"], ["model=vgg"], "--runs-dir DIR"),
        (["recipe.epoch=90"], "recipe.epoch", "recipe.epochs"),
        (["d" * 32], "d" * 32, "--from-mlflow URI"),
        (["nowhere"], Path("nowhere").absolute(), ""),
    ],
)
def test_unknown_runs_and_keys_are_errors(place, words, value, hint) -> None:
    with pytest.raises(RunError) as caught:
        select_runs(words, place)
    assert caught.value.value == value
    assert hint in caught.value.hint
