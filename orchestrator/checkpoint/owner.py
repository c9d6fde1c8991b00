"""The owner of a `checkpoint.url`: the store names the run that began there.

Two runs with one store would resume from, and remove, each other's checkpoints.
"""

import json
from pathlib import Path

from data_sharding.io import filesystem
from orchestrator.config.schema import Config
from orchestrator.run.rundir import RunDir, RunError, original_of

_NAME = "owner.json"


def owner(url: str) -> dict[str, str]:
    """Read the `uid` and `run` (its path) of the run that owns a store; {} without an owner."""
    try:
        values: dict[str, str] = json.loads(filesystem.read_bytes(filesystem.join(url, _NAME)))
    except FileNotFoundError:
        return {}
    return values


def claim(run: RunDir, config: Config) -> None:
    """Make a run the owner of its `checkpoint.url`; a moved run remains the owner.

    Raises:
        RunError: the store belongs to another run, such as the original of a copied run.
    """
    store_url, uid = config.checkpoint.url, (run.read_json(run.identity_file) or {}).get("uid")
    if store_url is None or uid is None:
        return
    url, path = filesystem.join(store_url, _NAME), str(run.path.absolute())
    claimed = json.dumps({"uid": uid, "run": path}).encode()
    if not owner(store_url):
        filesystem.write_new(url, claimed)
    current = owner(store_url)  # read back: without exclusive writes, the last of two wins
    if current["uid"] != uid or original_of(run, current["run"]):
        raise refusal(store_url, current["run"])
    if not Path(current["run"]).exists():
        filesystem.write_bytes(url, claimed)


def refusal(url: str, owner_path: str) -> RunError:
    """Build the error for a store that belongs to another run."""
    return RunError(
        f"checkpoint.url={url} belongs to the run {owner_path}, and a second run would resume from "
        "its checkpoints and remove them",
        value=url,
        hint="Start a new run with another checkpoint.url, or without one "
        f"(init_from={owner_path} starts from its weights). If that run is obsolete, remove {url}.",
    )
