"""The index gives what the directories say, whatever became of it and of them."""

import shutil
from pathlib import Path

import pytest

from orchestrator.run.rundir import RunError
from orchestrator.tracking.records import record_index
from orchestrator.tracking.records.record import read_record
from orchestrator.tracking.records.record_index import all_records, load_records

INDEX = ".index.jsonl"


@pytest.fixture(autouse=True)
def _every_index_is_worth_reading(monkeypatch):
    monkeypatch.setattr(record_index, "_FEW", 0)


@pytest.fixture
def runs(create_tracked_run):
    tracked_runs = [create_tracked_run(f"run-{number}") for number in range(3)]
    for number, tracked in enumerate(tracked_runs):
        tracked.log(10, {"val/top1": 10.0 * number})
    tracked_runs[0].configure(recipe={"only_here": 1})  # a config that has what others lack,
    tracked_runs[1].configure(recipe={"epochs": 91, "only_there": None})  # and the other way round
    return tracked_runs


def told(tracked_runs):
    return [
        one.metrics["val/top1"] for one in load_records([tracked.run for tracked in tracked_runs])
    ]


def place_of(tracked_runs) -> Path:
    return tracked_runs[0].run.path.parent


def test_records_are_those_of_the_directories(runs) -> None:
    for _ in range(2):  # read, and then remembered
        assert load_records([tracked.run for tracked in runs]) == [read_record(s.run) for s in runs]
        assert all_records(place_of(runs)) == [read_record(s.run) for s in runs]


def test_what_is_remembered_is_not_read_again(runs) -> None:
    told(runs)
    file = place_of(runs) / INDEX
    file.write_text(file.read_text().replace("20.0", "99.0"))
    assert told(runs) == [0.0, 10.0, 99.0]


def test_runs_that_were_moved_are_where_they_lie_now(runs) -> None:
    all_records(place_of(runs))
    moved = place_of(runs).rename(place_of(runs).with_name("moved"))
    assert (moved / INDEX).exists()
    found = all_records(moved)
    assert [one.path for one in found] == [str(moved / one.id) for one in found]
    assert len(found) == 3


def test_a_change_of_any_file_is_seen(runs) -> None:
    tracked = runs[1]
    before = load_records([tracked.run])[0]
    tracked.log(20, {"val/top1": 77.0})
    assert told(runs) == [0.0, 77.0, 20.0]
    tracked.configure(recipe={"epochs": 92})
    tracked.run.begin_attempt(world_size=2)
    tracked.write_outcome("finished")
    tracked.run.evaluations_file.write_text('{"top1": 1.0}\n')
    after = load_records([tracked.run])[0]
    assert after == read_record(tracked.run) != before
    assert (after.config["recipe.epochs"], after.status) == (92, "finished")
    assert after.evaluations == [{"top1": 1.0}]


@pytest.mark.parametrize(
    "damage",
    [
        '{"format": 0}\n',
        "",
        "no JSON\n",
        '{"format": 2}\n[]\n',
        '{"format": 2, "config": {}}\n[[], {}]\n',
    ],
)
def test_a_damaged_index_is_made_anew(runs, damage) -> None:
    told(runs)
    (place_of(runs) / INDEX).write_text(damage)
    assert told(runs) == [0.0, 10.0, 20.0]
    assert "run-2" in (place_of(runs) / INDEX).read_text()


def test_runs_that_are_gone_are_forgotten(runs) -> None:
    told(runs)
    shutil.rmtree(runs[0].run.path)
    runs[1].log(30, {"val/top1": 5.0})
    assert [one.id for one in all_records(place_of(runs))] == ["run-1", "run-2"]
    assert "run-0" not in (place_of(runs) / INDEX).read_text()


def test_an_attempt_that_lives_is_running_however_it_is_remembered(runs) -> None:
    run = runs[0].run
    run.begin_attempt()
    with run.lock():
        assert load_records([run])[0].status == "running"
        assert load_records([run])[0].status == "running"
    assert load_records([run])[0].status == "crashed"


def test_where_it_cannot_be_written(runs, capsys: pytest.CaptureFixture[str]) -> None:
    (place_of(runs) / INDEX).mkdir()
    assert told(runs) == [0.0, 10.0, 20.0]
    assert "is not kept" in capsys.readouterr().err


def test_a_few_among_thousands_are_read_from_their_directories(
    runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_index, "_FEW", 2)
    told(runs)
    file = place_of(runs) / INDEX
    file.write_text(file.read_text().replace("20.0", "99.0"))
    assert told(runs) == [0.0, 10.0, 99.0]
    assert told(runs[2:]) == [20.0]


@pytest.mark.parametrize("config", ["[", "- a list"])
def test_a_run_that_cannot_be_read_hides_no_other(
    runs, capsys: pytest.CaptureFixture[str], config
) -> None:
    runs[1].run.config_file.write_text(config)
    assert [one.id for one in all_records(place_of(runs))] == ["run-0", "run-2"]
    assert "skipped" in capsys.readouterr().err
    with pytest.raises(RunError, match=r"config\.yaml"):
        told(runs)


def test_where_nothing_is(tmp_path: Path) -> None:
    assert all_records(tmp_path / "nowhere") == []
