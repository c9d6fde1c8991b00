"""Images with several labels: the same metrics on any number of ranks, logged and evaluated."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from multi_label import CLASSES, evaluate_on_rank, score_all, write_several_labels
from rank_runs import train_on_worlds
from ranks import run_on_ranks
from run_results import figures, global_batches, weights
from sklearn.metrics import average_precision_score, f1_score

from orchestrator.checkpoint.retention import best_checkpoint
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.parse import ConfigError, parse
from orchestrator.evaluation.evaluate_runs import EvalRequest, evaluate_runs
from orchestrator.run.rundir import RunDir, read_json_lines

pytestmark = pytest.mark.slow

NUM_STEPS = 12
RUN = (
    "data=digits",
    *("model=smooth_network:build", "recipe.loss=bce", "recipe.bce_pos_weight=auto"),
    *(f"recipe.steps={NUM_STEPS}", "recipe.global_batch_size=64", "recipe.num_micro_batches=2"),
    *("data.num_lanes=8", "recipe.mixup={mixup_alpha: 0.2, cutmix_alpha: 1.0, prob: 0.8}"),
    *("recipe.label_smoothing=0.05", "recipe.optimizer.lr=0.02", "recipe.ema_decay=0.9"),
    *("evaluate.every_epochs=0.25", "checkpoint.every_steps=4", "logging.every_steps=1"),
    *("logging.log_sample_ids=true", "evaluate.batch_size=50"),
)
RunOn = Callable[..., RunDir]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_several_labels(tmp_path_factory.mktemp("data sets") / "several")


@pytest.fixture(scope="module")
def run_on(several: Path, tmp_path_factory: pytest.TempPathFactory) -> RunOn:
    """Return a function that trains on some numbers of ranks, one after the other if killed."""
    home = tmp_path_factory.mktemp("runs")

    def run_on(*worlds: int, killed_at: Sequence[int] = ()) -> RunDir:
        path = home / "-".join(map(str, (*worlds, *killed_at)))
        return train_on_worlds(path, [*RUN, f"data.url='{several}'"], *worlds, killed_at=killed_at)

    return run_on


@pytest.fixture(scope="module")
def two_ranks(run_on: RunOn) -> RunDir:
    return run_on(2)


def evaluated(run: RunDir, **options: object) -> dict[str, object]:
    plain = dict.fromkeys(field.name for field in fields(EvalRequest))
    asked = {"runs": [str(run.path)], "split": "val", "real": False}
    return evaluate_runs(**{**plain, **asked, **options})


def test_every_number_of_ranks_computes_scikit_learns_metrics(
    two_ranks: RunDir, tmp_path: Path
) -> None:
    config = parse(two_ranks.read_config())
    for num_ranks in (1, 2, 4):
        run_on_ranks(evaluate_on_rank, num_ranks, config, tmp_path / str(num_ranks))
    one, two, four = ([*read_json_lines(tmp_path / str(n))] for n in (1, 2, 4))
    assert two == one * 2
    assert four == one * 4
    scores, labels = score_all(config)
    shown = labels.any(axis=0)
    assert CLASSES[int(np.flatnonzero(~shown)[0])] == "none"
    precisions = average_precision_score(labels[:, shown], scores[:, shown], average=None)
    assert one[0]["val/map"] == pytest.approx(100 * precisions.mean(), abs=1e-7)
    f1 = f1_score(labels, scores > 0, average="micro")
    assert one[0]["val/f1"] == pytest.approx(100 * f1, abs=1e-7)


def test_logged_metrics_are_those_of_evaluate(two_ranks: RunDir, several: Path) -> None:
    names = ("val/map", "val/f1", "val/loss")
    logged = figures(two_ranks, *names)
    report = evaluated(two_ranks)
    (result,) = report["runs"].values()
    for name in names:
        (value,) = logged[result["step"], name]
        assert result[name.removeprefix("val/")] == pytest.approx(value, abs=1e-6)
    scores_by_class = zip(CLASSES, report["class_ap"], report["class_f1"], strict=True)
    assert [name for name, ap, f1 in scores_by_class if ap is None and f1 is None] == ["none"]
    known = [ap for ap in report["class_ap"] if ap is not None]
    assert np.mean(known) == pytest.approx(result["map"])
    both = evaluated(two_ranks, runs=[str(two_ranks.path)] * 2)["ensemble"]
    assert both["map"] == pytest.approx(result["map"])
    for option, value in (("real", True), ("confusion", "table.csv")):
        with pytest.raises(ConfigError) as refused:
            evaluated(two_ranks, **{option: value})
        assert refused.value.value == value


def test_the_best_checkpoint_has_the_highest_map(two_ranks: RunDir) -> None:
    config = parse(two_ranks.read_config())
    assert config.checkpoint.keep_best == "val/top1"  # the default
    values = figures(two_ranks, "val/map")
    best = max(value for (value,) in values.values())
    manifests = CheckpointStore.for_run(two_ranks, config).manifests()
    kept = best_checkpoint([*manifests], config.checkpoint)
    assert kept is not None
    assert kept.metrics["val/map"] == best


def test_killed_ranks_end_with_the_same_bits(two_ranks: RunDir, run_on: RunOn) -> None:
    run = run_on(2, 2, killed_at=[7])
    assert run.num_attempts == 2
    assert weights(run, NUM_STEPS) == weights(two_ranks, NUM_STEPS)
    assert global_batches(run) == global_batches(two_ranks)
    assert figures(run, "val/map", "val/f1") == figures(two_ranks, "val/map", "val/f1")


@pytest.mark.parametrize("num_ranks", [1, pytest.param(4, marks=pytest.mark.long)])
def test_ranks_that_accumulate_or_share_train_as_two(
    two_ranks: RunDir, run_on: RunOn, num_ranks: int
) -> None:
    run = run_on(num_ranks)
    assert global_batches(run) == global_batches(two_ranks)
    for names, rel in ((("train/loss", "val/loss"), 1e-5), (("val/map", "val/f1"), 1e-3)):
        ours, theirs = figures(run, *names), figures(two_ranks, *names)
        assert ours.keys() == theirs.keys()
        for key, values in theirs.items():
            assert [*ours[key]] == pytest.approx([*values], rel=rel), key
