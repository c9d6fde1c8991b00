"""Runs side by side: rows of seeds, sections that compare, and what differs."""

import io
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from cli_runner import Tahoe
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from tracked_run import CreateTrackedRun

from orchestrator.tracking.records.record import read_record
from orchestrator.tracking.reports.compare import MeanStd, RunGroup, compare
from orchestrator.tracking.reports.compare_table import tables
from orchestrator.tracking.reports.curves import draw_curves, label_of


@pytest.fixture
def create_record(create_tracked_run):
    """Makes runs, and returns their records."""

    def make(name, top1, *, seed=1, epochs=90, protocol="center-28-of-28", model="alexnet"):
        tracked = create_tracked_run(name)
        tracked.configure(
            model={"name": model}, recipe={"epochs": epochs}, data={"eval_protocol": protocol}
        )
        config = tracked.run.read_config()
        tracked.run.write_config({**config, "seed": seed})
        tracked.log(10, {"val/top1": top1 / 2, "val/loss": 2.0, "train/loss": 3.0})
        tracked.log(20, {"val/top1": top1, "val/loss": 1.0, "train/loss": 1.5})
        tracked.run.begin_attempt()
        tracked.write_outcome("finished")
        return read_record(tracked.run)

    return make


def shown(sections, width=200):
    console = Console(width=width, file=io.StringIO(), soft_wrap=True)
    for table in tables(sections):
        console.print(table)
    return console.file.getvalue()


def test_data_sets_of_one_name_are_distinguished(create_record) -> None:
    runs = [replace(create_record(name, 50.0), data_fingerprint=name * 8) for name in ("a", "b")]
    text = shown(compare(runs))
    assert text.index("fingerprint=aaaaaaaa") < text.index("fingerprint=bbbbbbbb")
    assert "fingerprint" not in shown(compare(runs[:1]))


def test_a_seed_that_was_run_again_counts_once(create_record) -> None:
    runs = [create_record(name, top1, seed=seed) for name, seed, top1 in (
        ("again", 1, 52.0), ("again.1", 1, 40.0), ("other", 2, 54.0))]  # fmt: skip
    runs = [replace(one, created_s=when) for one, when in zip(runs, (9.0, 3.0, 5.0), strict=True)]
    for some in (runs, runs[::-1]):
        (section,) = compare(some)
        (row,) = section.rows
        assert {one.id for one in row.records} == {"again", "other"}
        assert (row.metrics["val/top1"].mean, row.metrics["val/top1"].num) == (53.0, 2)
        assert row.to_dict()["older"] == [runs[1].path]
        assert "same seed: again.1" in shown([section])
    (section,) = compare(runs[:2])
    assert section.rows[0].name == "again"
    assert section.rows[0].metrics["val/top1"] == MeanStd(52.0, None, 1)


def test_seeds_are_one_row_with_their_spread(create_record) -> None:
    runs = [create_record(f"s{seed}", 50.0 + seed, seed=seed) for seed in (1, 2, 6)]
    (section,) = compare([*runs, create_record("other", 80.0, epochs=5)])
    best, row = section.rows
    assert (best.name, best.differs) == ("other", {"recipe.epochs": "5"})
    assert (row.name, row.differs) == ("3 runs", {"recipe.epochs": "90"})
    spread = row.metrics["val/top1"]
    assert (spread.mean, spread.num) == (53.0, 3)
    assert spread.std == pytest.approx(statistics.stdev([51, 52, 56]))
    assert best.metrics["val/top1"] == MeanStd(80.0, None, 1)
    text = shown([section])
    assert "53.00 ± 2.65" in text
    assert "3 finished" in text
    assert "recipe" in text


def test_folds_are_one_row_among_rows_of_the_same_folds(create_record) -> None:
    def of_fold(name, top1, fold, **options):
        record = create_record(name, top1, **options)
        return replace(record, config={**record.config, "data.fold": fold})

    runs = [of_fold(f"f{fold}", 50.0 + fold, fold) for fold in (0, 1, 5)]
    others = [of_fold(f"o{fold}", 60.0 + fold, fold, epochs=5) for fold in (0, 1, 5)]
    single = of_fold("single", 99.0, 1, epochs=7)
    three, one = compare([*runs, *others, single])
    assert (three.folds, one.folds) == ((0, 1, 5), (1,))
    assert [row.metrics["val/top1"].mean for row in three.rows] == [62.0, 52.0]
    assert three.rows[1].metrics["val/top1"].std == pytest.approx(statistics.stdev([50, 51, 55]))
    assert three.rows[1].differs == {"recipe.epochs": "90"}
    text = shown([three, one])
    assert text.index("folds 0, 1, 5") < text.index("folds 1,")


def test_legends_have_the_data_and_differing_options(create_record) -> None:
    record = create_record("a", 50.0)
    differs = {"model.name": "x", "data.name": "digits", "model.kwargs.width": "0.5"}
    assert (
        label_of(RunGroup((record,), differs, {}))
        == f"{record.model_title}, data=digits, width=0.5"
    )


def test_unfinished_and_imported_runs_are_not_grouped_with_finished_seeds(create_record) -> None:
    runs = [create_record(f"s{seed}", 50.0 + seed, seed=seed) for seed in (1, 2)]
    stopped = replace(create_record("s3", 1.0, seed=3), status="stopped", step=1)
    imported = [replace(create_record(f"i{n}", 70.0 + n), status="imported") for n in (1, 2)]
    (section,) = compare([*runs, stopped, *imported])
    assert [row.name for row in section.rows] == ["i2", "i1", "2 runs", "s3"]
    assert section.rows[2].metrics["val/top1"].mean == 51.5


def test_other_protocols_are_not_ranked_together(create_record) -> None:
    runs = [
        create_record("a", 50.0),
        create_record("b", 60.0, protocol="ten-crop-28-of-32"),
        create_record("c", 55.0, epochs=5),
    ]
    center, ten = compare(runs)
    assert [row.name for row in center.rows] == ["c", "a"]
    assert [row.name for row in ten.rows] == ["b"]
    text = shown([center, ten])
    assert "These are 2 tables" in text
    assert text.index("digits, center-28-of-28") < text.index("digits, ten-crop-28-of-32")


def test_the_best_is_first_and_diverged_runs_are_last(create_record) -> None:
    top1 = {"low": 10.0, "nan": math.nan, "high": 90.0}
    runs = [
        create_record(name, value, epochs=i)
        for i, (name, value) in enumerate(top1.items(), start=1)
    ]
    (section,) = compare(runs)
    assert [row.name for row in section.rows] == ["high", "low", "nan"]


def test_only_differing_keys_are_shown(create_record) -> None:
    (section,) = compare([create_record("a", 1.0), create_record("b", 2.0, model="nin")])
    assert all(row.differs.keys() == {"model.name"} for row in section.rows)


def test_many_differences_have_a_table_of_their_own(
    create_record, create_tracked_run: CreateTrackedRun
) -> None:
    tracked = create_tracked_run("far")
    tracked.configure(recipe={"epochs": 1, "schedule": [1], "ema": 0.9}, model={"name": "nin"})
    text = shown(compare([create_record("a", 1.0), read_record(tracked.run)]))
    assert "differences, by the number of the row" in text
    assert len([line for line in text.splitlines() if "recipe.schedule" in line]) == 1


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=5))
def test_a_spread_is_the_samples(values) -> None:
    spread = MeanStd.of([None, *values])
    assert spread.num == len(values)
    assert spread.mean == pytest.approx(sum(values) / len(values), abs=1e-9)
    squares = sum((value - spread.mean) ** 2 for value in values)
    assert spread.std == pytest.approx(math.sqrt(squares / (len(values) - 1)), abs=1e-6)


def test_no_values_have_no_mean() -> None:
    assert MeanStd.of([None, None]) is None


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_curves(create_record, tmp_path: Path, ending) -> None:
    runs = [create_record(f"s{seed}", 50.0 + seed, seed=seed) for seed in (1, 2)]
    file = tmp_path / f"curves.{ending}"
    draw_curves(compare([*runs, create_record("other", 80.0, epochs=5)]), file)
    if ending == "png":
        with Image.open(file) as image:
            assert min(image.size) > 500
    else:
        text = file.read_text()
        for word in ("alexnet, epochs=5", "2 runs", "images seen", "top-1 accuracy"):
            assert word in text


def test_the_verb(create_record, tmp_path: Path) -> None:
    place = Path(create_record("a", 50.0).path).parent
    create_record("b", 60.0, epochs=5)
    tahoe = Tahoe(tmp_path)
    told = tahoe("compare", "--runs-dir", place, "data=digits", "--plot", "curves.png").stdout
    assert told.index("60.00") < told.index("50.00")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    (section,) = json.loads(tahoe("compare", "--runs-dir", place, "--json").stdout)
    assert [row["metrics"]["val/top1"]["mean"] for row in section["rows"]] == [60.0, 50.0]
    assert "60.00" in tahoe("compare", "--runs-dir", place, "recipe.epochs=5.0").stdout
    for name in ("curves.txt", "no/where.png"):
        undrawn = tahoe("compare", "--runs-dir", place, "--plot", name, check=False)
        assert f"error: --plot {name}: not drawn" in undrawn.stderr
    wrong = tahoe("compare", "--runs-dir", place, "model=vgg", check=False)
    assert wrong.returncode == 1
    assert "no run in" in wrong.stderr
