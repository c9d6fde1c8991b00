"""Full images at several scales, one at a time, since they differ in shape.

A thread reads ahead. Processes and buffers of equal slots, as the loader has them for crops, would
not pay: applying a network to images of this size takes far longer than reading them.
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

_PREFETCH = 4  # images that are read ahead
_FETCH_SIZE = 64  # images that are fetched together from a remote store


def load_full_images(shards: SplitReader, dense: DenseProtocol, channels: int) -> Iterator[Batch]:
    """Yield, for each sample in order, a batch for each scale: its image and the mirror image.

    An unreadable sample is black and marked, as in `EvalDataset`.
    """
    read = partial(_read, shards, dense, channels)
    pending = deque[Future[list[Batch]]]()
    with ThreadPoolExecutor(1, "full-images") as reader:  # a store is used by one thread at a time
        for sample in range(len(shards)):
            pending.append(reader.submit(read, sample))
            if len(pending) > _PREFETCH:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _read(shards: SplitReader, dense: DenseProtocol, channels: int, sample: int) -> list[Batch]:
    if sample % _FETCH_SIZE == 0:
        shards.prefetch(np.arange(sample, min(sample + _FETCH_SIZE, len(shards))))
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
