"""Draw the plots of finished runs and send them to MLflow.

    python -m orchestrator.evaluation.run_plots RUN...

    plots/augmented_views.png  training images as the network got them
    plots/top_errors.png       the wrong predictions with the highest probability
    plots/confusion.png        the confusion matrix of the validation split
    plots/weights.png          histograms of the weights, and the highest learning rate of each,
                               if logging.weight_histograms is set

A process of its own, started by `orchestrator.tracking.shipping.run_plots`: `tahoe train` does not
wait for it.
"""

import io
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
from data_sharding.io.atomic_file import write_atomic
from data_sharding.tools.preview import stored_tile
from orchestrator.checkpoint.retention import select_checkpoint
from orchestrator.checkpoint.safetensors_io import read_tensors
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.parse import parse
from orchestrator.config.schema import Config
from orchestrator.evaluation.augmented_views import draw_augmented_views
from orchestrator.plot_style import styled
from orchestrator.redact import one_line_error
from orchestrator.run.rundir import RunDir
from orchestrator.tracking.shipping.run_plots import are_drawn, plots_lock, send_plots
from orchestrator.training.inputs.datasets import open_eval_set
from orchestrator.training.monitoring.predictions import Predictions, read_predictions
from orchestrator.training.optim.factory import make_optimizer
from orchestrator.training.task.linear_probe import freeze_backbone
from orchestrator.training.task.model import build_model

_NUM_ERRORS, _COLUMNS, _TILE_PX = 24, 8, 160
_MAX_NAMED_CLASSES, _MAX_CONFUSION_SIZE = 30, 1000
_NUM_BINS = 120
_NICENESS = 19


def main(arguments: Sequence[str]) -> int:
    """Draw and send the plots of runs; return 1 if any could not be."""
    os.nice(_NICENESS)
    exit_code = 0
    for run in (RunDir(Path(argument)) for argument in arguments):
        try:
            with plots_lock(run):
                if not are_drawn(run):
                    draw_plots(run)
                send_plots(run)
        except Exception as error:  # whatever it is, the other runs have theirs
            exit_code = 1
            print(f"{run.id}: {one_line_error(error)}", file=sys.stderr)
    return exit_code


def draw_plots(run: RunDir) -> None:
    """Draw all plots of a run."""
    config = parse(run.read_config())
    run.plots_dir.mkdir(exist_ok=True)
    _save(draw_augmented_views(config, num=8, num_epochs=6), run, "augmented_views")
    if config.logging.weight_histograms:
        _save(plot_weight_histograms(run, config), run, "weights")
    predictions = read_predictions(run)
    if predictions is not None:
        if len(predictions.top_errors):
            _save(draw_top_errors(predictions, config), run, "top_errors")
        classes = read_manifest(config.data.location, "val").classes
        _save(plot_confusion(predictions, classes), run, "confusion")  # the last: it marks the end


def draw_top_errors(predictions: Predictions, config: Config) -> Image.Image:
    """Draw the wrong predictions with the highest probability, on a sheet."""
    manifest = read_manifest(config.data.location, "val")
    shards = open_eval_set(config, "val", manifest).shards
    samples = predictions.top_errors[:_NUM_ERRORS]
    tiles = []
    for sample, (shard, i) in zip(samples, shards.locate(samples), strict=True):
        tile = stored_tile(shards.store.open(manifest.shards[shard]), i, manifest, _TILE_PX)
        predicted = manifest.classes[predictions.predicted[sample]]
        percent = 100 * predictions.probabilities[sample]
        tiles.append(replace(tile, caption=f"{tile.caption}, not {predicted} ({percent:.1f} %)"))
    num_wrong = f"{len(predictions.top_errors):,} of {len(predictions.labels):,}"
    return draw_sheet(
        grid(tiles, _COLUMNS),
        title=f"{config.model.name} on {config.data.name}: the most confident errors",
        subtitle=f"its class, not the predicted one; {num_wrong} are wrong",
        tile_px=_TILE_PX,
    )


def plot_confusion(predictions: Predictions, classes: Sequence[str]) -> Figure:
    """Plot the confusion matrix, in percent of each class; of very many, neighbours are one."""
    counts = predictions.confusion(len(classes), _MAX_CONFUSION_SIZE)
    percents = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    is_named = len(classes) <= _MAX_NAMED_CLASSES
    side = max(4.0, 0.38 * len(classes)) if is_named else 8.0
    with styled():
        figure = Figure(figsize=(side + 1.5, side), layout="constrained")
        axes = figure.subplots()
        axes.grid(visible=False)
        image = axes.imshow(percents, cmap="cividis", norm=LogNorm(0.1, 100, clip=True))
        figure.colorbar(image, label="of the class (%)", shrink=0.8)
        axes.set_xlabel("predicted")
        axes.set_ylabel("class")
        if is_named:
            axes.set_xticks(range(len(classes)), classes, rotation=90)
            axes.set_yticks(range(len(classes)), classes)
            for (row, column), percent in np.ndenumerate(percents):
                if percent >= 1:
                    ink = "black" if percent > 10 else "white"
                    axes.text(column, row, f"{percent:.0f}", ha="center", va="center", fontsize=7,
                              color=ink)  # fmt: skip
    return figure


def plot_weight_histograms(run: RunDir, config: Config) -> Figure:
    """Plot a histogram of each tensor of the best weights, and its highest learning rate."""
    store = CheckpointStore.for_run(run, config)
    manifest = select_checkpoint(store, config.checkpoint, None)
    file = manifest.weights_file()
    with store.open(manifest.step, [file]) as parts:
        stored = read_tensors(parts[file])
    rates = peak_learning_rates(config)
    tensors = {
        name: stored[name].float().flatten().numpy()
        for name in dict.fromkeys([*rates, *stored])  # in the order of the network's layers
        if name in stored and stored[name].is_floating_point() and stored[name].ndim > 1
    }
    limit = max(float(np.percentile(np.abs(values), 99.9)) for values in tensors.values())
    edges = np.linspace(-limit, limit, _NUM_BINS + 1)
    rows = [np.histogram(values, edges)[0] / len(values) for values in tensors.values()]
    positions = np.arange(len(rows) + 1)
    with styled():
        figure = Figure(figsize=(8, 1.5 + 0.2 * len(rows)), layout="constrained")
        axes, rate_axes = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
        axes.grid(visible=False)
        image = axes.pcolormesh(edges, positions, np.array(rows), norm=LogNorm(1e-5, 1, clip=True))
        figure.colorbar(image, ax=axes, location="left", label="fraction of the tensor")
        axes.set_yticks(positions[:-1] + 0.5, tensors, fontsize=6)
        axes.invert_yaxis()
        axes.set_xlabel(f"weight, at step {manifest.step:,}")
        peaks = [rates.get(name, np.nan) for name in tensors]
        rate_axes.plot(peaks, positions[:-1] + 0.5, "o", ms=3)
        rate_axes.set_xscale("log")
        rate_axes.set_xlabel("highest\nlearning rate")
    return figure


def peak_learning_rates(config: Config) -> dict[str, float]:
    """Return the highest learning rate of each trained tensor, since layers may have their own.

    The logged metric train/lr shows the schedule.
    """
    classes = read_manifest(config.data.location, "val").classes
    network = build_model(config, len(classes))
    if config.recipe.linear_probe:
        freeze_backbone(network, len(classes))
    rates = {
        id(tensor): config.recipe.optimizer.lr * group.get("lr_scale", 1.0)
        for group in make_optimizer(network, config.recipe.optimizer).param_groups
        for tensor in group["params"]
    }
    return {name: rates[id(p)] for name, p in network.named_parameters() if id(p) in rates}


def _save(plot: Image.Image | Figure, run: RunDir, name: str) -> None:
    file = io.BytesIO()
    if isinstance(plot, Figure):
        with styled():
            plot.savefig(file)
    else:
        plot.save(file, "png")
    write_atomic(run.plots_dir / f"{name}.png", file.getvalue())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
