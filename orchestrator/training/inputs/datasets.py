"""The data sets of a run, opened from its config, and the count of samples that cannot be read."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from data_sharding.errors import DataError
from data_sharding.format.manifest import Manifest, read_manifest
from data_sharding.io import filesystem
from data_sharding.loading.datasets import EvalDataset, TrainDataset, TrainOrder
from data_sharding.loading.loader import Batch, ring_bytes
from data_sharding.loading.shared_buffers import check_space
from data_sharding.loading.split_reader import SplitReader
from data_sharding.sampling.class_balanced import BalancedOrder, read_class_index
from data_sharding.sampling.sample_order import SampleOrder
from data_sharding.storage.cache import CacheSettings, small_cache_warning
from data_sharding.storage.shard_store import open_store
from data_sharding.transforms.crops import (
    CropFn,
    random_crop_padded,
    random_resized_crop,
    resize_crop,
)
from data_sharding.transforms.eval_protocol import parse_protocol
from data_sharding.transforms.pixel_transforms import PixelAugment, make_augment
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config, Data
from orchestrator.run.plan import Plan, image_sizes, make_plan, split_fingerprints
from orchestrator.run.rundir import RunDir
from orchestrator.training.inputs.lookahead import NUM_STEPS

log = logging.getLogger(__name__)

_MAX_NAMED = 100


@dataclass(frozen=True)
class Datasets:
    """Training samples by (step, micro-batch), validation samples by batch, and the arithmetic."""

    train: TrainDataset
    val: EvalDataset
    plan: Plan

    @classmethod
    def open(cls, run: RunDir, config: Config, world_size: int) -> Self:
        """Open what `data.url` holds.

        Raises:
            DataError: it is not there, or not the data set that this run began with.
            ConfigError: batch, lanes or ranks do not fit it.
        """
        url = config.data.url
        train, val = (read_manifest(url, split) for split in ("train", "val"))
        check_fingerprint(run, url, {"train": train, "val": val})
        plan = make_plan(config, world_size, train, val)
        train_set = open_train_set(config, train, plan)
        _warn_of_small_cache(config, train_set, plan)
        eval_set = open_eval_set(config, "val", val)
        _check_shared_memory(config, plan, train_set, eval_set)
        return cls(train=train_set, val=eval_set, plan=plan)


def open_train_set(config: Config, manifest: Manifest, plan: Plan) -> TrainDataset:
    """Return the training samples in the config's order, as its network is to see them.

    Raises:
        DataError, ConfigError: the data set has not what the recipe asks for.
    """
    data = config.data
    return TrainDataset(
        _open_split(config, "train", manifest),
        _order(config, manifest),
        _training_view(data),
        distortion_of(config),
        image_sizes(config, plan.steps_per_epoch),
        data.in_channels,
        data.crop.samples_per_crop,
    )


def open_eval_set(config: Config, split: str, manifest: Manifest) -> EvalDataset:
    """Return the samples of a split under the config's protocol."""
    return EvalDataset(
        _open_split(config, split, manifest),
        config.evaluate.batch_size,
        parse_protocol(config.data.eval_protocol),
        config.data.in_channels,
    )


def _open_split(config: Config, split: str, manifest: Manifest) -> SplitReader:
    url = filesystem.join(config.data.url, split)
    return SplitReader(split, manifest, open_store(url, _cache_settings(config), manifest.labels))


def _cache_settings(config: Config) -> CacheSettings | None:
    cache = config.data.cache
    return None if cache == "none" else CacheSettings(**vars(cache))


def _check_shared_memory(config: Config, plan: Plan, train: TrainDataset, val: EvalDataset) -> None:
    """Refuse now what would end at the first evaluation: all ranks here load two sets at a time."""
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers, num_held = config.data.num_workers, NUM_STEPS * len(plan.micro_batches_of(0))
    num_bytes = ring_bytes(train, workers, num_held) + ring_bytes(val, workers)
    check_space(num_local * num_bytes, f"{train.size_key} or {val.size_key}")


def _warn_of_small_cache(config: Config, train_set: TrainDataset, plan: Plan) -> None:
    """Say so if the ranks of this node read from more shards at a time than its cache can hold."""
    settings, shards = _cache_settings(config), train_set.shards
    if settings is None or filesystem.local_path(config.data.url) is not None:
        return
    rank = int(os.environ.get("RANK", "0"))
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    micros = plan.micro_batches_of(rank)
    mine = np.concatenate([train_set.order.micro_batch(0, micro).ids for micro in micros])
    warning = small_cache_warning(
        settings,
        shards_in_use=len(shards.shards_of(mine)) * num_local,
        mean_shard_bytes=shards.manifest.num_bytes / len(shards.manifest.shards),
    )
    if warning and rank % num_local == 0:
        log.warning("%s", warning)


def _order(config: Config, manifest: Manifest) -> TrainOrder:
    data, recipe = config.data, config.recipe
    if recipe.class_balanced:
        return BalancedOrder(
            read_class_index(data.url, "train", manifest),
            seed=config.seed,
            global_batch_size=recipe.global_batch_size,
            num_micro_batches=recipe.num_micro_batches,
        )
    return SampleOrder(
        manifest.shards.num_samples,
        seed=config.seed,
        global_batch_size=recipe.global_batch_size,
        num_lanes=data.num_lanes,
        num_micro_batches=recipe.num_micro_batches,
        block_size=data.shuffle_block_size,
        repeats=recipe.augment_repeats,
    )


def distortion_of(config: Config) -> PixelAugment:
    """Return what changes the pixels of training images.

    Raises:
        ConfigError: the options are not those of its policy, or are of colours that are not there.
    """
    distort = config.recipe.augment
    try:
        return make_augment(
            auto_augment=distort.auto_augment,
            auto_augment_kwargs=distort.auto_augment_kwargs,
            color_jitter=distort.color_jitter,
            pca_lighting_std=distort.pca_lighting_std,
            random_erasing_prob=distort.random_erasing_prob,
            fill=[255 * value for value in config.data.mean],
        )
    except ValueError as error:
        raise ConfigError(f"recipe.augment: {error}") from error


def check_fingerprint(run: RunDir, url: str, splits: Mapping[str, Manifest]) -> None:
    """Refuse other data than a run began with.

    Args:
        splits: the manifests at `url`, train's or val's or both.

    Raises:
        DataError: one has another digest than that recorded in run.json, or that is missing.
    """
    identity = run.read_json(run.identity_file)
    if identity is None:
        raise DataError(
            f"{run.identity_file} is missing, so what data {run.id} began with is not known, and "
            f"that at {url} may be other. Restore the file from a backup, or start a new run; "
            "`tahoe evaluate --data URL` judges the run on data that is named."
        )
    recorded = split_fingerprints(str(identity.get("data", {}).get("fingerprint", "")))
    for split, manifest in splits.items():
        found = manifest.fingerprint[:16]
        if recorded.get(split, found) != found:
            raise DataError(
                f"the data set at {url} is not the one that {run.id} began with: {split} has the "
                f"fingerprint {found}, and run.json {recorded[split]}. One run would have the "
                "figures of two data sets. Set data.url to the original, or start a new run; "
                "`tahoe evaluate --data URL` judges a run on other data."
            )


def check_bad_share(
    num_bad: int, num_samples: int, max_share: float, named: str = "The log names them."
) -> None:
    """Refuse a data set that is worse than the user allows.

    Raises:
        DataError: more than the share of the samples could not be read.
    """
    if num_bad > max_share * num_samples:
        raise DataError(
            f"{num_bad} samples could not be read, more than {num_samples} times "
            f"data.max_bad_fraction={max_share}. {named} Repair the data set, or raise the share."
        )


class DamagedSamples:
    """Names samples that decode with damage in the log, and counts them."""

    def __init__(self, what: str) -> None:
        self.num = 0
        self._what = what

    def tell(self, lines: Sequence[str]) -> None:
        """Name some; after _MAX_NAMED they are counted in silence."""
        for line in lines:
            self.num += 1
            if self.num <= _MAX_NAMED:
                log.warning("decodes with damage, and is %s: %s", self._what, line)
            if self.num == _MAX_NAMED:
                log.warning("more that decode with damage are counted and not named")

    def tell_number(self) -> None:
        """Say how many there were."""
        if self.num:
            log.warning("%d samples were %s although they decode with damage", self.num, self._what)


class BadSampleCounter:
    """Names samples that cannot be read in the log, and counts them."""

    def __init__(self) -> None:
        self.num_bad = 0
        self.num_seen = 0
        self.damaged = DamagedSamples("trained on")

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on."""
        for batch in batches:
            self.num_bad += len(batch.bad)
            self.num_seen += len(batch.labels)
            for line in batch.bad:
                log.warning("replaced by the next readable sample: %s", line)
            self.damaged.tell(batch.damaged)
            yield batch


def _training_view(data: Data) -> CropFn:
    augment = data.crop
    if augment.mode == "resize_crop":
        return partial(
            resize_crop,
            crop=data.image_size,
            resize_range=augment.resize_range,
            center_square_first=augment.center_square_first,
            hflip_prob=augment.hflip_prob,
        )
    if augment.mode == "random_crop_padded":
        return partial(random_crop_padded, padding=augment.padding, hflip_prob=augment.hflip_prob)
    return partial(
        random_resized_crop,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip_prob=augment.hflip_prob,
    )
