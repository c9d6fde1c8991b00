"""Pictures of a finished run: `python -m orchestrator.evaluation.run_plots RUN`.

    plots/augmented_views.png  training images as the network has seen them
    plots/top_errors.png       the wrong predictions with the highest probability
    plots/confusion.png        the confusion matrix of the validation split
    plots/weights.png          histograms of the weights and the highest learning rate of each,
                               with logging.weight_histograms

In a process of its own: whoever ships a run does without torch.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image

from data_sharding.format.manifest import read_manifest
from data_sharding.image.contact_sheet import draw_sheet, grid
from data_sharding.tools.preview import stored_tile
from orchestrator.checkpoint.retention import select_checkpoint
from orchestrator.checkpoint.safetensors_io import read_tensors
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.parse import parse
from orchestrator.config.schema import Config
from orchestrator.evaluation.augmented_views import draw_augmented_views
from orchestrator.plot_style import styled
from orchestrator.run.rundir import RunDir
from orchestrator.training.inputs.datasets import open_eval_set
from orchestrator.training.monitoring.predictions import Predictions, read_answers
from orchestrator.training.optim.factory import make_optimizer
from orchestrator.training.task.linear_probe import freeze_backbone
from orchestrator.training.task.model import build_model

_NUM_MISTAKES, _COLUMNS, _TILE_PX = 24, 8, 160
_MAX_NAMED_CLASSES, _MAX_CONFUSED = 30, 1000
_NUM_BINS = 120
_NICENESS = 19


def main(arguments: Sequence[str]) -> int:
    """Draw all pictures of a run."""
    os.nice(_NICENESS)
    run = RunDir(Path(arguments[0]))
    config = parse(run.read_config())
    run.plots_dir.mkdir(exist_ok=True)
    _save(draw_augmented_views(config, num=8, num_epochs=6), run, "augmented_views")
    if config.logging.weight_histograms:
        _save(draw_weights(run, config), run, "weights")
    answers = read_answers(run)
    if answers is not None:
        if len(answers.top_errors):
            _save(draw_mistakes(answers, config), run, "top_errors")
        classes = read_manifest(config.data.url, "val").classes
        _save(draw_confusion(answers, classes), run, "confusion")  # the last of them
    return 0


def draw_mistakes(answers: Predictions, config: Config) -> Image.Image:
    """Return the mistakes that the network was surest of, on a sheet."""
    manifest = read_manifest(config.data.url, "val")
    shards = open_eval_set(config, "val", manifest).shards
    chosen = answers.top_errors[:_NUM_MISTAKES]
    tiles = []
    for sample, (shard, i) in zip(chosen, shards.locate(chosen), strict=True):
        tile = stored_tile(shards.store.open(manifest.shards[shard]), i, manifest, _TILE_PX)
        taken_for = manifest.classes[answers.answers[sample]]
        sure = 100 * answers.probabilities[sample]
        tiles.append(replace(tile, caption=f"{tile.caption}, not {taken_for} ({sure:.1f} %)"))
    wrong = f"{len(answers.top_errors):,} of {len(answers.labels):,}"
    return draw_sheet(
        grid(tiles, _COLUMNS),
        title=f"{config.model.name} on {config.data.name}: the surest mistakes",
        subtitle=f"its class, not what it was taken for; {wrong} are wrong",
        tile_px=_TILE_PX,
    )


def draw_confusion(answers: Predictions, classes: Sequence[str]) -> Figure:
    """Return how often which class was taken for which, in percent of the class.

    Of very many, neighbours are one.
    """
    counted = answers.confusion(len(classes), _MAX_CONFUSED)
    shares = 100 * counted / np.maximum(counted.sum(axis=1, keepdims=True), 1)
    named = len(classes) <= _MAX_NAMED_CLASSES
    side = max(4.0, 0.38 * len(classes)) if named else 8.0
    with styled():
        figure = Figure(figsize=(side + 1.5, side), layout="constrained")
        axes = figure.subplots()
        axes.grid(visible=False)
        image = axes.imshow(shares, cmap="cividis", norm=LogNorm(0.1, 100, clip=True))
        figure.colorbar(image, label="share of the class (%)", shrink=0.8)
        axes.set_xlabel("taken for")
        axes.set_ylabel("class")
        if named:
            axes.set_xticks(range(len(classes)), classes, rotation=90)
            axes.set_yticks(range(len(classes)), classes)
            for (row, column), share in np.ndenumerate(shares):
                if share >= 1:
                    ink = "black" if share > 10 else "white"
                    axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7,
                              color=ink)  # fmt: skip
    return figure


def draw_weights(run: RunDir, config: Config) -> Figure:
    """Return of each tensor of the best weights a histogram, and its highest learning rate."""
    store = CheckpointStore.for_run(run, config)
    manifest = select_checkpoint(store, config.checkpoint, None)
    with store.open(manifest.step, [manifest.weights_file()]) as parts:
        stored = read_tensors(parts[manifest.weights_file()])
    rates = learning_rates(config)
    tensors = {
        name: stored[name].float().flatten().numpy()
        for name in dict.fromkeys([*rates, *stored])  # in the order of the network's layers
        if name in stored and stored[name].is_floating_point() and stored[name].ndim > 1
    }
    reach = max(float(np.percentile(np.abs(values), 99.9)) for values in tensors.values())
    edges = np.linspace(-reach, reach, _NUM_BINS + 1)
    rows = [np.histogram(values, edges)[0] / len(values) for values in tensors.values()]
    with styled():
        figure = Figure(figsize=(8, 1.5 + 0.2 * len(rows)), layout="constrained")
        axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
        axes.grid(visible=False)
        image = axes.pcolormesh(
            edges, np.arange(len(rows) + 1), np.array(rows), norm=LogNorm(1e-5, 1, clip=True)
        )
        figure.colorbar(image, ax=axes, location="left", label="share of the tensor")
        axes.set_yticks(np.arange(len(rows)) + 0.5, tensors, fontsize=6)
        axes.invert_yaxis()
        axes.set_xlabel(f"weight, at step {manifest.step:,}")
        beside.plot(
            [rates.get(name, np.nan) for name in tensors], np.arange(len(rows)) + 0.5, "o", ms=3
        )
        beside.set_xscale("log")
        beside.set_xlabel("highest\nlearning rate")
    return figure


def learning_rates(config: Config) -> dict[str, float]:
    """Return the highest learning rate of each tensor that is trained: layers may have their own.

    What a schedule makes of them later is the curve `lr`.
    """
    classes = read_manifest(config.data.url, "val").classes
    network = build_model(config, len(classes))
    if config.recipe.linear_probe:
        freeze_backbone(network, len(classes))
    groups = make_optimizer(network, config.recipe.optimizer).param_groups
    rates = {
        id(tensor): config.recipe.optimizer.lr * group.get("lr_scale", 1.0)
        for group in groups
        for tensor in group["params"]
    }
    return {name: rates[id(p)] for name, p in network.named_parameters() if id(p) in rates}


def _save(picture: Image.Image | Figure, run: RunDir, name: str) -> None:
    """Write a picture so that whoever sees it sees all of it."""
    file = run.plots_dir / f"{name}.png"
    part = file.with_suffix(".part.png")
    if isinstance(picture, Figure):
        with styled():
            picture.savefig(part)
    else:
        picture.save(part)
    part.replace(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
