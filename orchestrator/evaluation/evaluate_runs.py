"""Evaluate finished runs, alone and as an ensemble, under any protocol, for `tahoe evaluate`.

An ensemble's probability of a class is the mean of its members'
(Krizhevsky et al. 2012, section 4.1, over crops; the winners' ensembles over networks).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor

from data_sharding.format.class_map import read_class_map
from data_sharding.format.location import Location, is_tar
from data_sharding.format.manifest import Manifest, has_manifest, read_manifest
from data_sharding.loading.full_images import load_full_images
from data_sharding.loading.loader import iter_batches
from data_sharding.transforms.eval_protocol import parse_dense, parse_protocol
from orchestrator.checkpoint.retention import select_checkpoint
from orchestrator.checkpoint.safetensors_io import read_tensors
from orchestrator.checkpoint.store import WEIGHTS, CheckpointStore
from orchestrator.config.parse import ConfigError, parse
from orchestrator.config.schema import Config
from orchestrator.evaluation.class_choice import ClassChoice
from orchestrator.evaluation.dense import make_dense
from orchestrator.evaluation.multi_label import MultiLabelTruth
from orchestrator.evaluation.single_label import (
    GroundTruth,
    count_confusion,
    real_labels,
    write_confusion,
)
from orchestrator.run.label_checks import check_scores_fit
from orchestrator.run.rundir import RunDir
from orchestrator.torch_workers.entry import report_progress
from orchestrator.training.inputs.class_names import check_classes, own_classes
from orchestrator.training.inputs.datasets import (
    check_bad_fraction,
    check_fingerprint,
    open_eval_set,
)
from orchestrator.training.inputs.device import Device
from orchestrator.training.task.losses import (
    binary_log_probs,
    mean_log_probs,
    sample_log_probs,
)
from orchestrator.training.task.model import build_model
from orchestrator.training.task.warm_start import differences

Truth = GroundTruth | MultiLabelTruth


@dataclass(frozen=True)
class EvalRequest:
    """The options of `tahoe evaluate`; None stands for the value in each run's own config.

    Args:
        real: whether to use the reassessed labels of ImageNet too.
        confusion: the file for the confusion matrix; None: no file.
        weights: "ema" or "raw"; None: the averaged ones where there are any.
        max_bad_fraction: the largest fraction of unreadable images.
        class_map: the file that matches the classes of the data to those of the runs.
    """

    runs: Sequence[str]
    data: str | None
    split: str
    step: int | None
    protocol: str | None
    batch_size: int | None
    real: bool
    confusion: str | None
    weights: str | None
    max_bad_fraction: float | None
    class_map: str | None


class Weights(NamedTuple):
    """The step of loaded weights, and whether they are averaged or raw."""

    step: int
    weights: str


class Member(NamedTuple):
    """A run that is evaluated, and what it is evaluated on."""

    run: RunDir
    config: Config
    protocol: str
    manifest: Manifest
    choice: ClassChoice | None

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that are predicted."""
        return self.choice.names if self.choice else self.manifest.classes


def evaluate_runs(**options: Any) -> dict[str, Any]:
    """Evaluate runs on one data set.

    Returns:
        The results of each run by its path, of the ensemble if there are several, and of each class
        in the ensemble (None without samples): `class_top1`, or `class_ap` and `class_f1` where
        images have several labels. `notes` are what could not be checked.
    """
    request = EvalRequest(**options)
    members, notes = _open_members(request)
    results, total = dict[str, dict[str, Any]](), None
    for path, member in zip(request.runs, members, strict=True):
        weights, log_probs, truth = _predict(member, request)
        num_read, choice = len(truth.labels), member.choice
        if choice and isinstance(truth, GroundTruth):
            log_probs, truth = choice.matched(log_probs, truth)
        results[path] = {
            "data": str(member.config.data.location),
            "fingerprint": member.manifest.fingerprint,
            **weights._asdict(),
            "protocol": member.protocol + (choice.suffix if choice else ""),
            **truth.metrics(log_probs),
        }
        total = log_probs if total is None else torch.logaddexp(total, log_probs)
    assert total is not None  # there is a run
    mean, classes = total - math.log(len(members)), member.classes
    if request.confusion and isinstance(truth, GroundTruth):
        confusion = count_confusion(mean, truth, len(classes))
        write_confusion(Path(request.confusion), confusion, classes)
    return {
        "num_samples": len(truth.labels),
        "num_unreadable": int((~truth.readable).sum()),
        "runs": results,
        "ensemble": truth.metrics(mean) if len(members) > 1 else None,
        "num_passed_over": num_read - len(truth.labels),
        "num_outputs": choice.num_outputs if choice else len(classes),
        "classes": classes,
        **truth.by_class(mean),
        "notes": notes,
    }


def _open_members(request: EvalRequest) -> tuple[list[Member], list[str]]:
    """Read the runs and their data; return them, and notes on what could not be checked.

    All are read before one predicts: what does not fit is not found out after hours.
    """
    members, notes = list[Member](), list[str]()
    for path in request.runs:
        run = RunDir(Path(path))
        config, protocol = _apply(request, parse(run.read_config()))
        location = config.data.location
        manifest, note = _read_manifest(run, location, request)
        notes += [note] if note else []
        member = Member(run, config, protocol, manifest, _choose_classes(run, manifest, request))
        first = members[0] if members else member
        if manifest.fingerprint != first.manifest.fingerprint:
            raise ConfigError(
                f"the runs have different data: {location} is not that of the first, so there is "
                "no set to evaluate them on together",
                value=str(location),
                hint="Name one with --data URL.",
            )
        if member.classes != first.classes:
            raise ConfigError(
                f"{path} chooses from other classes than the runs before it, so they are no "
                "ensemble",
                value=path,
                hint="Evaluate them one by one.",
            )
        members.append(member)
    return members, notes


def _read_manifest(run: RunDir, location: Location, request: EvalRequest) -> tuple[Manifest, str]:
    """Read the manifest of the split; return it, and a note on what is not known of its classes."""
    manifest, note = read_manifest(location, request.split), ""
    if request.data is None:
        check_fingerprint(run, location, {request.split: manifest})
    elif request.class_map is None:
        note = check_classes(run, str(location), manifest)
    _check_labels(run, str(location), manifest.labels.kind, request)
    if manifest.labels.kind == "multi":
        check_scores_fit(manifest, world_size=1)
    return manifest, note


def _check_labels(run: RunDir, url: str, kind: str, request: EvalRequest) -> None:
    """Refuse labels that are not of the run's kind, and requests that they cannot answer."""
    if kind == "none":
        raise ConfigError(f"{url} has no labels to evaluate against", value=url)
    data = (run.read_json(run.identity_file) or {}).get("data", {})
    own = kind if request.data is None else data.get("label_kind", "single")
    if own != kind:
        raise ConfigError(
            f"{url} has {kind} labels, and {run.path} was trained with {own} ones, so its outputs "
            "mean something else",
            value=url,
            hint="Name data whose images are labelled alike.",
        )
    refused = {
        "--confusion-matrix": request.confusion,
        "--real-labels": request.real,
        "--class-map": request.class_map,
    }
    for option, value in refused.items():
        if kind == "multi" and value:
            raise ConfigError(
                f"{option}: the images of {url} have several labels each, and it is for one",
                value=value,
                hint="Leave it out: --json has the average precision and the F1 of each class, "
                "and --worst-classes N lists the lowest.",
            )


def _choose_classes(run: RunDir, manifest: Manifest, request: EvalRequest) -> ClassChoice | None:
    """Match the classes of the data to the run's, if a file says how."""
    if request.class_map is None:
        return None
    return ClassChoice.of(read_class_map(request.class_map), own_classes(run), manifest.classes)


def _apply(request: EvalRequest, config: Config) -> tuple[Config, str]:
    """Return a run's config with the values of a request, and the name of the protocol.

    The config's own protocol is always one of crops; a dense one is known by its name alone.
    """
    if config.recipe.loss == "model":
        raise ConfigError(
            f"{config.model.name} was trained without labels, so it predicts no classes",
            value=config.model.name,
        )
    if config.data.mix and request.data is None and request.split == "train":
        raise ConfigError(
            "the run has trained on samples of several data sets (data.mix), and an evaluation is "
            "on one",
            value=request.split,
            hint="Name one of them with --data URL.",
        )
    name = request.protocol or config.data.eval_protocol
    if name == "timm":
        name = timm_protocol(config.model.name, config.data.image_size)
    try:
        crops = config.data.eval_protocol if parse_dense(name) else parse_protocol(name).name
    except ValueError as error:
        raise ConfigError(str(error), value=name) from None
    changes: dict[str, object] = {"data.eval_protocol": crops}
    if request.max_bad_fraction is not None:
        changes["data.max_bad_fraction"] = request.max_bad_fraction
    if request.batch_size:
        changes["evaluate.batch_size"] = request.batch_size
    return with_data(config, request.data, request.split).replace(changes), name


def with_data(config: Config, data: str | None, split: str) -> Config:
    """Return a config with another data set, if one is given: a URL, or a pattern of a split.

    At a URL with folds it is that of the run.
    """
    if data is None:
        return config
    fold = config.data.fold
    names = ("url", "train", "val", "manifest", "class_map", "fold")
    changes: dict[str, object] = {f"data.{name}": None for name in names}
    changes["data.mix"] = ()
    if is_tar(data):  # read as the run's own samples are
        return config.replace(changes | {f"data.{split}": data})
    by_manifest = {"data.image": None, "data.label": None, "data.multi_label": False}
    changes |= by_manifest | {"data.url": data}
    if fold is not None and has_manifest(Location(data, fold=fold), "val"):
        changes["data.fold"] = fold
    return config.replace(changes)


def timm_protocol(model: str, crop: int) -> str:
    """Return the protocol by which timm evaluates its weights of a network.

    A network trained on images of the size that timm trains it on is evaluated on those that timm
    evaluates it on, which may be larger. Images are resized bilinearly, whatever timm does.
    """
    known = timm.get_pretrained_cfg(model.removeprefix("timm/"))
    if not model.startswith("timm/") or known is None:
        raise ConfigError(
            f"--protocol timm: {model} is no network of timm's",
            value=model,
            hint="Name a protocol.",
        )
    fraction = known.crop_pct
    if crop == known.input_size[-1] and known.test_input_size:
        crop, fraction = known.test_input_size[-1], known.test_crop_pct or fraction
    kind = "warp" if known.crop_mode == "squash" else "center"
    return f"{kind}-{crop}-of-{math.floor(crop / fraction)}"


@torch.no_grad()
def _predict(member: Member, request: EvalRequest) -> tuple[Weights, Tensor, Truth]:
    """Compute the log-probabilities of a run, (n, classes); of several labels (n, classes, 2)."""
    run, config, protocol, manifest, choice = member
    is_multi = manifest.labels.kind == "multi"
    to_log_probs = binary_log_probs if is_multi else sample_log_probs
    dense, device = parse_dense(protocol), choose_device(config)
    network = build_model(config, choice.num_outputs if choice else len(manifest.classes))
    weights = load_weights(network, run, config, request.step, request.weights)
    refusal = f"{run.path}: {config.model.name} does not take the images of the protocol {protocol}"
    if dense:
        with _as_config_error(refusal, protocol):
            network = make_dense(network)
    network.eval().to(device.device).to(memory_format=device.memory_format)

    def forward(images: Tensor) -> Any:
        with _as_config_error(refusal, protocol):
            logits = network(images)
        return logits if choice is None else logits[:, choice.outputs.to(logits.device)]

    dataset = open_eval_set(config, request.split, manifest)
    if dense:
        num_scales = len(dense.resizes)  # each has a batch of its own
        num_batches = num_scales * len(dataset.shards)
        batches = load_full_images(dataset.shards, dense, config.data.in_channels)
    else:
        num_scales, num_batches, workers = 1, len(dataset), config.data.num_workers
        batches = iter_batches(dataset, range(num_batches), workers, pin_memory=device.is_cuda)
    rows, labels, readable, bad = [], [], [], list[str]()
    outputs = device.infer(forward, batches)
    for batch, logits in report_progress(outputs, num_batches, run.path.name):
        rows.append(to_log_probs(logits, len(batch.labels)).cpu())
        labels.append(batch.labels.cpu())
        readable.append(batch.readable.cpu())
        bad += batch.bad
    log_probs = mean_log_probs(torch.cat(rows).unflatten(0, (-1, num_scales)), dim=1)
    known = torch.cat(labels)[::num_scales], torch.cat(readable)[::num_scales]
    truth: Truth
    if is_multi:
        truth = MultiLabelTruth(*known, config.evaluate.threshold)
    else:
        truth = GroundTruth(*known, real_labels(dataset.shards) if request.real else None)
    num_bad, limit = int((~truth.readable).sum()), config.data.max_bad_fraction
    check_bad_fraction(num_bad, len(truth.labels), limit, *bad[:1])
    return weights, log_probs, truth


def choose_device(config: Config) -> Device:
    return Device.create(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def _as_config_error(problem: str, protocol: str) -> Iterator[None]:
    """Turn the errors of a network on images that it is not made for into a ConfigError."""
    try:
        yield
    except (ValueError, RuntimeError, AssertionError) as error:  # timm asserts sizes
        raise ConfigError(f"{problem}: {error}", value=protocol) from error


def load_weights(
    network: torch.nn.Module,
    run: RunDir,
    config: Config,
    step: int | None,
    kind: str | None = None,
) -> Weights:
    """Load the weights of a run's checkpoint into a network.

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
            f"{differences(tensors, network.state_dict())}",
            value=str(run.path),
            hint="Was it trained on data of other classes?",
        ) from None
    return Weights(manifest.step, "averaged" if name == WEIGHTS["ema"] else "raw")
