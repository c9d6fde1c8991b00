"""A sweep has its runs, and its path stands for them on a command line."""

import shutil
from pathlib import Path

import pytest

from orchestrator.run.rundir import RunDir
from orchestrator.run.sweepdir import SweepDir, expand_sweeps, is_sweep, sweep_of


@pytest.fixture
def runs(tmp_path: Path) -> list[RunDir]:
    runs = [RunDir(tmp_path / name) for name in ("b", "a", "c")]
    for run in runs:
        run.path.mkdir()
    return runs


def test_the_same_runs_are_the_same_sweep(tmp_path: Path, runs: list[RunDir]) -> None:
    sweep = SweepDir.of(tmp_path, runs)
    assert SweepDir.of(tmp_path, runs[::-1]) == sweep
    assert SweepDir.of(tmp_path, runs[:2]) != sweep
    assert sweep.path.parent == tmp_path / "sweeps"


def test_runs_are_added_once_and_know_their_sweep(tmp_path: Path, runs: list[RunDir]) -> None:
    sweep = SweepDir.of(tmp_path, runs[:2])
    assert (sweep.runs(), sweep_of(runs[0])) == ([], None)
    sweep.add((run, [f"seed={i}"]) for i, run in enumerate(runs[:2]))
    sweep.add((run, [f"seed={i}"]) for i, run in enumerate(runs))
    assert sweep.runs() == runs
    assert sweep.overrides() == [["seed=0"], ["seed=1"], ["seed=2"]]
    assert sweep_of(runs[2]) == sweep


def test_a_recreated_sweep_has_another_uid(tmp_path: Path, runs: list[RunDir]) -> None:
    sweep = SweepDir.of(tmp_path, runs)
    sweep.add([(runs[0], [])])
    before = sweep.uid
    sweep.add([(runs[1], [])])
    assert sweep.uid == before
    shutil.rmtree(sweep.path)
    sweep.add([(runs[0], [])])
    assert sweep.uid not in (before, sweep.id)


def test_a_sweep_expands_to_its_runs(
    tmp_path: Path, runs: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = SweepDir.of(tmp_path, runs[:2])
    sweep.add((run, []) for run in runs[:2])
    relative = Path("sweeps") / sweep.id
    assert is_sweep(relative)
    assert not is_sweep(Path("c"))
    assert expand_sweeps([Path("c"), relative]) == [runs[2], *runs[:2]]


def test_a_sweep_may_be_moved_with_its_runs(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "some" / "after"
    runs = [RunDir(before / name) for name in "ba"]
    for run in runs:
        run.path.mkdir(parents=True)
    sweep = SweepDir.of(before, runs)
    sweep.add((run, [f"seed={i}"]) for i, run in enumerate(runs))
    after.parent.mkdir()
    before.rename(after)
    moved, moved_runs = (
        SweepDir(after / "sweeps" / sweep.id),
        [RunDir(after / name) for name in "ba"],
    )
    assert moved.runs() == moved_runs
    assert list(moved.points().values()) == [["seed=0"], ["seed=1"]]
    assert [sweep_of(run) for run in moved_runs] == [moved, moved]
    moved.add([(moved_runs[0], ["seed=0"])])  # known
    assert moved.runs() == moved_runs


def test_arrays_are_numbered(tmp_path: Path, runs: list[RunDir]) -> None:
    sweep = SweepDir.of(tmp_path, runs)
    sweep.add((run, []) for run in runs)
    assert sweep.new_array() == 1
    sweep.array_script(1).touch()
    assert sweep.new_array() == 2
