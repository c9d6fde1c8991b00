"""The data sets of a run, opened from its config, and the count of its unreadable samples."""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from data_sharding.errors import DataError
from data_sharding.format.location import Location
from data_sharding.format.manifest import Manifest
from data_sharding.loading.datasets import EvalDataset, TrainDataset, TrainOrder
from data_sharding.loading.loader import Batch, ring_bytes
from data_sharding.loading.mixed_reader import MixedReader
from data_sharding.loading.shared_buffers import check_space
from data_sharding.loading.split_reader import SplitReader
from data_sharding.sampling.class_balanced import BalancedOrder, read_class_index
from data_sharding.sampling.mixed_order import mix_orders
from data_sharding.sampling.sample_order import SampleOrder
from data_sharding.storage.cache import CacheSettings, small_cache_warning
from data_sharding.storage.shard_store import open_store
from data_sharding.transforms.crops import (
    CropFn,
    random_resized_crop,
    resize_crop,
)
from data_sharding.transforms.eval_protocol import parse_protocol
from data_sharding.transforms.padded_crop import PaddedCrop
from data_sharding.transforms.pixel_transforms import PixelAugment, make_augment
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config, Data
from orchestrator.run.plan import MicroBatchKeys, Plan, image_sizes, make_plan, split_fingerprints
from orchestrator.run.rundir import RunDir
from orchestrator.run.train_data import Mixture, TrainData, read_data
from orchestrator.training.distributed.world import World
from orchestrator.training.inputs.kept_images import keep_decoded
from orchestrator.training.inputs.lookahead import NUM_STEPS

log = logging.getLogger(__name__)

_MAX_NAMED = 100  # damaged samples, in the log


@dataclass(frozen=True)
class Datasets:
    """Training samples by micro-batch, validation samples by batch, and the plan."""

    train: TrainDataset
    val: EvalDataset
    plan: Plan

    @classmethod
    def open(cls, run: RunDir, config: Config, world: World) -> Self:
        """Open the config's data set, which must be the one that this run started with.

        A collective of the ranks.
        """
        train, val = read_data(config)
        check_fingerprint(run, config.data.location, {"train": train, "val": val})
        plan = make_plan(config, world.size, train, val)
        train_set = open_train_set(config, train, plan)
        _warn_if_cache_too_small(config, train_set, plan)
        eval_set = open_eval_set(config, "val", val)
        _check_shared_memory(config, plan, train_set, eval_set)
        keep_decoded(train_set, eval_set, config.data.keep_decoded_mb, world)
        return cls(train=train_set, val=eval_set, plan=plan)


def open_train_set(config: Config, train: TrainData, plan: Plan) -> TrainDataset:
    """Open the training samples in the config's order, cropped and augmented."""
    return TrainDataset(
        _open_train(config, train),
        make_order(config, train, plan),
        _make_crop(config.data),
        make_augmentation(config),
        image_sizes(config, plan.steps_per_epoch),
        config.data.in_channels,
        config.data.crop.samples_per_crop,
        plan.ranks_per_micro_batch,
    )


def open_eval_set(config: Config, split: str, manifest: Manifest) -> EvalDataset:
    """Open the samples of a split under the config's protocol."""
    return EvalDataset(
        _open_split(config, split, manifest),
        config.evaluate.batch_size,
        parse_protocol(config.data.eval_protocol),
        config.data.in_channels,
    )


def _open_train(config: Config, train: TrainData) -> SplitReader | MixedReader:
    if isinstance(train, Manifest):
        return _open_split(config, "train", train)
    settings = _cache_settings(config)
    return MixedReader(
        [
            SplitReader(
                f"{source.name}: train",
                source.manifest,
                open_store(source.location, "train", settings, source.manifest.rule),
            )
            for source in train.sources
        ]
    )


def _open_split(config: Config, split: str, manifest: Manifest) -> SplitReader:
    store = open_store(config.data.location, split, _cache_settings(config), manifest.rule)
    return SplitReader(split, manifest, store)


def _cache_settings(config: Config) -> CacheSettings | None:
    cache = config.data.cache
    return None if cache == "none" else CacheSettings(**vars(cache))


def _check_shared_memory(config: Config, plan: Plan, train: TrainDataset, val: EvalDataset) -> None:
    """Refuse now what would fail at the first evaluation: all ranks here load two sets at once."""
    workers, num_held = config.data.num_workers, NUM_STEPS * len(plan.micro_batches_of(0))
    num_bytes = ring_bytes(train, workers, num_held) + ring_bytes(val, workers)
    check_space(_num_local_ranks() * num_bytes, f"{train.size_key} or {val.size_key}")


def _warn_if_cache_too_small(config: Config, train_set: TrainDataset, plan: Plan) -> None:
    """Warn if the ranks of this node read from more shards in a step than its cache can hold."""
    settings, sources = _cache_settings(config), train_set.shards.sources
    rank, num_local = int(os.environ.get("RANK", "0")), _num_local_ranks()
    if settings is None or config.data.is_train_local or rank % num_local:
        return
    keys = MicroBatchKeys(range(1), plan.micro_batches_of(rank), plan.part_of(rank))
    shards_in_use = np.unique(np.concatenate([train_set.shards_of(key) for key in keys]))
    warning = small_cache_warning(
        settings,
        shards_in_use=len(shards_in_use) * num_local,
        mean_shard_bytes=sum(source.manifest.num_bytes for source in sources)
        / train_set.shards.num_shards,
    )
    if warning:
        log.warning("%s", warning)


def _num_local_ranks() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def make_order(config: Config, train: TrainData, plan: Plan) -> TrainOrder:
    """Make the order of the training samples."""
    data, recipe = config.data, config.recipe
    if isinstance(train, Mixture):
        assert plan.mix is not None
        return mix_orders(
            [source.manifest.shards.num_samples for source in train.sources],
            plan.mix.quotas,
            seed=config.seed,
            num_lanes=plan.num_lanes,
            num_micro_batches=plan.num_micro_batches,
            block_size=data.shuffle_block_size,
            repeats=recipe.augment_repeats,
        )
    if recipe.class_balanced:
        return BalancedOrder(
            read_class_index(data.location, "train", train),
            seed=config.seed,
            global_batch_size=plan.global_batch_size,
            num_micro_batches=plan.num_micro_batches,
        )
    return SampleOrder(
        train.shards.num_samples,
        seed=config.seed,
        global_batch_size=plan.global_batch_size,
        num_lanes=plan.num_lanes,
        num_micro_batches=plan.num_micro_batches,
        block_size=data.shuffle_block_size,
        repeats=recipe.augment_repeats,
    )


def make_augmentation(config: Config) -> PixelAugment:
    """Build the augmentation of the pixels of training images."""
    fill = [255 * value for value in config.data.mean]
    try:
        return make_augment(**vars(config.recipe.augment), fill=fill)
    except ValueError as error:
        raise ConfigError(f"recipe.augment: {error}") from error


def check_fingerprint(run: RunDir, where: Location, splits: Mapping[str, TrainData]) -> None:
    """Refuse other data than a run started with.

    Args:
        splits: the manifests of `where`, train's or val's or both.
    """
    hint = "`tahoe evaluate --data URL` evaluates a run on other data."
    identity = run.read_json(run.identity_file)
    if identity is None:
        raise DataError(
            f"{run.identity_file} is missing, so the data that {run.id} started with is not known, "
            f"and that at {where} may be another data set",
            value=str(run.identity_file),
            hint=f"Restore the file from a backup, or start a new run; {hint}",
        )
    data = identity.get("data", {})
    recorded = split_fingerprints(str(data.get("fingerprint", "")))
    for split, manifest in splits.items():
        fingerprint = manifest.fingerprint[:16]
        if recorded.get(split, fingerprint) != fingerprint:
            key, place = "data.url", str(where)
            if isinstance(manifest, Mixture):
                known = [source["fingerprint"] for source in data.get("mix", ())]
                key, place = "data.mix", manifest.name_changed(known)
            raise DataError(
                f"the data set at {place} is not the one that {run.id} started with: {split} has "
                f"the fingerprint {fingerprint}, and run_info.json {recorded[split]}, so the run "
                "would have the metrics of two data sets",
                value=place,
                hint=f"Set {key} to the original, or start a new run; {hint}",
            )


def check_bad_fraction(num_bad: int, num_samples: int, limit: float, example: str = "") -> None:
    """Refuse a data set with more unreadable samples than the user allows.

    Args:
        limit: the largest fraction of the samples.
        example: one of the unreadable samples; the log has all of them.
    """
    if num_bad > limit * num_samples:
        named = f", e.g. {example}" if example else ""
        raise DataError(
            f"{num_bad} samples could not be read{named}, which is more than "
            f"data.max_bad_fraction={limit} of {num_samples}",
            value=num_bad,
            hint="The log names them. Repair the data set, or raise data.max_bad_fraction "
            "(`tahoe evaluate --max-bad-fraction`).",
        )


class SampleLog:
    """Log the samples that cannot be read or decode with damage, and count them.

    Args:
        bad: the treatment of unreadable samples, e.g. "counted as wrong".
        damaged: the treatment of damaged ones, e.g. "evaluated".
    """

    def __init__(self, bad: str, damaged: str) -> None:
        self.num_bad = self.num_seen = self._num_damaged = 0
        self._bad, self._damaged = bad, damaged

    def add(self, batch: Batch) -> None:
        """Log the samples of a batch; after _MAX_NAMED damaged ones, only count them."""
        self.num_bad += len(batch.bad)
        self.num_seen += len(batch.labels)
        for sample in batch.bad:
            log.warning("%s: %s", self._bad, sample)
        for sample in batch.damaged:
            self._num_damaged += 1
            if self._num_damaged <= _MAX_NAMED:
                log.warning("decodes with damage, and is %s: %s", self._damaged, sample)
            if self._num_damaged == _MAX_NAMED:
                log.warning("further damaged samples are counted and not named")

    def wrap(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on, adding each."""
        for batch in batches:
            self.add(batch)
            yield batch

    def log_damaged(self) -> None:
        """Log the number of damaged samples, if there are any."""
        if num := self._num_damaged:
            log.warning("%d samples were %s although they decode with damage", num, self._damaged)


def _make_crop(data: Data) -> CropFn:
    crop, flip = data.crop, data.crop.hflip_prob
    if crop.mode == "resize_crop":
        return partial(
            resize_crop,
            crop=data.image_size,
            resize_range=crop.resize_range,
            center_square_first=crop.center_square_first,
            hflip_prob=flip,
        )
    if crop.mode == "random_crop_padded":
        return PaddedCrop(crop.padding, flip)
    return partial(random_resized_crop, scale=crop.scale, ratio=crop.ratio, hflip_prob=flip)
