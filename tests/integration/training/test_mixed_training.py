"""A run on several data sets is one run: the same on any ranks, killed or not."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from rank_runs import create_run, train_on_ranks
from run_results import figures, global_batches
from torch.multiprocessing import ProcessExitedException

NUM_STEPS, QUOTAS = 10, [48, 16]
RUN = (
    "data=digits",
    "model=smooth_network:build",
    f"recipe.steps={NUM_STEPS}",
    *("recipe.global_batch_size=64", "recipe.num_micro_batches=2", "data.num_lanes=8"),
    *("recipe.mixup={mixup_alpha: 0.2, cutmix_alpha: 1.0, prob: 0.8}", "recipe.augment_repeats=2"),
    *("recipe.optimizer.lr=0.02", "evaluate.every_epochs=0.5", "checkpoint.every_steps=3"),
    *("logging.every_steps=1", "logging.log_sample_ids=true"),
)


@pytest.mark.slow
def test_ranks_and_kills_do_not_change_a_mixture(digits: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    shutil.copytree(digits / "val", few / "train")
    mix = f"data.mix=[{{url: '{digits}', weight: 3}}, {{url: '{few}', weight: 1}}]"
    overrides = [*RUN, f"data.url='{digits}'", mix]
    expected, config = create_run(tmp_path / "one", overrides)
    train_on_ranks(expected, config, 1)
    run, config = create_run(tmp_path / "moved", overrides)
    with pytest.raises(ProcessExitedException):
        train_on_ranks(run, config, 4, killed_at=7)
    train_on_ranks(run, config, 2)
    batches = global_batches(run)
    assert batches == global_batches(expected)
    assert len(batches) == NUM_STEPS
    for ids in batches.values():
        assert np.bincount(np.array(ids) >= 1438).tolist() == QUOTAS
    ours, theirs = (figures(one, "train/loss", "val/top1") for one in (run, expected))
    assert ours.keys() == theirs.keys()
    for key, values in theirs.items():
        assert [*ours[key]] == pytest.approx([*values] * len(ours[key]), rel=1e-5), key
