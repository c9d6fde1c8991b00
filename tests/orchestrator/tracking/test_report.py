"""The report: which points it has, and the page that shows them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from running import Tahoe

from orchestrator.tracking.ancestry import Link
from orchestrator.tracking.lineage import shelf
from orchestrator.tracking.record import read_record
from orchestrator.tracking.report import report
from orchestrator.tracking.report_page import write_report


@pytest.fixture
def runs(make_scene):
    """Records of AlexNet thrice and of an own network, on what is called imagenet."""
    made = []
    for name, seed, top1, protocol in (
        ("a1", 1, 40.0, "center-224-of-256"),
        ("a2", 2, 44.0, "center-224-of-256"),
        ("a3", 3, 50.0, "ten-crop-224-of-256"),
        ("mine", 1, 30.0, "center-224-of-256"),
    ):
        scene = make_scene(name)
        is_known = name.startswith("a")
        scene.configure(
            model={"published": {"title": "AlexNet", "year": 2012} if is_known else None,
                   "name": "alexnet_2012" if is_known else "mine"},
            data={"name": "imagenet", "protocol": protocol},
            recipe={"global_batch_size": 100},
        )  # fmt: skip
        scene.run.write_config({**scene.run.read_config(), "seed": seed})
        scene.run.begin_attempt(world_size=4)
        scene.log(0, {"model/gmacs": 0.7, "model/num_params": 1e6})
        scene.log(10, {"val/top1": top1, "val/top5": top1 + 20})
        scene.judge("finished")
        scene.run.end_attempt(1)
        made.append(read_record(scene.run))
    return made


def test_measured_points_are_rows_under_one_protocol(runs):
    told = report(runs, shelf(), "imagenet")
    alexnet, mine = sorted(told.measured, key=lambda point: point.system)
    assert (alexnet.system, alexnet.year, alexnet.num_runs) == ("AlexNet", 2012, 2)
    assert (alexnet.top1, alexnet.top5) == (58.0, 38.0)
    assert alexnet.top1_std == pytest.approx(2.0 * 2**0.5)
    assert alexnet.petaflop == pytest.approx(0.7e9 * 6 * 1000 / 1e15)
    assert (mine.system, mine.year, mine.top1_std) == ("mine", None, None)
    assert told.protocols == ("center-224-of-256",)
    assert told.passed_over == ("ten-crop-224-of-256",)


def test_another_protocol_and_a_pattern_of_several(runs):
    (point,) = report(runs, shelf(), "imagenet", "ten-crop-224-of-256").measured
    assert (point.top1, point.num_runs) == (50.0, 1)
    told = report(runs, shelf(), "imagenet", "*-224-of-256")
    assert len(told.measured) == 3
    assert told.protocols == ("center-224-of-256", "ten-crop-224-of-256")
    assert told.passed_over == ()


def test_published_points_are_those_of_the_shelf(runs):
    told = report([], shelf(), "imagenet")
    assert told.measured == []
    known = {point.system: point for point in told.published}
    assert (known["AlexNet"].top5, known["AlexNet"].is_verified) == (18.2, True)
    assert "LeNet-5" not in known  # which is of other data
    assert all(p.top1 is not None or p.top5 is not None for p in told.published)


def test_the_page_needs_no_network_and_its_figures_are_beside_it(runs, tmp_path):
    family = [Link("a <b>", "mine", "weights of step 3")]
    told = report(runs, shelf(), "imagenet")
    page, *figures = write_report(told, family, tmp_path / "out")
    text = page.read_text()
    assert not re.search(r"(src|href)=\"(?!#)", text)
    assert "http" not in re.sub(r"xmlns(:\w+)?=\"[^\"]*\"|<metadata>.*?</metadata>", "", text,
                               flags=re.DOTALL)  # fmt: skip
    for words in ("58.00 ± 2.83", "Runs judged under ten-crop-224-of-256 are not shown",
                  "a &lt;b&gt;", "top-5 error (%)", "training compute (petaFLOP)",
                  "image-net.org"):  # fmt: skip
        assert words in text, words
    svgs = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(svgs) == 5
    for svg in svgs:
        ElementTree.fromstring(svg)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    names = {file.name for file in figures}
    assert names == {
        f"error-over-{axis}.{ending}"
        for axis in ("year", "petaflop", "num-params", "device-hours")
        for ending in ("png", "svg")
    }
    for file in figures:
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert image.width > 600


def test_a_caption_tells_of_what_is_drawn(runs, tmp_path):
    def captions(measured, wanted):
        told = report(measured, wanted, "imagenet")
        page, *_ = write_report(told, [], tmp_path)
        return re.findall(r"<figcaption>(.*?)</figcaption>", page.read_text(), flags=re.DOTALL)

    year, compute, parameters, *hours = captions(runs, shelf())
    assert all("Squares" in caption for caption in (compute, parameters, *hours))
    assert "Diamonds" in year
    assert "Diamonds" not in compute + parameters  # the cost of an ensemble is not known
    assert "Hollow" in year
    assert not [caption for caption in captions([], shelf()) if "Squares" in caption]


def test_a_point_without_a_place_is_not_drawn(runs, tmp_path):
    none = [replace(run, petaflop=None, device_s=None) for run in runs]
    told = report(none, [], "imagenet")
    written = write_report(told, [], tmp_path)
    assert [file.name for file in written] == ["report.html", "error-over-num-params.png",
                                               "error-over-num-params.svg"]  # fmt: skip


@pytest.mark.long
@pytest.mark.slow
def test_the_verb(runs, tmp_path):
    tahoe, place = Tahoe(tmp_path), Path(runs[0].path).parent
    told = tahoe("report", "--runs", place, "-o", "out").stdout
    assert "2 measured on imagenet" in told
    assert (tmp_path / "out" / "report.html").exists()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "error-over-something.png").write_text("of other data")
    for _ in range(2):
        sent = tahoe("report", "--runs", place, "-o", "out", "--send").stdout
    assert "'report on imagenet'" in sent
    (page,) = tmp_path.glob("mlartifacts/*/artifacts/report/report.html")
    assert page.read_text() == (tmp_path / "out" / "report.html").read_text()
    assert {file.name for file in page.parent.iterdir()} == {
        file.name for file in (tmp_path / "out").iterdir()
    } - {"notes.txt"}
    for wrong, said in (
        (("--data", "nosuch"), "nothing is published of nosuch"),
        (("--protocol", "nosuch"), "no run was judged on imagenet under nosuch"),
        (("-o", page), "the report was not written"),
    ):
        refused = tahoe("report", "--runs", place, *map(str, wrong), check=False)
        assert said in refused.stderr
    one = json.loads(tahoe("report", "model=mine", "--runs", place, "--json").stdout)
    assert [p["system"] for p in one["points"] if p["is_measured"]] == ["mine"]


def test_ensembles_have_their_own_points():
    told = report([], shelf(), "imagenet")
    known = {point.system: point for point in told.published if point.is_ensemble}
    googlenet = known["GoogLeNet, 7 networks"]
    assert (googlenet.top1, googlenet.top5, googlenet.num_params) == (None, 6.656, None)
    assert {point.top1 for point in known.values()} == {None}
    assert googlenet.protocol == "ILSVRC's test images, place 1"
    assert "GoogLeNet" in {point.system for point in told.published if not point.is_ensemble}
