"""The choice after a crash: in the same job or not, and on which nodes."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.parse import ConfigError, parse
from orchestrator.jobs.allocation import Allocation, bad_nodes, num_nodes, restart_obstacle
from orchestrator.jobs.job_hooks import NextAction, pause_s, restart_or_requeue
from orchestrator.run.rundir import RunDir

WELL = Allocation(2, ("node1", "node2"), (), math.inf, 5.0, 0.0, is_signalled=False, repeats=0)


def obstacle(**facts: object) -> str | None:
    return restart_obstacle(WELL._replace(**facts), signal_delay_s=120, max_failures=3)


@pytest.mark.parametrize(
    ("facts", "restarts"),
    [
        ({}, True),
        ({"is_signalled": True}, False),
        ({"num_nodes": None, "unhealthy": ("node2",)}, False),
        ({"unhealthy": ("node3",)}, True),  # a spare one, or one more than the run needs
        ({"time_left_s": 184}, False),  # Slurm may send its signal before the first step
        ({"time_left_s": 186}, True),
        ({"time_left_s": 186, "startup_s": 40.0}, False),
        ({"time_left_s": 186, "pause_s": 30.0}, False),
        ({"repeats": 3}, True),
        ({"repeats": 4}, False),
    ],
)
def test_ranks_start_again_if_time_nodes_and_signals_allow(
    facts: dict[str, object], restarts: bool
) -> None:
    assert (obstacle(**facts) is None) == restarts


def test_without_an_answer_of_slurm_the_job_is_requeued(run: RunDir) -> None:
    slurm = parse(run.read_config()).slurm
    crash = NextAction("requeue", "killed")
    assert restart_or_requeue(crash, None, slurm) == crash
    assert restart_or_requeue(crash, WELL, slurm) == ("restart", "killed", "node1,node2", 0)
    assert restart_or_requeue(crash, WELL._replace(is_signalled=True), slurm).next == "requeue"


def test_trouble_of_some_minutes_does_not_use_up_the_attempts() -> None:
    pauses = [pause_s(failures) for failures in range(8)]
    assert pauses == [0, 0, 30, 60, 120, 240, 300, 300]


def use_nodes(run: RunDir, nodes: int | str, spare_nodes: int = 0, **slurm: object) -> None:
    config = run.read_config()
    options = {"nodes": nodes, "spare_nodes": spare_nodes, **slurm}
    run.write_config(config | {"slurm": config["slurm"] | options})


def died_of(run: RunDir, nodes: Sequence[str]) -> list[str]:
    for node in nodes:
        run.end_attempt(run.begin_attempt(), failed_node=node)
    return bad_nodes(run, parse(run.read_config()))


@pytest.mark.parametrize(
    ("nodes", "deaths", "bad"),
    [
        (1, ["a"], []),
        (1, ["a", "a"], ["a"]),
        (2, ["a", "b", "a", "b", "a", "b"], []),  # what kills them is not the node
        (2, ["a", "a"], ["a"]),
        (2, ["a", "b", "a", "a"], ["a"]),
        (64, ["a", "b", "a"], ["a"]),
        (64, ["a", "b", "c"], []),
    ],
)
def test_a_bad_node_stands_out(run: RunDir, nodes: int, deaths: list[str], bad: list[str]) -> None:
    use_nodes(run, nodes)
    assert died_of(run, deaths) == bad


@pytest.mark.parametrize(
    ("nodes", "spare", "given", "well", "expected"),
    [
        (2, 0, 2, 2, 2),
        (2, 0, 2, 1, None),
        (2, 1, 3, 3, 2),
        (2, 1, 3, 2, 2),
        (2, 1, 3, 1, None),
        ("1-3", 0, 3, 3, 2),  # three nodes of two ranks do not divide four micro-batches
        ("1-3", 0, 1, 1, 1),
        ("2-3", 1, 3, 3, 2),
        ("1-8", 1, 2, 2, 1),  # the other is spare
        ("3-3", 0, 3, 3, 3),  # which was refused when it was submitted
    ],
)
def test_an_attempt_runs_on_the_most_nodes_that_fit(
    run: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    nodes: int | str,
    spare: int,
    given: int,
    well: int,
    expected: int | None,
) -> None:
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", str(given))
    use_nodes(run, nodes, spare, tasks_per_node=2)
    run.write_json(run.identity_file, {"data": {"num_train": 10_000}})
    config = parse(run.read_config()).replace({"recipe.num_micro_batches": 4, "data.num_lanes": 4})
    assert num_nodes(run, config, well) == expected


@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 3))
def test_a_range_must_be_from_fewest_to_most(fewest: int, more: int, spare: int) -> None:
    from sbatch_requests import sbatch_request

    from slurm.sbatch import sbatch_options

    nodes = f"{fewest}-{fewest + more}"
    job = sbatch_request(*"nrp", nodes=nodes, spare_nodes=spare, tasks_per_node=2, cpus_per_task=3)
    text = f"{fewest + spare}-{fewest + more + spare}" if more else str(fewest + spare)
    assert f"nodes={text}" in sbatch_options(job)
    assert ("no-kill" in sbatch_options(job)) == (spare > 0)
    if more:
        assert "mincpus=6" in sbatch_options(job)
        assert "ntasks-per-node=2" not in sbatch_options(job)
        with pytest.raises(ValueError, match="FEWEST-MOST"):
            sbatch_request(*"nrp", nodes=f"{fewest + more}-{fewest}")


@pytest.mark.parametrize("nodes", [0, -1, "some", "0-2", "2-", "1-2-3", "4-2", 1.5])
def test_another_number_of_nodes_is_refused(run: RunDir, nodes: object) -> None:
    config = run.read_config()
    with pytest.raises(ConfigError) as refused:
        parse(config | {"slurm": config["slurm"] | {"nodes": nodes}})
    assert all(key.startswith("slurm") for key in refused.value.value)
