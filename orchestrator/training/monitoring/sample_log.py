"""A record of which samples were trained on: the proof that none is lost or seen twice.

Switched on by `logging.log_sample_ids`. Each rank appends a line a micro-batch, when the network is
about to see it, so what a killed attempt had merely fetched ahead is not in it. A sample that
cannot be read is not there: the one that was trained on in its place is.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from data_sharding.loading.loader import Batch
from orchestrator.run.rundir import append_json_line


def log_sample_ids(
    batches: Iterator[Batch], names: Iterable[tuple[int, int]], file: Path
) -> Iterator[Batch]:
    """Pass batches on, writing the step, micro-batch and sample ids of each to a file."""
    for (step, micro), batch in zip(names, batches, strict=True):
        append_json_line(file, {"step": step, "micro": micro, "ids": batch.ids.tolist()})
        yield batch
