"""Which node is slow, by the lines that rank 0 writes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.run.node_times import NodeTimes, RankTimes, node_times, slow_nodes, to_json
from orchestrator.run.rundir import RunDir, append_json_line

SECONDS = st.floats(0.01, 10)


def write(run: RunDir, busy_s: dict[str, float], *, num_steps: int = 50, attempt: int = 1) -> None:
    times = {node: NodeTimes(seconds, 0.0, 0.0) for node, seconds in busy_s.items()}
    line = to_json(times, step=num_steps, attempt=attempt, num_steps=num_steps)
    append_json_line(run.node_times_file, line)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


@given(st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=2, max_size=6))
def test_a_node_is_as_slow_as_its_slowest_rank(ranks: list[tuple[float, float, float]]) -> None:
    """Two ranks a node; whoever comes last waits for nobody."""
    nodes = [f"node{rank // 2}" for rank in range(len(ranks))]
    times = node_times(nodes, [RankTimes(*rank) for rank in ranks], num_steps=10, elapsed_s=30)
    assert max(time.busy_s for time in times.values()) == max(ranks)[0] / 10
    assert min(time.wait_fraction for time in times.values()) >= 0
    assert all(time.wait_fraction < 1 for time in times.values())
    assert times["node0"].busy_s == max(ranks[:2])[0] / 10


@pytest.mark.parametrize(("excess", "named"), [(0.09, []), (0.23, ["node3"])])
def test_ten_percent_over_a_hundred_steps(run: RunDir, excess: float, named: list[str]) -> None:
    healthy = {f"node{n}": 0.2 for n in range(8)}
    write(run, healthy | {"node5": 2.0})  # a hiccup of the past
    write(run, healthy | {"node3": 0.2 * (1 + excess)})
    write(run, healthy | {"node3": 0.2 * (1 + excess)})
    slow = slow_nodes(run)
    assert [node.node for node in slow] == named
    for node in slow:
        assert node.excess == pytest.approx(excess)
        assert (node.num_steps, node.num_nodes) == (100, 8)


def test_fewer_steps_name_nobody_and_an_attempt_begins_afresh(run: RunDir) -> None:
    assert slow_nodes(run) == []
    write(run, {"a": 1.0, "b": 2.0}, num_steps=99)
    assert slow_nodes(run) == []
    write(run, {"a": 1.0, "b": 2.0}, num_steps=99)
    assert [node.node for node in slow_nodes(run)] == ["b"]
    write(run, {"a": 1.0, "b": 2.0}, num_steps=99, attempt=2)
    assert slow_nodes(run) == []


def test_lines_of_many_nodes_are_bounded_and_torn_ones_are_skipped(run: RunDir) -> None:
    busy_s = {f"node{n:03}": 1.0 + n / 1000 for n in range(512)} | {"node100": 2.5, "node200": 2.6}
    write(run, busy_s)
    with run.node_times_file.open("a") as file:
        file.write('{"step": 1, "nod\n')
    write(run, busy_s)
    assert max(map(len, run.node_times_file.read_bytes().splitlines())) < 8000
    assert [node.node for node in slow_nodes(run)][:2] == ["node200", "node100"]
    assert {node.num_nodes for node in slow_nodes(run)} == {512}


def test_waiting_for_data_is_told_from_computing(run: RunDir) -> None:
    times = {"a": NodeTimes(1.0, 0.0, 0.2), "b": NodeTimes(1.3, 0.3, 0.0)}
    append_json_line(run.node_times_file, to_json(times, step=100, attempt=1, num_steps=100))
    (slow,) = slow_nodes(run)
    assert (slow.excess, slow.data_excess) == pytest.approx((0.3, 0.3))
    assert "data" in str(slow)
