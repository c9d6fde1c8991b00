"""Which checkpoints stay."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from cli_runner import Tahoe
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoint.retention import best_checkpoint, best_or_newest, steps_to_keep
from orchestrator.checkpoint.store import CheckpointError, CheckpointManifest
from orchestrator.config.schema import Checkpoint
from orchestrator.run.rundir import RunDir

KEEP = Checkpoint(
    url=None,
    every_steps=1,
    every_minutes=None,
    keep_last=2,
    keep_best="val/top1",
    keep_every_steps=None,
)
TOP1 = {10: 50.0, 20: 70.0, 30: 60.0, 40: 70.0, 60: 20.0, 70: 30.0}


def manifests(metric: str = "val/top1") -> list[CheckpointManifest]:
    """Return those of six evaluated steps and one, 50, that was not."""
    judged = [CheckpointManifest(step, {metric: value}, {}) for step, value in TOP1.items()]
    return [*judged, CheckpointManifest(50, {}, {})]


@pytest.mark.parametrize(
    ("changes", "metric", "steps"),
    [
        ({}, "val/top1", {40, 60, 70}),  # 40: the newer of two equals
        ({"keep_every_steps": 30}, "val/top1", {30, 40, 60, 70}),
        ({"keep_last": 4}, "val/top1", {40, 50, 60, 70}),
        ({"keep_best": None}, "val/top1", {60, 70}),
        ({"keep_best": "val/loss"}, "val/loss", {60, 70}),  # the lowest is the best
        ({"keep_best": "val/top5"}, "val/top5", {40, 60, 70}),
        ({}, "val/top5", {60, 70}),  # never judged by what is asked for
    ],
)
def test_the_last_the_best_and_each_nth_are_kept(
    changes: dict[str, object], metric: str, steps: set[int]
) -> None:
    assert steps_to_keep(manifests(metric), replace(KEEP, **changes)) == steps  # type: ignore[arg-type]


def test_the_lowest_loss_is_the_best() -> None:
    found = best_checkpoint(manifests("val/loss"), replace(KEEP, keep_best="val/loss"))
    assert found is not None
    assert found.step == 60
    assert best_checkpoint(manifests("val/loss"), KEEP) == found  # there is no accuracy to go by
    assert best_checkpoint([], KEEP) is None


def test_of_several_labels_the_highest_map_is_the_best() -> None:
    evaluated = [
        CheckpointManifest(step, {"val/map": value, "val/f1": -value, "val/loss": value}, {})
        for step, value in TOP1.items()
    ]
    for name, step in (("val/top1", 40), ("val/map", 40), ("val/f1", 60), ("val/loss", 60)):
        keep = replace(KEEP, keep_best=name)  # type: ignore[arg-type]
        found = best_checkpoint(evaluated, keep)
        assert found is not None
        assert found.step == step


@given(st.sets(st.integers(1, 200), min_size=1), st.integers(2, 5), st.integers(1, 50))
def test_pruning_step_by_step_keeps_what_pruning_at_the_end_keeps(
    steps: set[int], keep_last: int, every: int
) -> None:
    keep = replace(KEEP, keep_last=keep_last, keep_every_steps=every)
    left: list[CheckpointManifest] = []
    for step in sorted(steps):
        left.append(CheckpointManifest(step, {"val/top1": step % 7}, {}))
        stay = steps_to_keep(left, keep)
        left = [one for one in left if one.step in stay]
    everything = [CheckpointManifest(step, {"val/top1": step % 7}, {}) for step in steps]
    assert {one.step for one in left} == steps_to_keep(everything, keep)


FIGURES = st.sampled_from([math.nan, math.inf, -math.inf, 1.0, 2.0, 3.0])


@given(st.lists(FIGURES, min_size=1), st.sampled_from(["val/top1", "val/loss"]))
def test_non_finite_metrics_are_never_the_best(values: list[float], name: str) -> None:
    keep = replace(KEEP, keep_best=name)  # type: ignore[arg-type]
    judged = [
        CheckpointManifest(step, {name: value}, {}) for step, value in enumerate(values, start=1)
    ]
    finite = [value for value in values if math.isfinite(value)]
    best = best_checkpoint(judged, keep)
    if finite:
        assert best is not None
        assert best.metrics[name] == (max if name == "val/top1" else min)(finite)
        assert best.step in steps_to_keep(judged, keep)
        assert best_or_newest(judged, keep) is best
    else:
        assert best is None
        assert best_or_newest(judged, keep) is judged[-1]
        unjudged = CheckpointManifest(0, {}, {})
        assert best_or_newest([unjudged, *judged], keep) is unjudged


NETWORK = """
import torch
from torch import nn

class Breaking(nn.Linear):  # answers with NaN before and after step 12
    def __init__(self, num_classes):
        super().__init__(1024, num_classes)
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, images):
        self.seen += self.training
        logits = super().forward(images.flatten(1))
        is_sound = self.training or self.seen == 12 * 4
        return logits if is_sound else logits * float("nan")

def build(num_classes, in_channels):
    return Breaking(num_classes)
"""


@pytest.mark.slow
def test_export_takes_the_best_checkpoint_of_a_run_that_ends_with_nan(
    train: Callable[..., RunDir], tahoe: Tahoe
) -> None:
    (tahoe.cwd / "network.py").write_text(NETWORK)
    run = train(
        "run",
        *("model=network:build", "recipe.steps=14", "recipe.global_batch_size=64"),
        "recipe.num_micro_batches=4",
        *("evaluate.every_epochs=0.25", "checkpoint.keep_best=val/loss"),
    )
    outcome = run.read_json(run.outcome_file)
    assert outcome is not None
    assert outcome["outcome"] == "finished"
    assert "val/loss is nan" in outcome["reason"]
    tahoe("ckpt", "export", "run", "net.safetensors")
    best = run.checkpoints_dir / "step-000000012" / "model.safetensors"
    assert (tahoe.cwd / "net.safetensors").read_bytes() == best.read_bytes()


def test_weights_file_prefers_averaged_weights() -> None:
    raw = CheckpointManifest(1, {}, {"model.safetensors": (1, "")})
    both = CheckpointManifest(1, {}, {"model.safetensors": (1, ""), "ema.safetensors": (1, "")})
    assert [one.weights_file() for one in (raw, both)] == ["model.safetensors", "ema.safetensors"]
    assert [one.weights_file("raw") for one in (raw, both)] == ["model.safetensors"] * 2
    assert both.weights_file("ema") == "ema.safetensors"
    with pytest.raises(CheckpointError, match=r"no ema\.safetensors") as error:
        raw.weights_file("ema")
    assert "--weights" in error.value.hint
