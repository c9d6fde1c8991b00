"""The provenance of runs: initial weights from other runs, and ensembles."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.tracking.records.record import Record


@dataclass(frozen=True)
class Edge:
    """`child` came from `parent`: the name of a run, or the location of other weights."""

    parent: str
    child: str
    kind: str


def provenance_edges(records: Sequence[Record]) -> list[Edge]:
    """Collect the origins of runs, and the ensembles that they are members of."""
    ids = {record.uid: record.id for record in records if record.uid}
    edges = []
    for record in records:
        if origin := record.init_from:
            elsewhere = str(origin.get("run") or origin.get("source"))
            parent = ids.get(str(origin.get("uid")), elsewhere)
            kind = f"weights of step {origin['step']:,}" if "step" in origin else "weights"
            edges.append(Edge(parent, record.id, kind))
        for line in record.evaluations:
            names = (line.get("ensemble") or {}).get("runs", ())
            if len(names) > 1:
                edges.append(Edge(record.id, f"ensemble of {', '.join(names)}", "member"))
    return list(dict.fromkeys(edges))


def topological_rows(edges: Iterable[Edge]) -> list[list[str]]:
    """Sort names into rows by the number of links before them, the oldest first."""
    depth: dict[str, int] = {}
    parents: dict[str, list[str]] = {}
    for edge in edges:
        parents.setdefault(edge.child, []).append(edge.parent)
        parents.setdefault(edge.parent, [])

    def depth_of(name: str) -> int:
        if name not in depth:
            depth[name] = 0  # also ends a cycle, which only damaged files could form
            depth[name] = max((1 + depth_of(parent) for parent in parents[name]), default=0)
        return depth[name]

    rows: list[list[str]] = []
    for name in sorted(parents, key=lambda name: (depth_of(name), name)):
        while len(rows) <= depth_of(name):
            rows.append([])
        rows[depth_of(name)].append(name)
    return rows
