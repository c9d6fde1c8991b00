"""`tahoe shard`: the commands that write data sets, and those that inspect them."""

from orchestrator.cli.shared.commands import LazyGroup

_WRITE, _INSPECT = "orchestrator.cli.dataset.write", "orchestrator.cli.dataset.inspect"
_WRITERS = ("digits", "folder", "csv", "imagenet", "cifar", "webdataset", "merge", "split")

shard = LazyGroup(
    "shard",
    {
        **{name: f"{_WRITE}:{name}" for name in _WRITERS},
        **{name: f"{_INSPECT}:{name}" for name in ("index", "verify", "stat", "preview")},
    },
    help="Write, check and inspect data sets of shards.",
)
