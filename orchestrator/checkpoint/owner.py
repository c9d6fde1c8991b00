"""Whose the checkpoints at a `checkpoint.url` are: the store names the run that began there.

Two runs with one store would continue each other, and remove each other's checkpoints.
"""

import json
from pathlib import Path

from data_sharding.io import filesystem
from orchestrator.config.schema import Config
from orchestrator.run.copied_run import original_of
from orchestrator.run.rundir import RunDir, RunError

_NAME = "owner.json"


def owner(url: str) -> dict[str, str]:
    """Return the `uid` and `run` (its path) of the run that a store belongs to; {} for none."""
    try:
        found: dict[str, str] = json.loads(filesystem.read_bytes(filesystem.join(url, _NAME)))
    except FileNotFoundError:
        return {}
    return found


def claim(run: RunDir, config: Config) -> None:
    """Make a run the owner of its `checkpoint.url`; one that was moved stays it.

    Raises:
        RunError: the store belongs to another run, which may be what this one is a copy of.
    """
    url, uid = config.checkpoint.url, (run.read_json(run.identity_file) or {}).get("uid")
    if url is None or uid is None:  # a store of its own, or a run from before there were uids
        return
    where, path = filesystem.join(url, _NAME), str(run.path.absolute())
    mine = json.dumps({"uid": uid, "run": path}).encode()
    if not owner(url):
        filesystem.write_new(where, mine)
    found = owner(url)  # read back: a store without exclusive writes keeps the last of two
    if found["uid"] != uid or original_of(run, found["run"]):
        raise refusal(url, found)
    if not Path(found["run"]).exists():
        filesystem.write_bytes(where, mine)


def refusal(url: str, found: dict[str, str]) -> RunError:
    """Return what is wrong with another run's use of a store."""
    return RunError(
        f"checkpoint.url={url} belongs to the run {found['run']}. Another would continue its "
        "checkpoints and remove them. Start a new run with a checkpoint.url of its own, or without "
        f"(init_from={found['run']} takes that run's weights). If that run is given up, remove "
        f"what lies at {url}."
    )
