"""Runs side by side: rows of seeds, sections that compare, and what differs."""

import io
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from running import Tahoe

from orchestrator.tracking.records.record import read_record
from orchestrator.tracking.reports.compare import MeanStd, RunGroup, compare
from orchestrator.tracking.reports.compare_table import tables
from orchestrator.tracking.reports.curves import draw_curves, label_of


@pytest.fixture
def made(make_scene):
    """Makes runs, and returns their records."""

    def make(name, top1, *, seed=1, epochs=90, protocol="center-28-of-28", model="alexnet"):
        scene = make_scene(name)
        scene.configure(
            model={"name": model}, recipe={"epochs": epochs}, data={"eval_protocol": protocol}
        )
        config = scene.run.read_config()
        scene.run.write_config({**config, "seed": seed})
        scene.log(10, {"val/top1": top1 / 2, "val/loss": 2.0, "train/loss": 3.0})
        scene.log(20, {"val/top1": top1, "val/loss": 1.0, "train/loss": 1.5})
        scene.run.begin_attempt()
        scene.judge("finished")
        return read_record(scene.run)

    return make


def shown(sections, width=200):
    console = Console(width=width, file=io.StringIO(), soft_wrap=True)
    for table in tables(sections):
        console.print(table)
    return console.file.getvalue()


def test_images_of_one_name_are_told_apart(made):
    runs = [replace(made(name, 50.0), data_fingerprint=name * 8) for name in ("a", "b")]
    text = shown(compare(runs))
    assert text.index("fingerprint=aaaaaaaa") < text.index("fingerprint=bbbbbbbb")
    assert "fingerprint" not in shown(compare(runs[:1]))


def test_a_seed_that_was_run_again_counts_once(made):
    runs = [made(name, top1, seed=seed) for name, seed, top1 in (
        ("again", 1, 52.0), ("again.1", 1, 40.0), ("other", 2, 54.0))]  # fmt: skip
    runs = [replace(one, created_s=when) for one, when in zip(runs, (9.0, 3.0, 5.0), strict=True)]
    for some in (runs, runs[::-1]):
        (section,) = compare(some)
        (row,) = section.rows
        assert {one.id for one in row.records} == {"again", "other"}
        assert (row.figures["val/top1"].mean, row.figures["val/top1"].num) == (53.0, 2)
        assert row.to_dict()["older"] == [runs[1].path]
        assert "same seed: again.1" in shown([section])
    (section,) = compare(runs[:2])
    assert section.rows[0].name == "again"
    assert section.rows[0].figures["val/top1"] == MeanStd(52.0, None, 1)


def test_seeds_are_one_row_with_their_spread(made):
    runs = [made(f"s{seed}", 50.0 + seed, seed=seed) for seed in (1, 2, 6)]
    (section,) = compare([*runs, made("other", 80.0, epochs=5)])
    best, row = section.rows
    assert (best.name, best.differs) == ("other", {"recipe.epochs": "5"})
    assert (row.name, row.differs) == ("3 runs", {"recipe.epochs": "90"})
    spread = row.figures["val/top1"]
    assert (spread.mean, spread.num) == (53.0, 3)
    assert spread.std == pytest.approx(statistics.stdev([51, 52, 56]))
    assert best.figures["val/top1"] == MeanStd(80.0, None, 1)
    text = shown([section])
    assert "53.00 ± 2.65" in text
    assert "3 finished" in text
    assert "recipe" in text


def test_a_legend_tells_the_data_and_single_options(made):
    record = made("a", 50.0)
    differs = {"model.name": "x", "data.name": "digits", "model.kwargs.width": "0.5"}
    assert (
        label_of(RunGroup((record,), differs, {}))
        == f"{record.model_title}, data=digits, width=0.5"
    )


def test_a_run_that_came_less_far_is_no_seed_of_the_others(made):
    runs = [made(f"s{seed}", 50.0 + seed, seed=seed) for seed in (1, 2)]
    stopped = replace(made("s3", 1.0, seed=3), status="stopped", step=1)
    imported = [replace(made(f"i{n}", 70.0 + n), status="imported") for n in (1, 2)]
    (section,) = compare([*runs, stopped, *imported])
    assert [row.name for row in section.rows] == ["i2", "i1", "2 runs", "s3"]
    assert section.rows[2].figures["val/top1"].mean == 51.5


def test_other_protocols_are_not_ranked_together(made):
    runs = [
        made("a", 50.0),
        made("b", 60.0, protocol="ten-crop-28-of-32"),
        made("c", 55.0, epochs=5),
    ]
    center, ten = compare(runs)
    assert [row.name for row in center.rows] == ["c", "a"]
    assert [row.name for row in ten.rows] == ["b"]
    text = shown([center, ten])
    assert "These are 2 tables" in text
    assert text.index("digits, center-28-of-28") < text.index("digits, ten-crop-28-of-32")


def test_the_best_is_first_and_what_diverged_last(made):
    top1 = {"low": 10.0, "nan": math.nan, "high": 90.0}
    runs = [made(name, value, epochs=i) for i, (name, value) in enumerate(top1.items(), start=1)]
    (section,) = compare(runs)
    assert [row.name for row in section.rows] == ["high", "low", "nan"]


def test_only_what_differs_is_told(made):
    (section,) = compare([made("a", 1.0), made("b", 2.0, model="nin")])
    assert all(row.differs.keys() == {"model.name"} for row in section.rows)


def test_many_differences_have_a_table_of_their_own(made, make_scene):
    scene = make_scene("far")
    scene.configure(recipe={"epochs": 1, "schedule": [1], "ema": 0.9}, model={"name": "nin"})
    text = shown(compare([made("a", 1.0), read_record(scene.run)]))
    assert "what differs, by the number of the row" in text
    assert len([line for line in text.splitlines() if "recipe.schedule" in line]) == 1


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=5))
def test_a_spread_is_the_samples(values):
    spread = MeanStd.of([None, *values])
    assert spread.num == len(values)
    assert spread.mean == pytest.approx(sum(values) / len(values), abs=1e-9)
    squares = sum((value - spread.mean) ** 2 for value in values)
    assert spread.std == pytest.approx(math.sqrt(squares / (len(values) - 1)), abs=1e-6)


def test_nothing_is_known_of_no_values():
    assert MeanStd.of([None, None]) is None


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_curves(made, tmp_path, ending):
    runs = [made(f"s{seed}", 50.0 + seed, seed=seed) for seed in (1, 2)]
    file = tmp_path / f"curves.{ending}"
    draw_curves(compare([*runs, made("other", 80.0, epochs=5)]), file)
    if ending == "png":
        with Image.open(file) as image:
            assert min(image.size) > 500
    else:
        text = file.read_text()
        for word in ("alexnet, epochs=5", "2 runs", "images seen", "top-1 accuracy"):
            assert word in text


def test_the_verb(made, tmp_path):
    place = Path(made("a", 50.0).path).parent
    made("b", 60.0, epochs=5)
    tahoe = Tahoe(tmp_path)
    told = tahoe("compare", "--runs", place, "data=digits", "--plot", "curves.png").stdout
    assert told.index("60.00") < told.index("50.00")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    (section,) = json.loads(tahoe("compare", "--runs", place, "--json").stdout)
    assert [row["figures"]["val/top1"]["mean"] for row in section["rows"]] == [60.0, 50.0]
    assert "60.00" in tahoe("compare", "--runs", place, "recipe.epochs=5.0").stdout
    for name in ("curves.txt", "no/where.png"):
        undrawn = tahoe("compare", "--runs", place, "--plot", name, check=False)
        assert f"error: --plot {name}: not drawn" in undrawn.stderr
    wrong = tahoe("compare", "--runs", place, "model=vgg", check=False)
    assert wrong.returncode == 1
    assert "no run in" in wrong.stderr
