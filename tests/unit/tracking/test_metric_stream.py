"""Whatever attempts wrote, every (key, step) comes out exactly once, with its first value."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.run.metric_stream import MetricTail, Point, PointDeduplicator, curve
from orchestrator.run.rundir import RunDir
from orchestrator.tracking.records.record import read_record

BATCH = 1000


def record(step, metrics, attempt=1):
    return {"step": step, "time_ms": 1000 + step, "attempt": attempt, "metrics": metrics}


def lines(*records):
    return "".join(json.dumps(known) + "\n" for known in records)


def read(file, shipped_bytes=0, size=BATCH):
    return [point for batch, _ in MetricTail(file).batches(shipped_bytes, size) for point in batch]


# An attempt resumes at or below the last step, logs each key at a pace, and is torn or not.
PACES = st.dictionaries(st.sampled_from(["train/loss", "val/top1", "lr"]), st.integers(1, 7))
ATTEMPTS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 30), PACES, st.booleans()), min_size=1, max_size=6
)


@given(ATTEMPTS, st.integers(1, 20), st.integers(0, 100))
def test_every_step_comes_once_with_its_first_value(
    tmp_path_factory: pytest.TempPathFactory, attempts, size, cut
) -> None:
    file, first, last_step = tmp_path_factory.mktemp("run") / "metrics.jsonl", {}, 0
    with file.open("w") as out:
        for attempt, (back, num_steps, paces, is_torn) in enumerate(attempts, start=1):
            start = math.floor(last_step * back)
            for step in range(start + 1, start + 1 + num_steps):
                logged = {key: attempt for key, pace in paces.items() if step % pace == 0}
                for key in logged:
                    first.setdefault((key, step), attempt)
                out.write(lines(record(step, logged, attempt)))
                last_step = step
            if is_torn:
                out.write(lines(record(last_step + 1, {"lr": 0}))[: 5 + cut % 40] + "\n")
    found = read(file, size=size)
    assert {(p.key, p.step): p.value for p in found} == first
    assert len(found) == len(first)


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 5))
def test_batches_and_marks_miss_nothing(
    tmp_path_factory: pytest.TempPathFactory, steps, size
) -> None:
    """Whichever batch was the last to arrive, the rest follows from its mark."""
    file = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    file.write_text(lines(*(record(step, {"a": 0, "b": 1}) for step in steps)))
    whole = read(file)
    sent, mark = [], 0
    for batch, mark in MetricTail(file).batches(0, size):
        sent += batch
        assert sent + read(file, shipped_bytes=mark) == whole
    assert sent == whole


def test_a_line_counts_when_it_is_ended(tmp_path: Path) -> None:
    file, line = tmp_path / "metrics.jsonl", lines(record(1, {"a": 0.5}))
    tail = MetricTail(file)
    assert list(tail.batches(0, BATCH)) == []  # no file yet
    for present in (line[:20], line[:-1]):
        file.write_text(present)
        assert list(tail.batches(0, BATCH)) == []
    file.write_text(line)
    assert list(tail.batches(0, BATCH)) == [([Point("a", 0.5, 1, 1001)], len(line))]
    assert list(tail.batches(0, BATCH)) == []


@pytest.mark.parametrize(
    "damaged",
    ['{"step": 3, "ti', "[]", "3", "null", '{"step": 1}', '{"step": 1, "time_ms": 1, "metrics": 3}',
     '{"step": "1", "time_ms": 1, "metrics": {"a": 1}}', "\x00\x00\x00", ""],
)  # fmt: skip
def test_a_damaged_line_is_passed_over(tmp_path: Path, damaged) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(lines(record(1, {"a": 1})) + damaged + "\n" + lines(record(2, {"a": 2})))
    assert [point.step for point in read(file)] == [1, 2]


def test_only_numbers_are_points() -> None:
    values = {"a": None, "b": True, "c": "1", "d": [1], "e": 1, "nan": math.nan, "inf": math.inf}
    assert [point.key for point in PointDeduplicator().new_points(record(1, values))] == [
        "e",
        "nan",
        "inf",
    ]


def test_names_are_made_legal() -> None:
    (point,) = PointDeduplicator().new_points(record(1, {"../val//top-1 @ 224%": 1}))
    assert point.key == "val/top-1 _ 224_"


def test_rollbacks_tell_what_was_computed_again() -> None:
    deduplicator = PointDeduplicator()
    for attempt, steps in ((1, range(1, 58)), (2, range(41, 52)), (3, range(49, 70))):
        deduplicator.new_points(
            record(0, {"model/num_params": 5}, attempt)
        )  # said by each, and no rollback
        for step in steps:
            deduplicator.new_points(record(step, {"train/loss": 0}, attempt))
    assert deduplicator.rollbacks == (
        "attempt 2: steps 41-51 computed again; attempt 3: steps 49-57 computed again"
    )


def test_steps_that_another_pace_logs_are_no_news_and_not_lost(tmp_path: Path) -> None:
    """After a kill at step 6 with a checkpoint of step 2; logging.every_steps was 2, and is 1."""
    run = RunDir(tmp_path)
    one, two = {"train/loss": 1.0}, {"train/loss": 2.0}
    begun = [record(step, one) for step in (2, 4, 6)]
    goes_on = [record(step, two, attempt=2) for step in (3, 4, 5)]
    run.metrics_file.write_text(lines(*begun, *goes_on))
    values = [(2, 1.0), (3, 2.0), (4, 1.0), (5, 2.0), (6, 1.0)]
    assert [*curve(run, "train/loss").items()] == values
    tail = MetricTail(run.metrics_file)
    assert [point.step for batch, _ in tail.batches(0, BATCH) for point in batch] == [2, 4, 6, 3, 5]
    assert tail.deduplicator.rollbacks == "attempt 2: steps 3-5 computed again"
    run.write_config({})
    assert read_record(run).metrics == one  # of the last step, not of the last line


def test_an_undisturbed_run_has_no_rollbacks(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(lines(record(1, {"a": 1}), record(2, {"a": 1}, attempt=2)))
    tail = MetricTail(file)
    assert len(list(tail.batches(0, BATCH))) == 1
    assert tail.deduplicator.rollbacks == ""
