"""`tahoe shard`: write a data set, with progress and a word on what was left out."""

import argparse

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_sharding import sources
from data_sharding.write import write_dataset


def write(options: argparse.Namespace) -> int:
    """Write the source that the options name to their URL; return the exit code.

    Raises:
        DataError: the source cannot be read, or the URL holds something else.
    """
    if options.source == "digits":
        source = sources.digits(options.val_fraction, options.seed)
    else:
        source = sources.folder(options.directory, options.val_fraction, options.seed)
    console = Console(soft_wrap=True, highlight=False)
    columns = (TextColumn("images"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("writing", total=None)
        dataset = write_dataset(
            source,
            options.url,
            seed=options.seed,
            samples_per_shard=options.samples_per_shard,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    how = "was there already and is kept" if dataset.reused else "is written"
    console.print(f"{options.url} {how}", markup=False)
    for split, manifest in sorted(dataset.manifests.items()):
        console.print(
            f"  {split}: {manifest.num_samples:,} images of {len(manifest.classes)} classes in "
            f"{len(manifest.shards)} shards, {manifest.num_bytes / 1e6:.1f} MB"
        )
    if source.ignored:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(source.ignored.items()))
        console.print(f"  passed over, since they are not images: {kinds}", markup=False)
    return 0
