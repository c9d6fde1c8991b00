"""Addresses that show what they say: the filters are asked of a real store."""

import json
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
from tracked_run import CreateTrackedRun

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


def shown_by(link, tracked):
    """Return the names of the runs that a page with a filter lists."""
    place, asked = table_of(link)
    assert asked["workflowType"] == "machine_learning"
    found = tracked.client().search_runs([place], asked["searchFilter"])
    return {run.data.tags["tahoe.run_id"] for run in found}


def view_of(link, tracked):
    """Return what the experiment has kept under the name that a link asks for."""
    place, asked = table_of(link)
    tags = tracked.client().get_experiment(place).tags
    return json.loads(tags["mlflow.sharedViewState." + asked["viewStateShareKey"]])


def begin_with(tracked, parent):
    identity = tracked.run.read_json(tracked.run.identity_file)
    source = {"uid": f"uid-{parent}", "run": parent, "step": 1}
    tracked.run.write_json(tracked.run.identity_file, {**identity, "init_from": source})


def test_a_run_and_its_ancestors(create_tracked_run: CreateTrackedRun, store: str) -> None:
    tracked_runs = {
        name: create_tracked_run(name, uri=store) for name in ("old", "middle", "young", "other")
    }
    begin_with(tracked_runs["middle"], "old")
    begin_with(tracked_runs["young"], "middle")
    for tracked in tracked_runs.values():
        sync(tracked.run.path)
    own, family = ui_links(URL, [tracked_runs["young"].run.path])
    assert own == (
        f"{URL}/#/experiments/{tracked_runs['young'].mlflow_state['experiment_id']}/runs/"
        f"{tracked_runs['young'].mlflow_state['run_id']}?workflowType=machine_learning  young"
    )
    assert shown_by(family, tracked_runs["young"]) == {"young", "middle", "old"}
    assert len(ui_links(URL, [tracked_runs["other"].run.path])) == 1
    begin_with(tracked_runs["old"], "young")  # a circle ends
    assert shown_by(ui_links(URL, [tracked_runs["young"].run.path])[1], tracked_runs["young"]) == {
        *("young", "middle", "old")
    }


def test_a_sweep(create_tracked_run: CreateTrackedRun, store: str, tmp_path: Path) -> None:
    tracked_runs = [create_tracked_run(name, uri=store) for name in ("a", "b", "c")]
    sweep = SweepDir.of(tmp_path, [tracked.run for tracked in tracked_runs[:2]])
    sweep.add((tracked.run, [f"seed={tracked.run.id}"]) for tracked in tracked_runs[:2])
    with pytest.raises(RunError, match="does not have"):
        ui_links(URL, [sweep.path])
    for tracked in tracked_runs:
        sync(tracked.run.path)
    (link,) = ui_links(URL, [sweep.path])
    assert shown_by(link, tracked_runs[0]) == {"a", "b"}


def test_a_table_opens_with_the_columns_one_compares_by(
    create_tracked_run: CreateTrackedRun, store: str
) -> None:
    plain, historic = (
        create_tracked_run("plain", uri=store),
        create_tracked_run("historic", uri=store),
    )
    historic.configure(model={"published": {"year": 2012}})
    for tracked in (plain, historic):
        tracked.log(1, {"val/top1": 50.0, "val/loss": 1.0, "train/loss": 2.0})
        sync(tracked.run.path)
    everything, lineage = experiment_links(plain.client(), URL)
    view = view_of(everything, plain)
    (known,) = plain.client().search_runs(
        [historic.mlflow_state["experiment_id"]], "tags.`tahoe.year` = '2012'"
    )
    data = known.data
    there = {f"metrics.`{key}`" for key in data.metrics} | {f"tags.`{key}`" for key in data.tags}
    of_several_labels = "metrics.`val/map`"
    assert {*view["selectedColumns"]} - there == {"attributes.`Description`", of_several_labels}
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`val/top1`", False)
    assert [section["name"] for section in view["compareRunSections"]][:2] == ["val", "train"]
    wanted = view_of(lineage, plain)["searchFilter"]
    found = plain.client().search_runs([historic.mlflow_state["experiment_id"]], wanted)
    assert [run.data.tags["tahoe.run_id"] for run in found] == ["historic"]
    before = plain.client().get_experiment(plain.mlflow_state["experiment_id"]).tags
    assert experiment_links(plain.client(), URL) == [everything, lineage]
    assert plain.client().get_experiment(plain.mlflow_state["experiment_id"]).tags == before


def test_a_filter_too_long_for_a_view_is_in_the_address(
    create_tracked_run: CreateTrackedRun, store: str
) -> None:
    tracked = create_tracked_run(uri=store)
    sync(tracked.run.path)
    wanted = f"tags.seed != '{'x' * 5000}'"
    page = table_page(tracked.client(), URL, tracked.mlflow_state["experiment_id"], wanted)
    assert shown_by(page, tracked) == {tracked.run.id}


def test_a_view_that_cannot_be_kept_is_done_without(
    create_tracked_run: CreateTrackedRun, store: str
) -> None:
    tracked = create_tracked_run(uri=store)
    sync(tracked.run.path)
    nowhere = MlflowClient(tracking_uri="http://127.0.0.1:9")  # discard: nobody answers
    page = table_page(nowhere, URL, tracked.mlflow_state["experiment_id"], "tags.seed = '1'")
    assert shown_by(page, tracked) == {tracked.run.id}


def test_the_lineage(create_tracked_run: CreateTrackedRun, store: str) -> None:
    plain, historic = (
        create_tracked_run("plain", uri=store),
        create_tracked_run("historic", uri=store),
    )
    historic.configure(model={"published": {"year": 2012}})
    for tracked in (plain, historic):
        sync(tracked.run.path)
    found = plain.client().search_runs([plain.mlflow_state["experiment_id"]], LINEAGE)
    assert [run.data.tags["tahoe.run_id"] for run in found] == ["historic"]


def test_a_run_that_mlflow_does_not_know(
    create_tracked_run: CreateTrackedRun, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="`tahoe sync` sends it"):
        ui_links(URL, [create_tracked_run().run.path])
    with pytest.raises(RunError, match="no run at"):
        ui_links(URL, [tmp_path / "nowhere"])
