"""Digits with several labels each: the digit, whether it is even, whether it is above 4.

The last class, "none", has no image.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from plans import plan
from smooth_network import build

from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import read_manifest
from data_sharding.loading.loader import iter_batches
from data_sharding.sources.base import Sample, Samples
from data_sharding.sources.digits import digits
from data_sharding.writing.dataset_writer import write_dataset
from orchestrator.config.schema import Config
from orchestrator.training.distributed.world import World
from orchestrator.training.inputs.datasets import open_eval_set
from orchestrator.training.inputs.device import Device
from orchestrator.training.step.evaluate import evaluate
from orchestrator.training.task.losses import make_objective

CLASSES = (*map(str, range(10)), "even", "above 4", "none")


def labels_of(digit: int) -> tuple[int, ...]:
    """Return the numbers of a digit's classes."""
    return (digit, *[10] * (digit % 2 == 0), *[11] * (digit > 4))


@dataclass(frozen=True)
class _Several:
    single: Samples

    def __len__(self) -> int:
        return len(self.single)

    def __getitem__(self, index: int) -> Sample:
        sample = self.single[index]
        return replace(sample, label=labels_of(sample.labels[0]))


def write_several_labels(path: Path) -> Path:
    """Write the data set in shards of some hundred images."""
    source = digits()
    splits = {split: _Several(samples) for split, samples in source.splits.items()}
    several = replace(source, classes=CLASSES, splits=splits, labels=LabelRule("multi", "json"))
    write_dataset(several, str(path), seed=0, samples_per_shard=300)
    return path


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build(num_classes=len(CLASSES), in_channels=1)


def evaluate_on_rank(world: World, config: Config, file: Path) -> None:
    """Append the metrics of an untrained network to a file, a line for each rank."""
    dataset = open_eval_set(config, "val", read_manifest(config.data.url, "val"))
    task = make_objective(replace(config.recipe, bce_pos_weight=None), plan(label_kind="multi"))
    device = Device.create(config, world.device)
    metrics = evaluate(_network(), task, dataset, config, world, device).metrics
    with file.open("a") as lines:
        lines.write(json.dumps(metrics) + "\n")


@torch.no_grad()
def score_all(config: Config) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the logits of that network for all validation images, and their labels."""
    dataset = open_eval_set(config, "val", read_manifest(config.data.url, "val"))
    device, network = Device.create(config, torch.device("cpu")), _network().eval()
    scores, labels = [], []
    for batch, output in device.infer(network, iter_batches(dataset, range(len(dataset)), 0)):
        scores.append(output.numpy())
        labels.append(batch.labels.numpy() > 0)
    return np.concatenate(scores), np.concatenate(labels)
