"""Addresses that show what they say: the filters are asked of a real store."""

from urllib.parse import unquote

import pytest

from orchestrator.rundir import RunError
from orchestrator.sweepdir import SweepDir
from orchestrator.tracking.deep_links import LINEAGE, links_to
from orchestrator.tracking.ship import sync
from orchestrator.tracking.store import MlflowClient

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
URL = "https://mlflow.example.org"


def shown_by(link, scene):
    """Return the names of the runs that a page with a filter lists."""
    address, _, _ = link.partition("  ")
    place, wanted = address.removeprefix(f"{URL}/#/experiments/").split("/runs?searchFilter=")
    found = MlflowClient(tracking_uri=scene.uri).search_runs([place], unquote(wanted))
    return {run.data.tags["tahoe.run_id"] for run in found}


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
    own, family = links_to(URL, [scenes["young"].run.path])
    assert own == (
        f"{URL}/#/experiments/{scenes['young'].mark['experiment_id']}/runs/"
        f"{scenes['young'].mark['run_id']}  young"
    )
    assert shown_by(family, scenes["young"]) == {"young", "middle", "old"}
    assert len(links_to(URL, [scenes["other"].run.path])) == 1
    begin_with(scenes["old"], "young")  # a circle ends
    assert shown_by(links_to(URL, [scenes["young"].run.path])[1], scenes["young"]) == {
        *("young", "middle", "old")
    }


def test_a_sweep(make_scene, store, tmp_path):
    scenes = [make_scene(name, uri=store) for name in ("a", "b", "c")]
    sweep = SweepDir.of(tmp_path, [scene.run for scene in scenes[:2]])
    sweep.add((scene.run, [f"seed={scene.run.id}"]) for scene in scenes[:2])
    with pytest.raises(RunError, match="does not know"):
        links_to(URL, [sweep.path])
    for scene in scenes:
        sync(scene.run.path)
    (link,) = links_to(URL, [sweep.path])
    assert shown_by(link, scenes[0]) == {"a", "b"}


def test_the_lineage(make_scene, store):
    plain, historic = make_scene("plain", uri=store), make_scene("historic", uri=store)
    historic.configure(model={"published": {"year": 2012}})
    for scene in (plain, historic):
        sync(scene.run.path)
    found = plain.client().search_runs([plain.mark["experiment_id"]], LINEAGE)
    assert [run.data.tags["tahoe.run_id"] for run in found] == ["historic"]


def test_a_run_that_mlflow_does_not_know(make_scene, tmp_path):
    with pytest.raises(RunError, match="`tahoe sync` sends it"):
        links_to(URL, [make_scene().run.path])
    with pytest.raises(RunError, match="no run at"):
        links_to(URL, [tmp_path / "nowhere"])
