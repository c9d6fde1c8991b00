"""Memory for the decoded images of small data sets, one for all ranks of a node."""

import logging

from data_sharding.loading.datasets import EvalDataset, TrainDataset
from data_sharding.loading.kept_images import KeptImages, Layout, find_kept
from orchestrator.training.distributed.world import World

log = logging.getLogger(__name__)


def keep_decoded(train: TrainDataset, val: EvalDataset, limit_mb: int, world: World) -> None:
    """Give data sets memory for their decoded images, each if all of its images fit; a collective.

    Args:
        limit_mb: the memory of a node for both.
    """
    left = limit_mb * 1_000_000
    datasets: dict[str, TrainDataset | EvalDataset] = {"train": train, "val": val}
    for name, dataset in datasets.items():
        layout = dataset.layout
        if layout is None or (num_bytes := layout.num_bytes) > left:
            continue
        left -= num_bytes
        dataset.kept = _shared_on_node(layout, world)
        if dataset.kept and world.is_main:
            log.info("%s: decoded images are kept, in %.3g MB on each node", name, num_bytes / 1e6)


def _shared_on_node(layout: Layout, world: World) -> KeptImages | None:
    """Return memory of the node's first rank; None if it cannot be had or reached."""
    kept = None
    if world.local_rank == 0:
        try:
            kept = KeptImages(layout)
        except OSError as error:
            log.warning("decoded images are not kept: %s", error)
    places = world.gather_objects(kept and kept.place)
    if world.local_rank == 0:
        return kept
    place = places[world.rank - world.local_rank]
    return place and find_kept(place)
