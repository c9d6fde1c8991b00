"""The data sets of a run, opened from its config, and the count of samples that cannot be read."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Self

from data_sharding.augment import (
    ChooseView,
    padded_crop,
    parse_protocol,
    random_resized_crop,
)
from data_sharding.loader import Batch, EvalSet, ShardSet, TrainSet
from data_sharding.manifest import DataError, Manifest, read_manifest
from data_sharding.order import Order
from orchestrator.config import Augment, Config
from orchestrator.plan import Plan, data_fingerprint, make_plan
from orchestrator.rundir import RunDir

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Datasets:
    """Training samples by (step, micro-batch), validation samples by batch, and the arithmetic."""

    train: TrainSet
    val: EvalSet
    plan: Plan

    @classmethod
    def open(cls, run: RunDir, config: Config, world_size: int) -> Self:
        """Open what `data.url` holds.

        Raises:
            DataError: it is not there, or not the data set that this run began with.
            ConfigError: batch, lanes or ranks do not fit it.
        """
        data, recipe = config.data, config.recipe
        train, val = (read_manifest(data.url, split) for split in ("train", "val"))
        check_fingerprint(run, data.url, train, val)
        plan = make_plan(config, world_size, train, val)
        order = Order(
            shard_sizes=tuple(shard.num_samples for shard in train.shards),
            seed=config.seed,
            global_batch_size=recipe.global_batch_size,
            num_lanes=data.lanes,
            num_micro_batches=recipe.num_micro_batches,
            block_size=data.block_size,
        )
        size, center = parse_protocol(data.protocol)
        return cls(
            TrainSet(
                ShardSet(data.url, "train", train),
                order,
                _training_view(data.augment),
                data.image_size,
                data.channels,
            ),
            EvalSet(
                ShardSet(data.url, "val", val),
                config.evaluate.batch_size,
                center,
                size,
                data.channels,
            ),
            plan,
        )


def check_fingerprint(run: RunDir, url: str, train: Manifest, val: Manifest) -> None:
    """Refuse to go on with other data than the run began with.

    Raises:
        DataError: the manifests at `url` have other digests than those recorded in run.json.
    """
    identity = run.read_json(run.identity_file) or {}
    recorded = identity.get("data", {}).get("fingerprint")
    found = data_fingerprint(train, val)
    if recorded is not None and recorded != found:
        raise DataError(
            f"the data set at {url} is not the one that {run.id} began with: its fingerprint is "
            f"{found[:12]}, run.json has {recorded[:12]}. Continuing would mix two data sets in "
            "one run. Set data.url to the original, or start a new run."
        )


class BadSamples:
    """Names samples that cannot be read in the log, and counts them."""

    def __init__(self) -> None:
        self.num_bad = 0
        self.num_seen = 0

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on."""
        for batch in batches:
            self.num_bad += len(batch.bad)
            self.num_seen += len(batch.labels)
            for line in batch.bad:
                log.warning("replaced by the next readable sample: %s", line)
            yield batch


def _training_view(augment: Augment) -> ChooseView:
    if augment.kind == "padded_crop":
        return partial(padded_crop, padding=augment.padding, flip_prob=augment.flip_prob)
    return partial(
        random_resized_crop,
        scale=augment.scale,
        ratio=augment.ratio,
        flip_prob=augment.flip_prob,
    )
