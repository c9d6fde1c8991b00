"""Whole images at several scales, one at a time, since they have no shape in common.

A thread reads ahead. Processes and a ring of equal slots, as the loader has them for crops, would
not pay: a network that is slid over images of this size takes far longer than they do.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from data_sharding.errors import BadSample
from data_sharding.loading.loader import Batch
from data_sharding.loading.split_reader import SplitReader
from data_sharding.transforms.decode import decode_whole
from data_sharding.transforms.eval_protocol import DenseProtocol

_AHEAD = 4  # images that are read before they are asked for
_AT_ONCE = 64  # whose bytes come together from a remote store


def load_whole(shards: SplitReader, dense: DenseProtocol, channels: int) -> Iterator[Batch]:
    """Yield of each sample, in order, a batch for each scale: its image and the mirror image.

    A sample that cannot be read is black and marked, as in data_sharding.loading.datasets.EvalSet.

    Raises:
        DataError: a shard cannot be read.
    """
    read = partial(_read, shards, dense, channels)
    coming = deque[Future[list[Batch]]]()
    with ThreadPoolExecutor(1, "whole-images") as reader:  # a store takes one thread at a time
        for sample in range(len(shards)):
            coming.append(reader.submit(read, sample))
            if len(coming) > _AHEAD:
                yield from coming.popleft().result()
        while coming:
            yield from coming.popleft().result()


def _read(shards: SplitReader, dense: DenseProtocol, channels: int, sample: int) -> list[Batch]:
    if sample % _AT_ONCE == 0:
        shards.preload(np.arange(sample, min(sample + _AT_ONCE, len(shards))))
    decoder = partial(decode_whole, choose_sizes=dense.sizes, channels=channels)
    bad = list[str]()
    try:
        labels, images, _ = shards.decode(sample, decoder)
    except BadSample as error:
        bad.append(str(error))
        labels = (0,) if error.labels is None else error.labels
        images = [torch.zeros((channels, h, w), dtype=torch.uint8) for w, h in dense.sizes(1, 1)]
    shards.store.close_evicted()
    return [
        Batch(
            images=torch.stack([image, image.flip(2)]),
            labels=torch.from_numpy(shards.encode_labels([labels])),
            ids=torch.tensor([sample]),
            readable=torch.tensor([not bad]),
            bad=bad,
        )
        for image in images
    ]
