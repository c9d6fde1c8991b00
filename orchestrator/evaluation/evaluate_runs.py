"""Runs judged again, alone and together, under any protocol: what `tahoe evaluate` starts.

    python -m orchestrator.evaluation.evaluate_runs < request.json

A process of its own, since what is before the launch imports no torch. It prints an `EvalReport` as
JSON. An ensemble's probability of a class is the mean of its members' (Krizhevsky et al. 2012,
section 4.1, over crops; the winners' ensembles over networks).
"""

import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import timm
import torch

from data_sharding.format.manifest import Manifest, read_manifest
from data_sharding.loading.datasets import EvalDataset
from data_sharding.loading.full_images import load_full_images
from data_sharding.loading.loader import Batch, iter_batches
from data_sharding.loading.split_reader import SplitReader
from data_sharding.transforms.eval_protocol import DenseProtocol, parse_dense, parse_protocol
from orchestrator.checkpoint.retention import select_checkpoint
from orchestrator.checkpoint.safetensors_io import read_tensors
from orchestrator.checkpoint.store import WEIGHTS, CheckpointStore
from orchestrator.config.parse import ConfigError, parse
from orchestrator.config.schema import Config
from orchestrator.evaluation.dense import make_dense
from orchestrator.run.rundir import RunDir
from orchestrator.torch_workers.entry import counted, json_entry_point
from orchestrator.training.inputs.class_names import check_classes
from orchestrator.training.inputs.datasets import check_bad_share, check_fingerprint, open_eval_set
from orchestrator.training.inputs.device import Device
from orchestrator.training.task.losses import (
    mean_log_probs,
    predictions,
    sample_log_probs,
    score,
)
from orchestrator.training.task.model import build_model
from orchestrator.training.task.warm_start import differences

_MAX_TABLE = 1000  # classes; the table of more is mostly zeros: 800 MB of 20,000
_NAME = re.compile(r"ILSVRC2012_val_\d{8}$")


@dataclass(frozen=True)
class EvalRequest:
    """What is to be judged; None: what each run's own config says.

    Args:
        real: also against the reassessed labels of ImageNet.
        confusion: where to write who is taken for whom.
        weights: "ema" or "raw"; None: the averaged ones where there are any.
        max_bad_fraction: of the images may be unreadable.
    """

    runs: Sequence[str]
    protocol: str | None
    data: str | None
    split: str
    step: int | None
    batch_size: int | None
    real: bool
    confusion: str | None
    weights: str | None = None
    max_bad_fraction: float | None = None


@dataclass(frozen=True)
class Metrics:
    """In percent, and nats; `real_top1` over the images that have any reassessed label."""

    top1: float
    top5: float
    loss: float
    real_top1: float | None


@dataclass(frozen=True)
class EvalReport:
    """What was found: of each run, by its path, and of all together, if there are several.

    `class_top1` is of all together, in the order of the classes; None for one without samples.
    `notes` are what could not be checked.
    """

    num_samples: int
    num_unreadable: int
    runs: dict[str, dict[str, Any]]
    ensemble: Metrics | None
    classes: tuple[str, ...]
    class_top1: tuple[float | None, ...]
    notes: Sequence[str]


@dataclass(frozen=True)
class _GroundTruth:
    """Labels (n,), whether each image could be read (n,), and the classes it really shows."""

    labels: torch.Tensor
    readable: torch.Tensor
    real: list[list[int]] | None

    def figures(self, log_probs: torch.Tensor) -> Metrics:
        """Return what log-probabilities (n, classes) come to."""
        sums = score(log_probs, self.labels, self.readable)
        top1, top5, loss = (sums / len(self.labels)).tolist()
        return Metrics(top1, top5, loss, self._real_top1(predictions(log_probs, self.readable)))

    def _real_top1(self, best: torch.Tensor) -> float | None:
        if self.real is None:
            return None
        found = [
            said in shown for said, shown in zip(best.tolist(), self.real, strict=True) if shown
        ]
        return 100 * sum(found) / len(found) if found else None


class Loaded(NamedTuple):
    """Of which step weights are, and whether they are averaged or raw."""

    step: int
    weights: str


class _ResolvedRequest(NamedTuple):
    """`dense`: whole images are judged, and the config's protocol is not looked at."""

    config: Config
    protocol: str
    dense: DenseProtocol | None


def evaluate_runs(request: EvalRequest) -> EvalReport:
    """Judge runs on one data set.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: something is not there, or does not fit.
    """
    total: torch.Tensor | None = None
    found, truth, manifest = dict[str, dict[str, Any]](), None, None
    notes = list[str]()
    for path in request.runs:
        run = RunDir(Path(path))
        own = parse(run.read_config())
        asked = _asked(own, request)
        manifest = _same_data(run, asked.config, request, manifest)
        if request.data and (note := check_classes(run, own, request.data, manifest)):
            notes.append(note)
        loaded, log_probs, truth = _predict(run, asked, manifest, request)
        figures = truth.figures(log_probs)
        told = {"data": asked.config.data.url, "fingerprint": manifest.fingerprint}
        told |= {**loaded._asdict(), "protocol": asked.protocol}
        found[path] = {**told, **asdict(figures)}
        total = log_probs if total is None else torch.logaddexp(total, log_probs)
    assert total is not None
    assert truth is not None
    assert manifest is not None
    mean = total - math.log(len(request.runs))
    confusion = _confusion(mean, truth, len(manifest.classes))
    if request.confusion:
        _write_confusion(Path(request.confusion), confusion, manifest.classes)
    return EvalReport(
        num_samples=len(truth.labels),
        num_unreadable=int((~truth.readable).sum()),
        runs=found,
        ensemble=truth.figures(mean) if len(request.runs) > 1 else None,
        classes=manifest.classes,
        class_top1=_class_top1(confusion, len(manifest.classes)),
        notes=notes,
    )


def _asked(config: Config, request: EvalRequest) -> _ResolvedRequest:
    """Return a run's config with what the request says instead."""
    if config.recipe.loss == "model":
        raise ConfigError(f"{config.model.name} was trained without labels: it tells no classes.")
    data = cast("Any", config.data)
    url, protocol = request.data or config.data.url, request.protocol or config.data.eval_protocol
    if protocol == "timm":
        protocol = timm_protocol(config.model.name, config.data.image_size)
    dense = parse_dense(protocol)
    try:
        crops = config.data.eval_protocol if dense else parse_protocol(protocol).name
    except ValueError as error:
        raise ConfigError(str(error)) from None
    batch_size = request.batch_size or config.evaluate.batch_size
    evaluate = replace(cast("Any", config.evaluate), batch_size=batch_size)
    changed = replace(data, url=url, eval_protocol=crops)
    config = cast("Config", replace(cast("Any", config), data=changed, evaluate=evaluate))
    return _ResolvedRequest(config, protocol, dense)


def timm_protocol(model: str, crop: int) -> str:
    """Return the crop that timm judges its weights of a network by.

    A network that was trained on the images that timm trains it on is judged on those that timm
    judges it on, which may be larger. Images are resized bilinearly, whatever timm does.

    Raises:
        ConfigError: it is no network of timm's.
    """
    known = timm.get_pretrained_cfg(model.removeprefix("timm/"))
    if not model.startswith("timm/") or known is None:
        raise ConfigError(f"--protocol timm: {model} is no network of timm's. Name a protocol.")
    fraction = known.crop_pct
    if crop == known.input_size[-1] and known.test_input_size:
        crop, fraction = known.test_input_size[-1], known.test_crop_pct or fraction
    kind = "warp" if known.crop_mode == "squash" else "center"
    return f"{kind}-{crop}-of-{math.floor(crop / fraction)}"


def _same_data(
    run: RunDir, config: Config, request: EvalRequest, before: Manifest | None
) -> Manifest:
    """Return the manifest of the split; unless other data is named, it is the run's own."""
    manifest = read_manifest(config.data.url, request.split)
    if request.data is None:
        check_fingerprint(run, config.data.url, {request.split: manifest})
    if before is not None and manifest.fingerprint != before.fingerprint:
        raise ConfigError(
            f"these runs have different data: {config.data.url} is not what the ones before have. "
            "Together they would be judged on nothing. Name one with --data URL."
        )
    if manifest.labels.kind != "single":
        raise ConfigError(f"{config.data.url} has no single label a sample to judge by.")
    return manifest


@torch.no_grad()
def _predict(
    run: RunDir, asked: _ResolvedRequest, manifest: Manifest, request: EvalRequest
) -> tuple[Loaded, torch.Tensor, _GroundTruth]:
    """Return which weights they are, log-probabilities (n, classes), and what is true."""
    config, dense = asked.config, asked.dense
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = Device.create(config, place)
    network = build_model(config, len(manifest.classes))
    loaded = load_weights(network, run, config, request.step, request.weights)
    refusal = f"{run.path}: {config.model.name} does not take the images of the protocol "
    refusal += asked.protocol
    if dense:
        with _as_config_error(refusal):
            network = make_dense(network)
    network.eval().to(place).to(memory_format=device.memory_format)
    dataset = open_eval_set(config, request.split, manifest)
    log_probs, labels, readable, bad = [], [], [], list[str]()
    num_scales = len(dense.resizes) if dense else 1  # each has a batch of its own
    num_batches = num_scales * len(dataset.shards) if dense else len(dataset)
    batches = device.prefetch_to_device(_load(dataset, asked, pin_memory=device.is_cuda))
    for batch in counted(batches, num_batches, run.path.name):
        with _as_config_error(refusal), device.autocast():
            logits = network(batch.images)
        log_probs.append(sample_log_probs(logits, len(batch.labels)).cpu())
        labels.append(batch.labels.cpu())
        readable.append(batch.readable.cpu())
        bad += batch.bad
    found = mean_log_probs(torch.cat(log_probs).unflatten(0, (-1, num_scales)), dim=1)
    real = _real_labels(dataset.shards) if request.real else None
    truth = _GroundTruth(torch.cat(labels)[::num_scales], torch.cat(readable)[::num_scales], real)
    fraction = (
        config.data.max_bad_fraction
        if request.max_bad_fraction is None
        else request.max_bad_fraction
    )
    named = f"One is {bad[0]}. --max-bad-fraction allows more." if bad else ""
    check_bad_share(int((~truth.readable).sum()), len(truth.labels), fraction, named)
    return loaded, found, truth


def _load(dataset: EvalDataset, asked: _ResolvedRequest, *, pin_memory: bool) -> Iterator[Batch]:
    data = asked.config.data
    if asked.dense:
        return load_full_images(dataset.shards, asked.dense, data.in_channels)
    return iter_batches(dataset, range(len(dataset)), data.num_workers, pin_memory=pin_memory)


@contextmanager
def _as_config_error(message: str) -> Iterator[None]:
    """Say what a network makes of images that it is not made for."""
    try:
        yield
    except (ValueError, RuntimeError, AssertionError) as error:  # timm asserts sizes
        raise ConfigError(f"{message}: {error}") from error


def load_weights(
    network: torch.nn.Module,
    run: RunDir,
    config: Config,
    step: int | None,
    kind: str | None = None,
) -> Loaded:
    """Give a network the weights of a run's checkpoint.

    Args:
        step: None: that of the best checkpoint, or of the newest.
        kind: "ema" or "raw"; None: the averaged ones where there are any.

    Raises:
        RunError, CheckpointError: there is no such checkpoint, or it has no such weights.
        ConfigError: it is of another network.
    """
    store = CheckpointStore.for_run(run, config)
    manifest = select_checkpoint(store, config.checkpoint, step)
    name = manifest.weights_file(kind)
    with store.open(manifest.step, [name]) as parts:
        tensors = read_tensors(parts[name])
    try:
        network.load_state_dict(tensors)
    except RuntimeError:
        raise ConfigError(
            f"{run.path}: the weights do not fit the network: "
            f"{differences(tensors, network.state_dict())}. "
            "Was it trained on data of other classes?"
        ) from None
    return Loaded(manifest.step, "averaged" if name == WEIGHTS["ema"] else "raw")


def _real_labels(shards: SplitReader) -> list[list[int]]:
    """Return the classes that each image really shows (Beyer et al., Are we done with ImageNet?).

    By the names that the images have in ImageNet, which `tahoe shard imagenet` and `folder` keep.
    """
    from timm.data.real_labels import RealLabelsImagenet

    known = RealLabelsImagenet([""] * 50_000).real_labels  # type: ignore[no-untyped-call]
    found = []
    for place in shards.locate(np.arange(len(shards))):
        key = shards.store.open(shards.manifest.shards[place.shard]).key(place.sample)
        name = _NAME.search(key)
        if name is None:
            raise ConfigError(
                f"--real: the image {key} is none of ImageNet's validation images by its name "
                "(ILSVRC2012_val_00000001), so its labels cannot be looked up. Leave --real out."
            )
        found.append(known[f"{name[0]}.JPEG"])
    return found


def _confusion(log_probs: torch.Tensor, truth: _GroundTruth, num_classes: int) -> torch.Tensor:
    """Return which class was taken for which and how often, (pairs, 3); `num_classes` is none.

    Only what occurred: a table of 20,000 classes would be 3 GB, and nearly all of it zeros.
    """
    said = predictions(log_probs, truth.readable)
    pairs = torch.stack([truth.labels, torch.where(said < 0, num_classes, said)], dim=1)
    found, counts = pairs.unique(dim=0, return_counts=True)
    return torch.cat([found, counts[:, None]], dim=1)


def _class_top1(confusion: torch.Tensor, num_classes: int) -> tuple[float | None, ...]:
    label, said, count = confusion.unbind(dim=1)
    total = torch.zeros(num_classes, dtype=torch.long).index_add_(0, label, count)
    right = torch.zeros_like(total).index_add_(0, label[label == said], count[label == said])
    return tuple(
        100 * good / num if num else None
        for good, num in zip(right.tolist(), total.tolist(), strict=True)
    )


def _write_confusion(file: Path, confusion: torch.Tensor, classes: Sequence[str]) -> None:
    """Write a table of all classes; of more than _MAX_TABLE the pairs that occurred, most first."""
    import csv

    names = [*classes, "none"]
    with file.open("w", newline="") as table:
        writer = csv.writer(table)
        if len(classes) <= _MAX_TABLE:
            counts = torch.zeros((len(classes), len(names)), dtype=torch.long)
            counts[confusion[:, 0], confusion[:, 1]] = confusion[:, 2]
            writer.writerow(["", *names])
            writer.writerows(
                [name, *row] for name, row in zip(classes, counts.tolist(), strict=True)
            )
            return
        writer.writerow(["class", "taken for", "images"])
        most_first = confusion[confusion[:, 2].argsort(descending=True, stable=True)]
        writer.writerows((names[i], names[j], num) for i, j, num in most_first.tolist())


def main() -> int:
    return json_entry_point(lambda **asked: asdict(evaluate_runs(EvalRequest(**asked))))


if __name__ == "__main__":
    sys.exit(main())
