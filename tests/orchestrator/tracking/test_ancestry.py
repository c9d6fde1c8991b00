"""Where weights came from, over several generations."""

import dataclasses

from orchestrator.run.rundir import RunDir
from orchestrator.tracking.records.provenance import Edge, provenance_edges, topological_rows
from orchestrator.tracking.records.record import read_record


def begun_with(make_scene, name: str, **init_from: object) -> object:
    run: RunDir = make_scene(name).run
    identity = run.read_json(run.identity_file) or {}
    run.write_json(run.identity_file, {**identity, "init_from": init_from or None})
    return read_record(run)


def test_a_family(make_scene):
    records = [
        begun_with(make_scene, "old"),
        begun_with(make_scene, "middle", uid="uid-old", run="its old name", step=1200),
        begun_with(make_scene, "young", uid="uid-middle", run="middle", step=5),
        begun_with(make_scene, "other", source="timm/resnet50"),
    ]
    found = provenance_edges(records)
    assert found == [
        Edge("old", "middle", "weights of step 1,200"),
        Edge("middle", "young", "weights of step 5"),
        Edge("timm/resnet50", "other", "weights"),
    ]
    assert topological_rows(found) == [["old", "timm/resnet50"], ["middle", "other"], ["young"]]
    gone = [dataclasses.replace(one, uid=None) for one in records]
    assert provenance_edges(gone)[0].parent == "its old name"


def test_a_circle_ends():
    assert topological_rows([Edge("a", "b", ""), Edge("b", "a", "")])


def test_an_ensemble_comes_from_its_members(make_scene):
    judged = {"ensemble": {"runs": ["a", "b"], "top1": 1.0}}
    members = [read_record(make_scene(name).run) for name in ("a", "b")]
    alike = [dataclasses.replace(one, evaluations=[judged, judged, {}]) for one in members]
    assert provenance_edges(alike) == [
        Edge("a", "ensemble of a, b", "member"),
        Edge("b", "ensemble of a, b", "member"),
    ]
