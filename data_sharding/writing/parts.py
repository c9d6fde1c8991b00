"""Write a data set in parts: jobs on any nodes that write disjoint shards of it.

`plan_parts` marks the set as unfinished, as `write_dataset` does, and names the shards that are
missing. Each part then writes some of these and records them in the journal of the set, a file a
shard, so that nothing is lost whoever is killed. `write_dataset` publishes the set in the end, and
would write what a part has left. So the bytes are those of one process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fsspec.implementations.memory import MemoryFileSystem
from pydantic import TypeAdapter

from data_sharding.errors import DataError
from data_sharding.io import filesystem
from data_sharding.io.atomic_file import write_atomic
from data_sharding.sources.base import Source, source_error
from data_sharding.sources.shard_samples import ShardSamples
from data_sharding.sources.stored_source import read_source, write_source
from data_sharding.writing import journal
from data_sharding.writing.dataset_writer import (
    Dataset,
    DatasetWriter,
    Progress,
    is_published,
    journal_facts,
    write_dataset,
)
from data_sharding.writing.shard_tasks import WriteSettings
from data_sharding.writing.shard_writer import WriteJob, write_error


@dataclass(frozen=True)
class PlannedParts:
    """A plan that all parts of the writing of a data set share; its source is stored beside it.

    Args:
        directory: working directory, which relative paths of the source and the URL refer to.
        names: names of the records of the shards to be written.
        num_workers: number of processes of a part.
    """

    url: str
    directory: str
    settings: WriteSettings
    names: tuple[str, ...]
    num_parts: int
    num_workers: int

    def names_of(self, part: int) -> Sequence[str]:
        """Return the names of the shards of a part; parts differ by at most one shard."""
        return self.names[part :: self.num_parts]

    def num_finished(self, part: int | None = None) -> int:
        """Count the shards, of all parts or one, that are recorded as finished.

        Once the set is published there are no records.
        """
        names = self.names if part is None else self.names_of(part)
        return len({*names}.intersection(journal.record_names(self.url)))


_JSON = TypeAdapter(PlannedParts)
_PLAN, _SOURCE = "parts.json", "source.safetensors"


def save_parts(plan: PlannedParts, source: Source, directory: Path) -> None:
    """Save a plan and its source in a directory that all nodes see."""
    write_source(source, directory / _SOURCE)
    write_atomic(directory / _PLAN, _JSON.dump_json(plan, indent=2))


def load_parts(directory: Path) -> tuple[PlannedParts, Source]:
    """Load the plan that a directory has, and its source."""
    try:
        plan = _JSON.validate_json((directory / _PLAN).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{directory} has no plan of a data set to be written: {error}", value=directory
        ) from error
    return plan, read_source(directory / _SOURCE)


def remove_source(directory: Path) -> None:
    """Remove the stored source of a published set, which may be as large as a listing is."""
    (directory / _SOURCE).unlink(missing_ok=True)


def plan_parts(
    source: Source,
    url: str,
    settings: WriteSettings,
    *,
    num_workers: int,
    on_hashing: Progress = lambda done, total: None,
) -> tuple[str, ...]:
    """Mark a URL as being written, and return the names of the shards that are to be written.

    Duplicates are searched here, and recorded for all parts.

    Raises:
        DataError: the URL or the source is not one that other processes see, the URL holds
            something else, or another process writes to it.
    """
    _check_shared(source, url)
    facts = settings.facts(source)
    try:
        with journal.locked(url) as lock:
            records = journal.open_journal(url, journal_facts(source, facts), lock)
            job = WriteJob(source, url, records, settings.checks)
            writer = DatasetWriter(job, facts, num_workers, on_hashing=on_hashing)
            return tuple(task.record_name for task in writer.read_state().pending)
    except (OSError, ImportError, ValueError) as error:  # the last two: fsspec, of the protocol
        raise write_error(url, error) from error


def write_part(plan: PlannedParts, source: Source, part: int, on_progress: Progress) -> None:
    """Write the shards of a part that are not finished, unless the set is published already."""
    facts, url = plan.settings.facts(source), plan.url
    try:
        with journal.locked(url, shared=True) as lock:
            if is_published(url):
                return
            records = journal.join_journal(url, journal_facts(source, facts), lock)
            job = WriteJob(source, url, records, plan.settings.checks)
            writer = DatasetWriter(job, facts, plan.num_workers, on_progress)
            writer.write_pending(writer.read_state({*plan.names_of(part)}))
    except OSError as error:
        raise write_error(url, error) from error


def publish_parts(plan: PlannedParts, source: Source, on_progress: Progress) -> Dataset:
    """Publish the set, after writing the shards that no part has finished."""
    settings = plan.settings
    return write_dataset(
        source,
        plan.url,
        seed=settings.seed,
        samples_per_shard=settings.samples_per_shard,
        shard_bytes=settings.shard_bytes,
        checks=settings.checks,
        num_workers=plan.num_workers,
        on_progress=on_progress,
    )


def _check_shared(source: Source, url: str) -> None:
    """Refuse sources and URLs that other nodes cannot see."""
    try:
        store, _ = filesystem.store_of(url)
    except (OSError, ImportError, ValueError) as error:
        raise write_error(url, error) from error
    if isinstance(store, MemoryFileSystem):
        problem = f"{url} is in the memory of this process, which no job sees"
        raise source_error(problem, url, "Write to a path or a store that all nodes see.")
    for samples in source.splits.values():
        origins = samples.origins if isinstance(samples, ShardSamples) else ()
        for origin in origins:
            if filesystem.local_path(origin) is None:
                raise source_error(
                    f"{origin} is remote: samples are read in another order, from copies on this "
                    "machine that no job sees",
                    origin,
                    "Copy the shards to a directory that all nodes see first, or write the set "
                    "here.",
                )
