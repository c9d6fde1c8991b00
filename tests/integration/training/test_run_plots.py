"""The predictions at the end of a run, and the plots that are drawn of them and uploaded."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from cli_runner import Tahoe
from PIL import Image

from data_sharding.loading.loader import Batch
from data_sharding.sources.digits import digits
from data_sharding.writing.dataset_writer import write_dataset
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.recipe import Recipe
from orchestrator.evaluation import run_plots
from orchestrator.launch.compose import compose
from orchestrator.launch.create_run import create_or_open_run
from orchestrator.run.rundir import RunDir
from orchestrator.tracking.shipping.run_plots import are_drawn, start_drawing
from orchestrator.training.monitoring.predictions import (
    Predictions,
    read_predictions,
    save_predictions,
)
from orchestrator.training.task.losses import make_objective
from orchestrator.training.task.model import build_model

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Return a run on digits, finished by its word, whose network says 3 to every image but one."""
    write_dataset(digits(), str(tmp_path / "set"), seed=0, samples_per_shard=500)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    (composed,) = compose(
        ["data=digits", f"data.url={tmp_path}/set", f"run_dir={tmp_path}/run", "recipe.steps=1",
         "recipe.epochs=null", f"tracking.uri={store}"]
    )  # fmt: skip
    run, plan = create_or_open_run(composed)
    run.begin_attempt()
    run.write_json(run.outcome_file, {"outcome": "finished", "attempt": 1, "step": 1})
    table = torch.zeros(plan.num_val, 3, dtype=torch.float64)
    table[:, 0] = torch.arange(plan.num_val) % 10
    table[:, 1], table[:, 2] = 3, torch.linspace(0.1, 0.9, plan.num_val)
    table[5, 1] = -1
    save_predictions(run, table)
    return run


def test_saved_predictions_are_read_back(run: RunDir) -> None:
    kept = read_predictions(run)
    assert kept is not None
    assert kept.predicted[5] == -1
    confusion = kept.confusion(10, 10)
    assert confusion.sum() == len(kept.labels) - 1
    assert confusion[:, 3].sum() == confusion.sum()
    errors = kept.top_errors
    assert 5 not in errors  # which was unreadable
    assert not (kept.labels[errors] == 3).any()
    assert (np.diff(kept.probabilities[errors]) <= 0).all()


def test_predictions_of_views_are_those_of_their_mean(recipe: Recipe) -> None:
    objective = make_objective(recipe)
    logits = torch.randn(8, 5)  # two views of four images
    labels, readable = torch.tensor([0, 1, 2, 3]), torch.tensor([True, True, False, True])
    batch = Batch(torch.zeros(8, 1, 1, 1), labels, torch.arange(4), readable, [])
    found = objective.predictions(logits, batch)
    assert found is not None
    mean = logits.softmax(1).view(4, 2, 5).mean(1)
    sure, best = mean.max(1)
    best[2] = -1
    assert torch.equal(found[:, :2], torch.stack((labels, best), 1).double())
    assert torch.allclose(found[:, 2], sure.double(), atol=1e-6)


def test_no_errors_and_a_class_without_samples(run: RunDir) -> None:
    right = Predictions(np.array([0, 1]), np.array([0, 1]), np.array([0.9, 0.8]))
    assert len(right.top_errors) == 0
    figure = run_plots.plot_confusion(right, ["a", "b", "c"])
    shown = figure.axes[0].images[0].get_array()
    assert shown is not None
    assert shown.tolist() == [[100, 0, 0], [0, 100, 0], [0, 0, 0]]


def test_the_confusion_of_very_many_classes_joins_neighbours() -> None:
    labels = np.arange(20_000)
    said = np.where(labels < 19_990, labels, 0)
    predictions = Predictions(labels, said, np.ones(20_000))
    shown = run_plots.plot_confusion(predictions, [*map(str, labels)]).axes[0].images[0].get_array()
    assert shown is not None
    assert shown.shape == (1000, 1000)
    assert (shown[-1, -1], shown[-1, 0], shown[5, 5]) == (50, 50, 100)
    assert predictions.confusion(20_000, 20_000 // 10)[-1].tolist() == [10, *[0] * 1999]


@pytest.mark.slow
def test_plots_are_drawn_once_and_uploaded(run: RunDir, tmp_path: Path) -> None:
    """The process that draws them is killed; of two that take over, the first draws."""
    with start_drawing([run], run.plots_log) as killed:
        while not run.plots_dir.exists():
            assert killed.poll() is None
        killed.kill()
    assert not are_drawn(run)
    shutil.rmtree(run.plots_dir)
    tahoe = Tahoe(tmp_path)
    first = tahoe.start("sync", str(run.path))
    while not (views := run.plots_dir / "augmented_views.png").exists():
        assert first.process.poll() is None
    drawn_ns = views.stat().st_mtime_ns
    with start_drawing([run], run.plots_log) as second:
        assert first.finish() == 0, first.output
        assert second.wait(timeout=100) == 0
    assert views.stat().st_mtime_ns == drawn_ns
    drawn = sorted(file.name for file in run.plots_dir.iterdir())
    assert drawn == ["augmented_views.png", "confusion.png", "top_errors.png"]
    (sent,) = (tmp_path / "mlartifacts").glob("*/artifacts/plots")
    for name in drawn:
        with Image.open(sent / name) as image:
            assert min(image.size) > 300, name


@pytest.mark.long
@pytest.mark.slow
def test_a_run_without_its_data_is_uploaded_without_plots(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "set").rename(tmp_path / "elsewhere")
    told = Tahoe(tmp_path)("sync", run.path)
    assert "the plots of run were not drawn" in told.stderr
    assert "no data set at" in told.stderr
    assert list((tmp_path / "mlartifacts").glob("*/artifacts/config.yaml"))


def test_weight_histograms_show_the_peak_rate_of_each_tensor(run: RunDir) -> None:
    """Beside the histogram of a tensor stands the highest rate that its layer has."""
    asked = ("data=digits", f"data.url={run.path.parent}/set", "model=timm",
             "recipe=mae_finetune", "model.name=timm/test_resnet",
             "recipe.optimizer.lr=0.1")  # fmt: skip
    (composed,) = compose([*asked, "recipe.optimizer.layer_decay=0.5"])
    config = composed.config
    network = build_model(config, 10)
    for tensor in network.parameters():
        torch.nn.init.constant_(tensor, 0.25)
    network.get_parameter("fc.weight").data[:5] = -1
    saved = safetensors.torch.save(network.state_dict())
    store = CheckpointStore.for_run(run, config)
    store.save(7, {"model.safetensors": lambda file: file.write(saved) and None}, {})

    figure = run_plots.plot_weight_histograms(run, config)
    axes, beside = figure.axes[:2]
    names = [label.get_text() for label in axes.get_yticklabels()]
    (mesh,) = axes.collections
    shares = np.asarray(mesh.get_array())
    assert len(shares) == len(names)
    assert np.allclose(np.sort(shares[names.index("fc.weight")])[-2:], 0.5)
    assert np.allclose(shares[names.index("conv1.0.weight")].max(), 1)
    assert axes.get_xlabel() == "weight, at step 7"
    rates = dict(zip(names, beside.lines[0].get_xdata(), strict=True))
    assert rates["fc.weight"] == pytest.approx(0.1)
    depths = -np.log2([rates[name] / 0.1 for name in names])
    assert np.allclose(depths, depths.round())
    assert (np.diff(depths) <= 0).all()  # the deeper a layer, the slower, and the head is last
    assert depths[0] >= 4
    assert depths[-1] == 0

    (probe,) = compose([*asked, "recipe.optimizer.layer_decay=null", "recipe.linear_probe=true"])
    assert run_plots.peak_learning_rates(probe.config) == {"fc.weight": 0.1, "fc.bias": 0.1}
