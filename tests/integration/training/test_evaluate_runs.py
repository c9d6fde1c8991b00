"""`tahoe evaluate` against plain loops: runs alone, ensembles, other protocols and labels."""

import csv
import json
import pkgutil
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_runner import Tahoe
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F
from torchvision.transforms.v2 import functional

import models
from data_sharding.format.location import Location
from data_sharding.format.manifest import read_manifest
from data_sharding.loading.datasets import EvalDataset
from data_sharding.loading.loader import iter_batches
from data_sharding.loading.split_reader import SplitReader
from data_sharding.sources.folder import folder
from data_sharding.storage.shard_store import open_store
from data_sharding.transforms.eval_protocol import parse_protocol
from data_sharding.writing.dataset_writer import write_dataset
from orchestrator.config.parse import ConfigError
from orchestrator.evaluation.evaluate_runs import EvalRequest, evaluate_runs, timm_protocol
from orchestrator.evaluation.single_label import (
    GroundTruth,
    class_top1,
    count_confusion,
    real_labels,
    write_confusion,
)
from orchestrator.run.rundir import RunDir, read_json_lines
from orchestrator.tracking.mlflow_store import run_metadata

LOG_PROBS = torch.tensor(
    [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4], [0.1, 0.8, 0.1]]
).log()
LABELS = torch.tensor([0, 1, 1, 2, 1])
READABLE = torch.tensor([True, True, True, True, False])


def eval_set(url: Path, protocol: str, channels: int = 1) -> EvalDataset:
    manifest = read_manifest(str(url), "val")
    store = open_store(Location(str(url)), "val", None, manifest.rule)
    return EvalDataset(SplitReader("val", manifest, store), 64, parse_protocol(protocol), channels)


def test_unreadable_images_count_as_wrong() -> None:
    metrics = GroundTruth(LABELS, READABLE, None).metrics(LOG_PROBS)
    assert metrics["top1"] == pytest.approx(60)  # the first, third and fourth
    assert metrics["top5"] == pytest.approx(80)
    right = np.log([0.7, 0.3, 0.5, 0.4, 1 / 3])
    assert metrics["loss"] == pytest.approx(-right.mean(), rel=1e-6)
    assert metrics["real_top1"] is None
    assert tuple(metrics) == ("top1", "top5", "loss", "real_top1")


def test_reassessed_labels() -> None:
    """An image may show several classes, or none, and then it does not count."""
    real = [[1, 2], [1, 2], [], [2], [1]]
    metrics = GroundTruth(LABELS, READABLE, real).metrics(LOG_PROBS)
    assert metrics["real_top1"] == pytest.approx(100 * 2 / 4)  # the second, the fourth


def test_confusion_and_class_accuracy_count_labels_and_predictions() -> None:
    counts = count_confusion(LOG_PROBS, GroundTruth(LABELS, READABLE, None), 3)
    assert counts.tolist() == [[0, 0, 1], [1, 1, 1], [1, 2, 1], [1, 3, 1], [2, 2, 1]]
    assert class_top1(counts, 4) == (100, pytest.approx(100 / 3), 100, None)


def test_the_confusion_of_many_classes_is_written_as_pairs(tmp_path: Path) -> None:
    classes = [f"class {n}" for n in range(20_000)]
    pairs = torch.tensor([[3, 3, 2], [3, 7, 5], [19_999, 20_000, 1]])
    write_confusion(tmp_path / "many.csv", pairs, classes)
    with (tmp_path / "many.csv").open() as table:
        header, *rows = csv.reader(table)
    assert header == ["class", "taken for", "images"]
    assert rows == [
        ["class 3", "class 7", "5"], ["class 3", "class 3", "2"], ["class 19999", "none", "1"],
    ]  # fmt: skip
    write_confusion(tmp_path / "few.csv", pairs[:2], classes[:10])
    with (tmp_path / "few.csv").open() as table:
        header, *rows = csv.reader(table)
    assert header == ["", *classes[:10], "none"]
    assert rows[3] == ["class 3", *map(str, [0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0])]
    assert len(rows) == 10


def test_reassessed_labels_are_found_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, name in enumerate((1, 2, 3, 49_999)):
        for split in ("train", "val"):
            file = (
                tmp_path / "images" / split / "ab"[number > 1] / f"ILSVRC2012_val_{name:08d}.JPEG"
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8) + np.uint8(number)
            Image.fromarray(pixels).save(file)
    write_dataset(folder(tmp_path / "images"), str(tmp_path / "set"), seed=0, samples_per_shard=3)
    dataset = eval_set(tmp_path / "set", "center-16-of-16", 3)
    found = real_labels(dataset.shards)
    names = []
    for place in dataset.shards.locate(np.arange(4)):
        shard = dataset.shards.manifest.shards[place.shard]
        names.append(int(dataset.shards.store.open(shard).key(place.sample)[-8:]))
    known = dict(zip(names, found, strict=True))
    data = pkgutil.get_data("timm.data", "_info/imagenet_real_labels.json")
    assert data is not None
    in_order = json.loads(data)  # by the number of the image
    assert known == {name: in_order[name - 1] for name in (1, 2, 3, 49_999)}
    assert any(known.values())


def test_protocols_of_timm_use_its_crop_fraction() -> None:
    assert timm_protocol("timm/resnet18.a1_in1k", 160) == "center-160-of-168"  # 0.95
    assert timm_protocol("timm/resnet18.a1_in1k", 224) == "center-288-of-288"  # its test images
    assert timm_protocol("timm/deit_base_patch16_224", 224) == "center-224-of-248"  # 0.9
    assert timm_protocol("timm/vgg16.tv_in1k", 224) == "center-224-of-256"  # 0.875
    assert timm_protocol("timm/maxvit_xlarge_tf_512", 512) == "warp-512-of-512"  # squash
    with pytest.raises(ConfigError) as refused:
        timm_protocol("lenet5_1998", 32)
    assert refused.value.value == "lenet5_1998"


def test_images_without_imagenets_names_have_no_reassessed_labels(digits: Path) -> None:
    with pytest.raises(ConfigError, match="--real"):
        real_labels(eval_set(digits, "center-32-of-32").shards)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_selected_weights_are_evaluated(
    train: Callable[..., RunDir], tahoe: Tahoe, digits: Path
) -> None:
    run = train("run", "recipe.epochs=1", "recipe.ema_decay=0.9", "launcher.nproc_per_node=1")
    losses = {}
    for kind, told, file in (
        ((), "averaged", "ema.safetensors"),
        (("--weights", "ema"), "averaged", "ema.safetensors"),
        (("--weights", "raw"), "raw", "model.safetensors"),
    ):
        (one,) = json.loads(tahoe("evaluate", "run", *kind, "--json").stdout)["runs"].values()
        network = models.build("lenet5_1998", num_classes=10, in_channels=1).eval()
        network.load_state_dict(load_file(next(run.checkpoints_dir.glob(f"*/{file}"))))
        total, num = 0.0, 0
        for batch in iter_batches(eval_set(digits, "center-32-of-32"), range(6), 0):
            with torch.no_grad():
                logits = network((batch.images.float() / 255 - 0.306) / 0.324)
            total += F.cross_entropy(logits, batch.labels, reduction="sum").item()
            num += len(batch.labels)
        assert one["weights"] == told
        assert one["loss"] == pytest.approx(total / num, rel=1e-4)
        losses[told] = one["loss"]
    assert losses["raw"] != pytest.approx(losses["averaged"], rel=1e-3)


@pytest.mark.slow
def test_a_run_is_evaluated_on_its_own_data_unless_other_is_named(
    tahoe: Tahoe, train: Callable[..., RunDir], digits: Path
) -> None:
    """Made anew with its classes in another order, the set at data.url is another one."""
    url = tahoe.cwd / "set"
    shutil.copytree(digits, url)
    run = train("run", "recipe.steps=1", f"data.url='{url}'")
    (url / "train" / "manifest.json").unlink()  # which is not looked at
    tahoe("evaluate", "run")
    manifest = url / "val" / "manifest.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(values | {"classes": values["classes"][::-1]}))
    refused = tahoe("evaluate", "run", check=False)
    assert refused.returncode == 1
    assert "run_info.json" in refused.stderr
    reordered = tahoe("evaluate", "run", "--data", str(url), check=False)
    assert (reordered.returncode, "another order" in reordered.stderr) == (93, True)
    manifest.write_text(json.dumps(values | {"classes": [*"abcdefghij"]}))
    assert "cannot be checked" in tahoe("evaluate", "run", "--data", str(url)).stderr
    other = f"set-{read_manifest(str(url), 'val').fingerprint[:8]}"
    points = [point.key for point in run_metadata.evaluations(run) if point.key.endswith("top1")]
    assert points == ["eval/center-32-of-32/top1", f"eval/{other}/center-32-of-32/top1"]

    run.evaluations_file.unlink()
    run.evaluations_file.mkdir()  # as where somebody else may not write
    table = ("--confusion-matrix", "table.csv")
    shown = tahoe("evaluate", "run", "--data", str(url), "--json", *table)
    assert [*json.loads(shown.stdout)["runs"]] == [str(run.path)]
    assert str(run.evaluations_file) in shown.stderr


def test_a_mixture_is_not_evaluated_on_its_training_samples(
    values: dict[str, Any], tmp_path: Path
) -> None:
    values["data"]["mix"] = [{"url": "/a", "weight": 1}]
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.write_config(values)
    options: dict[str, Any] = dict.fromkeys(field.name for field in fields(EvalRequest))
    with pytest.raises(ConfigError, match=r"data\.mix"):
        evaluate_runs(**options | {"runs": [str(run.path)], "split": "train"})


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_ensemble_metrics_are_those_of_mean_probabilities(tmp_path: Path, digits: Path) -> None:
    tahoe, data = Tahoe(tmp_path), f"data.url='{digits}'"
    for seed in (1, 2):
        short = ("recipe.epochs=4", "recipe.optimizer.lr=0.05", f"seed={seed}", "tracking=none")
        tahoe("train", data, *short, f"run_dir=run{seed}", "recipe.ema_decay=0.9")
    asked = ("evaluate", "run1", "run2", "--protocol", "multi-scale-32-of-32-36")
    opinion = json.loads(tahoe(*asked, "--json", "--confusion-matrix", "table.csv").stdout)

    means, labels = [], None
    for seed in (1, 2):
        step = opinion["runs"][str(tmp_path / f"run{seed}")]["step"]
        best_one = tmp_path / f"run{seed}" / "checkpoints" / f"step-{step:09d}"
        network = models.build("lenet5_1998", num_classes=10, in_channels=1).eval()
        network.load_state_dict(load_file(best_one / "ema.safetensors"))
        rows, truth = [], []
        for batch in iter_batches(eval_set(digits, "multi-scale-32-of-32-36"), range(6), 0):
            images = (batch.images.float() / 255 - 0.306) / 0.324
            with torch.no_grad():
                views = F.softmax(network(images), dim=1).view(len(batch.labels), 4, 10)
            rows.append(views.mean(1))
            truth.append(batch.labels.clone())
        means.append(torch.cat(rows))
        labels = torch.cat(truth)
    assert labels is not None
    for seed, mean in enumerate(means, start=1):
        top1 = 100 * (mean.argmax(1) == labels).float().mean().item()
        assert opinion["runs"][str(tmp_path / f"run{seed}")]["top1"] == pytest.approx(top1)
    both = (means[0] + means[1]) / 2
    best = both.argmax(1)
    assert opinion["ensemble"]["top1"] == pytest.approx(
        100 * (best == labels).float().mean().item()
    )
    loss = -both[torch.arange(len(labels)), labels].log().mean().item()
    assert opinion["ensemble"]["loss"] == pytest.approx(loss, rel=1e-4)
    of_three = best[labels == 3]
    assert opinion["class_top1"][3] == pytest.approx(100 * (of_three == 3).float().mean().item())
    with (tmp_path / "table.csv").open() as table:
        header, *counted = csv.reader(table)
    assert header == ["", *map(str, range(10)), "none"]
    assert int(counted[3][1 + 5]) == (of_three == 5).sum()

    _check_chosen_classes(tahoe, digits)
    shown = tahoe("evaluate", "run1", "--worst-classes", "10").stdout
    assert "center-32-of-32" in shown
    assert "worst classes" in shown
    kept = list(read_json_lines(tmp_path / "run1" / "evaluations.jsonl"))
    assert [one["protocol"] for one in kept] == [
        "multi-scale-32-of-32-36",
        "center-32-of-32-among-3-classes",
        "center-32-of-32",
    ]
    for protocol in ("center-28-of-32", "dense-36"):
        refused = tahoe("evaluate", "run1", "--protocol", protocol, check=False)
        assert refused.returncode == 93
        assert f"does not take the images of the protocol {protocol}" in refused.stderr
    for option, code, said in (
        ("--step=7", 1, "no checkpoint of step 7"),
        ("--data=gone", 1, "no data set at gone"),
        ("--protocol=a", 93, "'a' is not an"),
    ):
        refused = tahoe("evaluate", "run1", option, check=False)
        assert (refused.returncode, said in refused.stderr) == (code, True)


def _check_chosen_classes(tahoe: Tahoe, digits: Path) -> None:
    """As by timm's --valid-labels: other outputs are dropped, and so are images of other classes.

    The set calls its classes by number; label 0 is the network's class 7, label 3 its class 3.
    """
    (tahoe.cwd / "map.csv").write_text("old,new\n0,7\n3,3\n9,5\n")
    asked = ("evaluate", "run1", "--data", str(digits), "--class-map", "map.csv", "--json")
    report = json.loads(tahoe(*asked).stdout)
    (result,) = report["runs"].values()
    network = models.build("lenet5_1998", num_classes=10, in_channels=1).eval()
    best = tahoe.cwd / "run1" / "checkpoints" / f"step-{result['step']:09d}"
    network.load_state_dict(load_file(best / "ema.safetensors"))
    outputs, labels = [], []
    for batch in iter_batches(eval_set(digits, "center-32-of-32"), range(6), 0):
        images = (batch.images.float() / 255 - 0.306) / 0.324
        with torch.no_grad():
            outputs.append(network(images)[:, [3, 5, 7]])
        labels.append(batch.labels.clone())
    truth = torch.cat(labels)
    is_counted = (truth == 0) | (truth == 3) | (truth == 9)
    target = torch.tensor([2, -1, -1, 0, -1, -1, -1, -1, -1, 1])[truth[is_counted]]
    logits = torch.cat(outputs)[is_counted]
    assert result["top1"] == pytest.approx(100 * (logits.argmax(1) == target).float().mean().item())
    assert result["loss"] == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-4)
    assert report["classes"] == ["3", "5", "7"]
    assert (report["num_samples"], report["num_outputs"]) == (int(is_counted.sum()), 10)
    assert report["num_passed_over"] == int((~is_counted).sum())


@pytest.mark.slow
def test_whole_images_of_any_shape(tmp_path: Path) -> None:
    """VGG's and ResNet's dense evaluation, against torchvision's resize and plain loops."""
    tahoe, rng, shown = Tahoe(tmp_path), np.random.default_rng(0), []
    for number, (height, width) in enumerate([(40, 52), (64, 33), (48, 48), (90, 41)] * 2):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for split in ("train", "val"):
            file = tmp_path / "images" / split / f"class{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
        shown.append((torch.from_numpy(pixels).permute(2, 0, 1), number % 2))
    tahoe("shard", "folder", "images", "set")
    whole = ("--protocol", "dense-32-48")
    small = ("data=shards", "data.image_size=32", "data.eval_protocol=center-32-of-32")
    few = ("data.num_lanes=8", "recipe.num_micro_batches=4", "recipe.global_batch_size=8")
    short = (*few, "recipe.steps=1", "data.url=set", "tracking=none")
    tahoe("train", *small, *short, "model=timm", "model.name=timm/test_resnet", "run_dir=run")
    opinion = json.loads(tahoe("evaluate", "run", *whole, "--json").stdout)["runs"]

    network = models.build("timm/test_resnet", num_classes=2).eval()
    network.load_state_dict(
        load_file(tmp_path / "run/checkpoints/step-000000001/model.safetensors")
    )
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    found = []
    for image, _ in shown:
        views = []
        for side in (32, 48):
            resized = (functional.resize(image, [side]) / 255 - mean) / std
            for view in (resized, resized.flip(2)):
                with torch.no_grad():
                    views.append(network(view[None])[0].softmax(0))
        found.append(torch.stack(views).mean(0))
    labels = torch.tensor([label for _, label in shown])
    own = torch.stack(found)[torch.arange(8), labels]
    (one,) = opinion.values()
    assert one["loss"] == pytest.approx(-own.log().mean().item(), rel=1e-4)
    assert one["protocol"] == "dense-32-48"
    for change, said in (
        (("train", *small, *short, "data.eval_protocol=dense-32"), "only `evaluate` supports"),
        (("evaluate", "run", "--protocol", "dense-0"), "dense-RESIZE-RESIZE"),
    ):
        assert said in tahoe(*change, check=False).stderr
