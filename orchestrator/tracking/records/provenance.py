"""Which run began with the weights of which, and which were judged together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.tracking.records.record import Record


@dataclass(frozen=True)
class Edge:
    """`child` came from `parent`: a run's name, or where weights from elsewhere lie."""

    parent: str
    child: str
    kind: str


def provenance_edges(records: Sequence[Record]) -> list[Edge]:
    """Return what is known of where the runs came from."""
    by_uid = {one.uid: one.id for one in records if one.uid}
    found = []
    for one in records:
        if one.init_from:
            said = one.init_from
            elsewhere = str(said.get("run") or said.get("source"))
            parent = by_uid.get(str(said.get("uid")), elsewhere)
            kind = f"weights of step {said['step']:,}" if "step" in said else "weights"
            found.append(Edge(parent, one.id, kind))
        for line in one.evaluations:
            names = (line.get("ensemble") or {}).get("runs", ())
            if len(names) > 1:
                found.append(Edge(one.id, f"ensemble of {', '.join(names)}", "member"))
    return list(dict.fromkeys(found))


def topological_rows(found: Iterable[Edge]) -> list[list[str]]:
    """Return names by how many links lie before them, the oldest first."""
    depth: dict[str, int] = {}
    parents: dict[str, list[str]] = {}
    for link in found:
        parents.setdefault(link.child, []).append(link.parent)
        parents.setdefault(link.parent, [])

    def depth_of(name: str) -> int:
        if name not in depth:
            depth[name] = 0  # also ends a circle, which only damaged files could make
            depth[name] = max((1 + depth_of(p) for p in parents[name]), default=0)
        return depth[name]

    rows: list[list[str]] = []
    for name in sorted(parents, key=lambda name: (depth_of(name), name)):
        while len(rows) <= depth_of(name):
            rows.append([])
        rows[depth_of(name)].append(name)
    return rows
