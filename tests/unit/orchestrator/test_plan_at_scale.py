"""A rank of thousands finds its place in a million shards at once, and takes little memory."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks.planning import make_set, plan_in_a_process, resume_s

from data_sharding.format.manifest import read_manifest


@pytest.mark.slow
@pytest.mark.parametrize("in_stores", [pytest.param(False, marks=pytest.mark.long), True])
def test_ranks_plan_ten_thousand_million_samples_in_a_second(
    tmp_path: Path, in_stores: bool
) -> None:
    """It takes half of that alone on a machine; others may be busy on this one.

    An array as long as the data set would take 80 GB. One rank of 4,096 looks up 32 samples of each
    step, a single rank 131,072.
    """
    config = make_set(str(tmp_path), 1_000_000, in_stores=in_stores)
    assert read_manifest(config.data.location, "train").num_samples == 10**10
    for num_ranks, first_s, next_s in ((4096, 4, 2), (1, 20, 15)):
        stages = plan_in_a_process(config, num_ranks)
        assert stages[-1].megabytes < 300
        steps_s = [stage.seconds for stage in stages if stage.name == "its shards"]
        assert len(steps_s) == 3  # the first one, one in mid-epoch, one far away
        assert steps_s[0] < first_s
        assert max(np.diff(steps_s)) < next_s


def test_a_resume_in_mid_epoch_costs_what_a_start_costs(tmp_path: Path) -> None:
    make_set(str(tmp_path), 10_000)
    manifest = read_manifest(str(tmp_path), "train")
    middle = min(resume_s(manifest, 0.5) for _ in range(20))
    start = min(resume_s(manifest, 0) for _ in range(20))
    assert middle < 2 * start
