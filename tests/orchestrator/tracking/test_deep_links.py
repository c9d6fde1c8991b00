"""Addresses that show what they say: the filters are asked of a real store."""

import json
from urllib.parse import parse_qsl

import pytest

from orchestrator.run.rundir import RunError
from orchestrator.run.sweepdir import SweepDir
from orchestrator.tracking.mlflow_store.client import MlflowClient
from orchestrator.tracking.mlflow_ui.links import LINEAGE, experiment_links, ui_links
from orchestrator.tracking.mlflow_ui.views import table_page
from orchestrator.tracking.shipping.shipper import sync

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
URL = "https://mlflow.example.org"


def table_of(link):
    """Return the experiment of a link to a table, and the parameters of its address."""
    address, _, _ = link.partition("  ")
    place, parameters = address.removeprefix(f"{URL}/#/experiments/").split("/runs?")
    return place, dict(parse_qsl(parameters))


def shown_by(link, scene):
    """Return the names of the runs that a page with a filter lists."""
    place, asked = table_of(link)
    assert asked["workflowType"] == "machine_learning"
    found = scene.client().search_runs([place], asked["searchFilter"])
    return {run.data.tags["tahoe.run_id"] for run in found}


def view_of(link, scene):
    """Return what the experiment has kept under the name that a link asks for."""
    place, asked = table_of(link)
    tags = scene.client().get_experiment(place).tags
    return json.loads(tags["mlflow.sharedViewState." + asked["viewStateShareKey"]])


def begin_with(scene, parent):
    identity = scene.run.read_json(scene.run.identity_file)
    source = {"uid": f"uid-{parent}", "run": parent, "step": 1}
    scene.run.write_json(scene.run.identity_file, {**identity, "init_from": source})


def test_a_run_and_its_ancestors(make_scene, store):
    scenes = {name: make_scene(name, uri=store) for name in ("old", "middle", "young", "other")}
    begin_with(scenes["middle"], "old")
    begin_with(scenes["young"], "middle")
    for scene in scenes.values():
        sync(scene.run.path)
    own, family = ui_links(URL, [scenes["young"].run.path])
    assert own == (
        f"{URL}/#/experiments/{scenes['young'].mark['experiment_id']}/runs/"
        f"{scenes['young'].mark['run_id']}?workflowType=machine_learning  young"
    )
    assert shown_by(family, scenes["young"]) == {"young", "middle", "old"}
    assert len(ui_links(URL, [scenes["other"].run.path])) == 1
    begin_with(scenes["old"], "young")  # a circle ends
    assert shown_by(ui_links(URL, [scenes["young"].run.path])[1], scenes["young"]) == {
        *("young", "middle", "old")
    }


def test_a_sweep(make_scene, store, tmp_path):
    scenes = [make_scene(name, uri=store) for name in ("a", "b", "c")]
    sweep = SweepDir.of(tmp_path, [scene.run for scene in scenes[:2]])
    sweep.add((scene.run, [f"seed={scene.run.id}"]) for scene in scenes[:2])
    with pytest.raises(RunError, match="does not have"):
        ui_links(URL, [sweep.path])
    for scene in scenes:
        sync(scene.run.path)
    (link,) = ui_links(URL, [sweep.path])
    assert shown_by(link, scenes[0]) == {"a", "b"}


def test_a_table_opens_with_the_columns_one_compares_by(make_scene, store):
    plain, historic = make_scene("plain", uri=store), make_scene("historic", uri=store)
    historic.configure(model={"published": {"year": 2012}})
    for scene in (plain, historic):
        scene.log(1, {"val/top1": 50.0, "val/loss": 1.0, "train/loss": 2.0})
        sync(scene.run.path)
    everything, lineage = experiment_links(plain.client(), URL)
    view = view_of(everything, plain)
    (known,) = plain.client().search_runs(
        [historic.mark["experiment_id"]], "tags.`tahoe.year` = '2012'"
    )
    data = known.data
    there = {f"metrics.`{key}`" for key in data.metrics} | {f"tags.`{key}`" for key in data.tags}
    assert set(view["selectedColumns"]) - there == {"attributes.`Description`"}
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`val/top1`", False)
    assert [section["name"] for section in view["compareRunSections"]][:2] == ["val", "train"]
    wanted = view_of(lineage, plain)["searchFilter"]
    found = plain.client().search_runs([historic.mark["experiment_id"]], wanted)
    assert [run.data.tags["tahoe.run_id"] for run in found] == ["historic"]
    before = plain.client().get_experiment(plain.mark["experiment_id"]).tags
    assert experiment_links(plain.client(), URL) == [everything, lineage]
    assert plain.client().get_experiment(plain.mark["experiment_id"]).tags == before


def test_a_filter_too_long_for_a_view_is_in_the_address(make_scene, store):
    scene = make_scene(uri=store)
    sync(scene.run.path)
    wanted = f"tags.seed != '{'x' * 5000}'"
    page = table_page(scene.client(), URL, scene.mark["experiment_id"], wanted)
    assert shown_by(page, scene) == {scene.run.id}


def test_a_view_that_cannot_be_kept_is_done_without(make_scene, store):
    scene = make_scene(uri=store)
    sync(scene.run.path)
    nowhere = MlflowClient(tracking_uri="http://127.0.0.1:9")  # discard: nobody answers
    page = table_page(nowhere, URL, scene.mark["experiment_id"], "tags.seed = '1'")
    assert shown_by(page, scene) == {scene.run.id}


def test_the_lineage(make_scene, store):
    plain, historic = make_scene("plain", uri=store), make_scene("historic", uri=store)
    historic.configure(model={"published": {"year": 2012}})
    for scene in (plain, historic):
        sync(scene.run.path)
    found = plain.client().search_runs([plain.mark["experiment_id"]], LINEAGE)
    assert [run.data.tags["tahoe.run_id"] for run in found] == ["historic"]


def test_a_run_that_mlflow_does_not_know(make_scene, tmp_path):
    with pytest.raises(RunError, match="`tahoe sync` sends it"):
        ui_links(URL, [make_scene().run.path])
    with pytest.raises(RunError, match="no run at"):
        ui_links(URL, [tmp_path / "nowhere"])
