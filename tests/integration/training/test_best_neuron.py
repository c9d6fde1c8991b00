"""The best neuron of a run, against a search of its features."""

import json
from pathlib import Path

import pytest
import torch
from cli_runner import Tahoe
from safetensors.torch import load_file

import models
from data_sharding.format.location import Location
from data_sharding.format.manifest import read_manifest
from data_sharding.loading.datasets import EvalDataset
from data_sharding.loading.loader import iter_batches
from data_sharding.loading.split_reader import SplitReader
from data_sharding.storage.shard_store import open_store
from data_sharding.transforms.eval_protocol import parse_protocol

OPTIONS = {"field": 8, "maps": 2, "stages": 1, "stride": 4}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_best_neuron_of_a_run(tmp_path: Path, digits: Path) -> None:
    tahoe = Tahoe(tmp_path)
    options = [f"+model.kwargs.{name}={value}" for name, value in OPTIONS.items()]
    tahoe(
        *("train", "model=cat_2012", "recipe=cat_2012", f"data.url='{digits}'", *options),
        *("recipe.epochs=null", "recipe.steps=3", "recipe.global_batch_size=96"),
        *("tracking=none", "run_dir=cat"),
    )
    found = json.loads(tahoe("evaluate", "cat", "--best-neuron", "1", "--json").stdout)
    (one,) = found.values()

    network = models.build("cat_2012", num_classes=10, in_channels=1, image_size=32, **OPTIONS)
    weights = tmp_path / "cat" / "checkpoints" / "step-000000003" / "model.safetensors"
    network.load_state_dict(load_file(weights))
    manifest = read_manifest(str(digits), "val")
    store = open_store(Location(str(digits)), "val", None, manifest.rule)
    dataset = EvalDataset(
        SplitReader("val", manifest, store), 50, parse_protocol("center-32-of-32"), channels=1
    )
    rows, labels = [], []
    for batch in iter_batches(dataset, range(len(dataset)), 0):
        with torch.no_grad():
            rows.append(network.features((batch.images.float() / 255 - 0.306) / 0.324))
        labels.append(batch.labels.clone())
    features, is_one = torch.cat(rows), torch.cat(labels) == 1
    column = features[:, one["neuron"]]
    low, high = column.min(), column.max()
    best = max(
        ((column >= low + i / 19 * (high - low)) == is_one).float().mean().item() for i in range(20)
    )
    assert one["accuracy"] == pytest.approx(100 * best, abs=0.3)  # of a place in a batch's rounding
    assert (one["num_neurons"], one["num_images"]) == (features.shape[1], 359)
    assert one["num_targets"] == is_one.sum()
    assert one["constant"] == pytest.approx(100 - 100 * is_one.double().mean().item())

    for target, said in (("x", "no such class. It has 0, 1, 2"),):
        refused = tahoe("evaluate", "cat", "--best-neuron", target, check=False)
        assert refused.returncode == 93
        assert said in refused.stderr
    assert "trained without labels" in tahoe("evaluate", "cat", check=False).stderr
