"""The report: which points it has, and the page that shows them."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cli_runner import Tahoe
from matplotlib.figure import Figure
from PIL import Image
from rich.table import Table

from orchestrator.tracking.records.catalog import load_catalog
from orchestrator.tracking.records.provenance import Edge
from orchestrator.tracking.records.record import read_record
from orchestrator.tracking.reports.compare_table import tables
from orchestrator.tracking.reports.curves import draw_curves
from orchestrator.tracking.reports.figures import error_figures, format_log_axis
from orchestrator.tracking.reports.learning_curves import learning_curves
from orchestrator.tracking.reports.page import write_report
from orchestrator.tracking.reports.report import report


@pytest.fixture
def runs(create_tracked_run):
    """Records of AlexNet thrice and of an own network, on what is called imagenet."""
    made = []
    for name, seed, top1, protocol in (
        ("a1", 1, 40.0, "center-224-of-256"),
        ("a2", 2, 44.0, "center-224-of-256"),
        ("a3", 3, 50.0, "ten-crop-224-of-256"),
        ("mine", 1, 30.0, "center-224-of-256"),
    ):
        tracked = create_tracked_run(name)
        is_known = name.startswith("a")
        tracked.configure(
            model={"published": {"title": "AlexNet", "year": 2012} if is_known else None,
                   "name": "alexnet_2012" if is_known else "mine"},
            data={"name": "imagenet", "eval_protocol": protocol},
            recipe={"global_batch_size": 100},
        )  # fmt: skip
        tracked.run.write_config({**tracked.run.read_config(), "seed": seed})
        tracked.run.begin_attempt(world_size=4)
        tracked.log(0, {"model/num_params": 1e6})
        tracked.log(10, {"val/top1": top1, "val/top5": top1 + 20, "perf/total_pflop": 4.2})
        tracked.write_outcome("finished")
        tracked.run.end_attempt(1)
        made.append(read_record(tracked.run))
    return made


def test_measured_points_are_rows_under_one_protocol(runs) -> None:
    results = report(runs, load_catalog(), "imagenet")
    alexnet, mine = sorted(results.measured, key=lambda point: point.system)
    assert (alexnet.system, alexnet.year, alexnet.num_runs) == ("AlexNet", 2012, 2)
    assert (alexnet.top1, alexnet.top5) == (58.0, 38.0)
    assert alexnet.top1_std == pytest.approx(2.0 * 2**0.5)
    assert alexnet.petaflop == 4.2
    assert (mine.system, mine.year, mine.top1_std) == ("mine", None, None)
    assert results.protocols == ("center-224-of-256",)
    assert results.other_protocols == ("ten-crop-224-of-256",)


def test_another_protocol_and_a_pattern_of_several(runs) -> None:
    (point,) = report(runs, load_catalog(), "imagenet", "ten-crop-224-of-256").measured
    assert (point.top1, point.num_runs) == (50.0, 1)
    results = report(runs, load_catalog(), "imagenet", "*-224-of-256")
    assert len(results.measured) == 3
    assert results.protocols == ("center-224-of-256", "ten-crop-224-of-256")
    assert results.other_protocols == ()


def test_runs_on_other_images_of_the_same_name_are_not_drawn(runs, tmp_path: Path) -> None:
    same = [replace(run, data_fingerprint="1" * 33) for run in runs[:2]]
    other = [replace(runs[3], data_fingerprint="2" * 33)]
    other += [replace(runs[2], data_fingerprint="2" * 33)]
    results = report([*other, *same], [], "imagenet")
    (point,) = results.measured
    assert (point.top1, point.num_runs) == (58.0, 2)
    assert (results.fingerprint, results.other_images) == ("1" * 33, ("2" * 33,))
    assert results.other_protocols == ()
    assert "2" * 33 in write_report(results, [], tmp_path)[0].read_text()
    results = report([*other, *same], [], "imagenet", "ten-*")  # which only the others have
    (point,) = results.measured
    assert (point.top1, results.fingerprint) == (50.0, "2" * 33)


def test_published_points_are_those_of_the_catalogue(runs) -> None:
    results = report([], load_catalog(), "imagenet")
    assert results.measured == []
    known = {point.system: point for point in results.published}
    assert (known["AlexNet"].top5, known["AlexNet"].is_verified) == (18.2, True)
    assert "LeNet-5" not in known  # which is of other data
    assert all(p.top1 is not None or p.top5 is not None for p in results.published)


def test_the_page_needs_no_network_and_its_figures_are_beside_it(runs, tmp_path: Path) -> None:
    family = [Edge("a <b>", "mine", "weights of step 3")]
    results = report(runs, load_catalog(), "imagenet")
    page, *figures = write_report(results, family, tmp_path / "out")
    text = page.read_text()
    assert not re.search(r"(src|href)=\"(?!#)", text)
    assert "http" not in re.sub(r"xmlns(:\w+)?=\"[^\"]*\"|<metadata>.*?</metadata>", "", text,
                               flags=re.DOTALL)  # fmt: skip
    for words in ("58.00 ± 2.83", "Runs evaluated under ten-crop-224-of-256 are not shown",
                  "a &lt;b&gt;", "top-5 error (%)", "training compute (petaFLOP)",
                  "image-net.org"):  # fmt: skip
        assert words in text, words
    svgs = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(svgs) == 4
    for svg in svgs:
        ElementTree.fromstring(svg)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    names = {file.name for file in figures}
    assert names == {
        f"error-over-{axis}.{ending}"
        for axis in ("year", "petaflop", "num-params")  # of devices' hours two points are known
        for ending in ("png", "svg")
    }
    for file in figures:
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert image.width > 600


def test_captions_explain_the_drawn_markers(runs, tmp_path: Path) -> None:
    def captions(measured, wanted):
        results = report(measured, wanted, "imagenet")
        page, *_ = write_report(results, [], tmp_path)
        return re.findall(r"<figcaption>(.*?)</figcaption>", page.read_text(), flags=re.DOTALL)

    year, compute, parameters = captions(runs, load_catalog())
    assert all("Squares" in caption for caption in (compute, parameters))
    assert "Diamonds" in year
    assert "Diamonds" not in compute + parameters  # the cost of an ensemble is not known
    assert "Hollow" in year
    assert not [caption for caption in captions([], load_catalog()) if "Squares" in caption]


def many(runs, number=5):
    """Return so many systems of one's own."""
    (mine,) = (run for run in runs if run.id == "mine")
    for i in range(1, number + 1):
        metrics = mine.metrics | {"val/top1": 30.0 + i, "model/num_params": 1e6 * i}
        config = mine.config | {"model.name": f"mine{i}"}
        yield replace(mine, id=f"run-{i}", path=f"/r/{i}", metrics=metrics, config=config)


def test_points_without_a_value_on_an_axis_are_not_drawn(runs, tmp_path: Path) -> None:
    none = [replace(run, petaflop=None, device_s=None) for run in many(runs)]
    results = report(none, [], "imagenet")
    written = write_report(results, [], tmp_path)
    assert [file.name for file in written] == ["report.html", "error-over-num-params.png",
                                               "error-over-num-params.svg"]  # fmt: skip


def test_axes_with_one_distinct_value_are_not_drawn(runs) -> None:
    results = report(list(many(runs)), [], "imagenet")
    assert [name for name, _ in error_figures(results)] == ["error-over-num-params"]
    same_year = tuple(replace(point, year=1998) for point in results.points)
    drawn = [name for name, _ in error_figures(replace(results, points=same_year))]
    assert drawn == ["error-over-num-params"]  # the compute and the hours are all the same too


def test_few_runs_are_shown_as_learning_curves(runs, tmp_path: Path) -> None:
    few = [run for run in runs if run.id in ("a1", "mine")]
    out = tmp_path / "out"
    out.mkdir()
    (out / "error-over-year.png").write_text("of other data")
    page, *files = write_report(report(few, [], "imagenet"), [], out)
    names = {f"error-over-images.{ending}" for ending in ("png", "svg")}
    assert {file.name for file in files} == names  # no loss was logged
    assert {file.name for file in out.iterdir()} == names | {"report.html"}
    text = page.read_text()
    svg = (out / "error-over-images.svg").read_text()
    for run in few:
        assert f">{run.id}</text>" in svg
    assert "2 systems measured in 2 runs" in text
    assert "published" not in text.split("<table>")[0]
    assert re.search(r"svg text \{ font-family: inherit !important", text)


def test_learning_curves_have_the_logged_values(runs) -> None:
    few = [run for run in runs if run.id in ("a1", "mine")]
    results = report(few, [], "imagenet")
    curve = {100: 40.0, 200: 62.5, 300: 90.0}
    logged = {"val/top1": curve, "val/loss": {step: 1 / step for step in curve}}
    error, loss = (
        figure for _, figure in learning_curves(results, lambda _, name: logged.get(name, {}))
    )
    for figure, expected in ((error, [60.0, 37.5, 10.0]), (loss, [0.01, 0.005, 1 / 300])):
        for line in figure.axes[0].get_lines():
            assert list(line.get_xdata()) == [10_000, 20_000, 30_000]  # of 100 images a step
            assert list(line.get_ydata()) == pytest.approx(expected)


def test_several_labels_have_mean_average_precision_in_place_of_errors(
    runs, tmp_path: Path
) -> None:
    mine = next(run for run in runs if run.id == "mine")
    metrics = {"val/map": 62.5, "val/f1": 50.0, "val/loss": 0.2}
    several = [replace(mine, id="several", metrics=metrics)]
    results = report(several, [], "imagenet")
    (point,) = results.measured
    assert (point.map, point.map_std, point.top1, point.top5) == (62.5, None, None, None)
    logged = {"val/map": {1: 50.0, 2: 62.5}, "val/loss": {1: 0.4, 2: 0.2}}
    page, *files = write_report(results, [], tmp_path, lambda _, name: logged.get(name, {}))
    assert {file.stem for file in files} == {"map-over-images", "loss-over-images"}
    assert "<td>62.50</td>" in page.read_text()
    assert "top-1" not in page.read_text()
    draw_curves(results.sections, tmp_path / "curves.svg", lambda _, name: logged.get(name, {}))
    drawn = (tmp_path / "curves.svg").read_text()
    assert ("mean average precision" in drawn, "top-1" in drawn) == (True, False)
    (table,) = [part for part in tables(results.sections) if isinstance(part, Table)]
    headers = [str(column.header).split() for column in table.columns]
    assert [header[1] for header in headers if header[0] == "val"] == ["mAP", "F1", "loss"]


def test_published_levels_are_drawn_beside_few_runs(runs) -> None:
    (mine,) = (run for run in runs if run.id == "mine")
    config = mine.config | {"data.name": "mnist"}
    results = report([replace(mine, config=config)], load_catalog(), "mnist")
    assert 0 < len(results.published) < 5
    _, figure = next(learning_curves(results, lambda *_: {1: 90.0, 2: 99.0}))
    drawn = [line.get_label() for line in figure.axes[0].get_lines()]
    assert drawn[0] == "mine"
    assert [label for label in drawn if "published" in label]


@pytest.mark.parametrize(
    "span",
    [(1.01, 1.02), (0.27, 1.39), (0.0225, 0.04), (3, 40), (1, 600), (0.5, 4000), (0.1, 1e6)],
)
def test_a_logarithmic_axis_has_marks_that_do_not_collide(span) -> None:
    figure = Figure(figsize=(4.6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(span, [1, 2])
    axes.set_xscale("log")
    format_log_axis(axes.xaxis)
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    labels = [
        label
        for label, place in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)
        if low <= place <= high
    ]
    assert len({label.get_text() for label in labels}) >= 2
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


@pytest.mark.long
@pytest.mark.slow
def test_the_verb(runs, tmp_path: Path) -> None:
    tahoe, place = Tahoe(tmp_path), Path(runs[0].path).parent
    results = tahoe("report", "--runs-dir", place, "-o", "out").stdout
    assert "2 measured on imagenet" in results
    assert (tmp_path / "out" / "report.html").exists()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "error-over-something.png").write_text("of other data")
    for _ in range(2):
        sent = tahoe("report", "--runs-dir", place, "-o", "out", "--log-to-mlflow").stdout
    assert "'report on imagenet'" in sent
    (page,) = tmp_path.glob("mlartifacts/*/artifacts/report/report.html")
    assert page.read_text() == (tmp_path / "out" / "report.html").read_text()
    assert {file.name for file in page.parent.iterdir()} == {
        file.name for file in (tmp_path / "out").iterdir()
    } - {"notes.txt"}
    for option, value in (("--data", "nosuch"), ("--protocol", "nosuch"), ("-o", str(page))):
        rejected = tahoe("report", "--runs-dir", place, option, value, check=False)
        assert rejected.returncode == 1
        assert value in rejected.stderr
    one = json.loads(tahoe("report", "model=mine", "--runs-dir", place, "--json").stdout)
    assert [p["system"] for p in one["points"] if p["is_measured"]] == ["mine"]


def test_ensembles_have_their_own_points() -> None:
    results = report([], load_catalog(), "imagenet")
    known = {point.system: point for point in results.published if point.is_ensemble}
    googlenet = known["GoogLeNet, 7 networks"]
    assert (googlenet.top1, googlenet.top5, googlenet.num_params) == (None, 6.656, None)
    assert {point.top1 for point in known.values()} == {None}
    assert googlenet.protocol == "ILSVRC's test images, place 1"
    assert "GoogLeNet" in {point.system for point in results.published if not point.is_ensemble}
