"""A rank of thousands finds its place in a million shards at once, and takes little memory."""

from pathlib import Path

import pytest
from benchmarks.planning import make_set, plan_in_a_process, resume_s

from data_sharding.format.manifest import read_manifest


@pytest.mark.slow
def test_a_rank_plans_ten_thousand_million_samples_in_a_second(tmp_path: Path) -> None:
    """It takes half of that alone on a machine; others may be busy on this one."""
    config = make_set(str(tmp_path), 1_000_000)
    assert read_manifest(str(tmp_path), "train").num_samples == 10**10
    stages = plan_in_a_process(config)
    assert stages[-1].seconds < 3
    assert stages[-1].megabytes < 200


def test_a_resume_in_mid_epoch_costs_what_a_start_costs(tmp_path: Path) -> None:
    make_set(str(tmp_path), 10_000)
    manifest = read_manifest(str(tmp_path), "train")
    middle = min(resume_s(manifest, 0.5) for _ in range(20))
    start = min(resume_s(manifest, 0) for _ in range(20))
    assert middle < 2 * start
