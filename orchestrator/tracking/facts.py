"""What a run says of itself to a tracking server: params, tags, the figures its paper published."""

import getpass
import os
from collections.abc import Mapping
from typing import Any

from orchestrator.config import flatten
from orchestrator.rundir import RunDir
from orchestrator.tracking.outcome import attempts
from orchestrator.tracking.outgoing import as_text, legal_name, redacted

# The limits of MLflow 3 (mlflow/utils/validation.py); a longer value would be cut without a sign.
MAX_PARAM_CHARACTERS = 6000
MAX_TAG_CHARACTERS = 8000


def params(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the config flattened with dots, without secrets and the published figures."""
    model = {key: value for key, value in _section(config, "model").items() if key != "published"}
    flat = flatten(redacted({**config, "model": model}))
    return {legal_name(key): as_text(value, MAX_PARAM_CHARACTERS) for key, value in flat.items()}


def published(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers that the paper of the model published, named `published/...`."""
    return {
        legal_name(f"published/{key}"): value
        for key, value in _published(config).items()
        if key != "year" and _is_number(value)
    }


def identity_tag(run: RunDir) -> tuple[str, str]:
    """Return the tag by which the MLflow run of a run directory is found again."""
    uid = (run.read_json(run.identity_file) or {}).get("uid")
    return ("tahoe.uid", str(uid)) if uid else ("tahoe.run_dir", _path(run))


def creation_tags(run: RunDir) -> dict[str, str]:
    """Return the tags that an MLflow run is made with, and keeps."""
    key, value = identity_tag(run)
    return {"mlflow.runName": run.id, "mlflow.user": user(), "tahoe.run_id": run.id, key: value}


def tags(run: RunDir, config: Mapping[str, Any]) -> dict[str, str]:
    """Return what one filters runs by; what is not known is left out."""
    identity = run.read_json(run.identity_file) or {}
    git, data = _section(identity, "git"), _section(config, "data")
    latest = attempts(run).get(run.num_attempts, {})
    said = {key: value for key, value in _published(config).items() if not _is_number(value)}
    found = {
        "tahoe.run_dir": _path(run),
        "model": _section(config, "model").get("name"),
        "year": _published(config).get("year"),
        "data": data.get("name"),
        "protocol": data.get("protocol"),
        "seed": config.get("seed"),
        "git_commit": git.get("commit"),
        "git_dirty": git.get("dirty"),
        "mlflow.source.git.commit": git.get("commit"),
        "attempts": run.num_attempts,
        **{key: latest.get(key) for key in ("world_size", "host", "slurm_job_id", "nodes")},
        **{legal_name(f"published/{key}"): value for key, value in said.items()},
    }
    known = {key: value for key, value in found.items() if value is not None}
    return {key: as_text(value, MAX_TAG_CHARACTERS) for key, value in redacted(known).items()}


def _section(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, Mapping) else {}


def _published(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return _section(_section(config, "model"), "published")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _path(run: RunDir) -> str:
    return str(run.path.resolve())


def user() -> str:
    """Return who runs this, as MLflow's pages show it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for this user
        return str(os.getuid())
