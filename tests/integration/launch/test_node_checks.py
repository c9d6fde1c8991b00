"""The evaluation of the ranks' reports by `tahoe doctor --on-nodes`."""

import copy
from typing import Any

import pytest

from orchestrator.config.parse import parse
from orchestrator.launch.checks.model_cost import ModelCost
from orchestrator.preflight.node_checks import evaluate_report

COST = ModelCost(num_params=25_000_000, gmacs=4.1, petaflop=1.0)
RANK: dict[str, Any] = {
    "host": "node1",
    "versions": "Python 3.12.1, torch 2.14.1",
    "num_gpus": 0,
    "gpu": None,
    "unseen": [],
    "unlocked": None,
    "clock": {"ahead_s": 0.0, "within_s": 0.0},
    "all_reduce": {"bytes_per_s": 10e9, "latency_s": 1e-4},
    "read": {"num_bytes": 200e6, "num_images": 2000.0, "seconds": 2.0},
    "cache": None,
}


def report(*, second: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the reports of two nodes, the second of which differs."""
    first = copy.deepcopy(RANK)
    return [first, {**copy.deepcopy(RANK), "host": "node2", **second}]


@pytest.mark.parametrize(
    ("second", "cluster", "what", "level", "said"),
    [
        ({}, {}, "GPUs", "ok", "node1: 0, node2: 0"),
        ({}, {"gpus_per_node": 8}, "GPUs", "fail", "is this torch built for CUDA"),
        ({"num_gpus": 7}, {"gpus_per_node": 8}, "GPUs", "fail", "is one broken"),
        ({"num_gpus": 1}, {"gpus_per_node": 8}, "GPUs", "ok", "node2: 1"),
        ({"num_gpus": 2}, {}, "GPUs", "warn", "They stay unused"),
        ({"read": {"error": "NO: x"}}, {}, "shards", "fail", "1 of 2 nodes cannot read the data"),
        ({}, {}, "software", "ok", "torch 2.14.1 on 2 nodes"),
        ({"versions": "Python 3.11.9, torch 2.14.1"}, {}, "software", "fail", "node2: Python 3.11"),
        ({}, {}, "run directory", "ok", "sees the files of all"),
        ({"unlocked": "NO"}, {}, "run directory", "fail", "on 1 of 2 nodes, as node2: NO"),
        ({"unseen": [0]}, {}, "run directory", "fail", "node2 does not see those of ranks [0]"),
        ({"clock": {"ahead_s": -0.9, "within_s": 0.1}}, {}, "clocks", "ok", "900.0 ms"),
        ({"clock": {"ahead_s": -1.2, "within_s": 0.1}}, {}, "clocks", "warn", "NTP"),
        ({}, {}, "all-reduce", "ok", "10 GB/s between 2 ranks, 0.10 ms"),
        ({}, {}, "all-reduce", "ok", "take 10 ms a step"),
        ({}, {}, "shards", "ok", "100 to 100 MB/s a node read at the same time, 1,000 to"),
        (
            {"read": {"num_bytes": 0, "num_images": 0, "seconds": 1}},
            {},
            "shards",
            "warn",
            "1 nodes",
        ),
    ],
)
def test_each_check_evaluates_the_report(
    values: dict[str, Any],
    second: dict[str, Any],
    cluster: dict[str, Any],
    what: str,
    level: str,
    said: str,
) -> None:
    values["slurm"] |= cluster
    ranks = report(second=second)
    if cluster and "num_gpus" in second:
        ranks[0]["num_gpus"] = cluster["gpus_per_node"]
    found = [one for one in evaluate_report(parse(values), COST, ranks) if one.name == what]
    assert found[0].status == level
    assert said in found[0].message


@pytest.mark.parametrize(
    ("second", "levels"),
    [
        (None, []),  # the data is not remote
        ({"free_bytes": 99 * 10**9}, ["warn"]),
        ({"free_bytes": 101 * 10**9}, ["ok"]),
        ({"error": "the cache /scratch cannot be used: Read-only file system"}, ["fail", "ok"]),
    ],
)
def test_each_node_needs_space_for_its_cache(
    values: dict[str, Any], second: dict[str, Any] | None, levels: list[str]
) -> None:
    ranks = report(second={"cache": second})
    if second:
        ranks[0]["cache"] = {"free_bytes": 500 * 10**9}
    found = [one for one in evaluate_report(parse(values), COST, ranks) if one.name == "cache"]
    assert [one.status for one in found] == levels
    if levels == ["fail", "ok"]:
        assert "node2: the cache /scratch" in found[0].message


def test_one_rank_has_no_all_reduce_check(values: dict[str, Any]) -> None:
    assert "all-reduce" not in [one.name for one in evaluate_report(parse(values), COST, [RANK])]
