"""Where weights came from, over several generations."""

import dataclasses

from tracked_run import CreateTrackedRun

from orchestrator.run.rundir import RunDir
from orchestrator.tracking.records.provenance import Edge, provenance_edges, topological_rows
from orchestrator.tracking.records.record import read_record


def begun_with(create_tracked_run, name: str, **init_from: object) -> object:
    run: RunDir = create_tracked_run(name).run
    identity = run.read_json(run.identity_file) or {}
    run.write_json(run.identity_file, {**identity, "init_from": init_from or None})
    return read_record(run)


def test_a_family(create_tracked_run: CreateTrackedRun) -> None:
    records = [
        begun_with(create_tracked_run, "old"),
        begun_with(create_tracked_run, "middle", uid="uid-old", run="its old name", step=1200),
        begun_with(create_tracked_run, "young", uid="uid-middle", run="middle", step=5),
        begun_with(create_tracked_run, "other", source="timm/resnet50"),
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


def test_a_circle_ends() -> None:
    assert topological_rows([Edge("a", "b", ""), Edge("b", "a", "")])


def test_an_ensemble_comes_from_its_members(create_tracked_run: CreateTrackedRun) -> None:
    judged = {"ensemble": {"runs": ["a", "b"], "top1": 1.0}}
    members = [read_record(create_tracked_run(name).run) for name in ("a", "b")]
    alike = [dataclasses.replace(one, evaluations=[judged, judged, {}]) for one in members]
    assert provenance_edges(alike) == [
        Edge("a", "ensemble of a, b", "member"),
        Edge("b", "ensemble of a, b", "member"),
    ]
