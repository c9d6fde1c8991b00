"""The software of a run: the versions of code and packages, at its start and whenever they change.

Only equal software gives equal bits, so a run that continues with other software prints a note, and
its directory records which attempts used which.
"""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.run.rundir import RunDir

_PACKAGES = (
    *("tahoe-orchestrator", "torch", "torchvision", "timm", "hydra-core", "mlflow"),
    *("webdataset", "fsspec", "numpy", "pillow", "safetensors"),
)
# A patch that `git apply` reads, whatever the user's git is configured to show.
_PLAIN_DIFF = (
    *("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative"),
    *("--src-prefix=a/", "--dst-prefix=b/"),
)


def current_software(model_name: str) -> tuple[dict[str, Any], bytes]:
    """Return commit, Python and packages as run_info.json holds them, and uncommitted changes.

    Args:
        model_name: the network; the file of `package.module:function` is recorded as well.
    """
    git_state, patch = _code_version_with_digest(Path(__file__))
    python = sys.version.split()[0]
    software = {"git": git_state, "python": python, "packages": _versions(_PACKAGES)}
    if ":" in model_name and (source := _source_of(model_name.partition(":")[0])):
        digest = sha256(source.read_bytes()).hexdigest()
        software["network"] = {"sha256": digest, "git": _code_version_with_digest(source)[0]}
    return software, patch


def record_software(run: RunDir) -> None:
    """Print and record changes of the software of a run that continues."""
    identity = run.read_json(run.identity_file) or {}
    before = [identity, *identity.get("continued_with", [])][-1]
    now, _ = current_software(run.read_config()["model"]["name"])
    old, new = _flat(before), _flat(now)
    changes = [f"{k} {old[k]} -> {v}" for k, v in new.items() if k in old and old[k] != v]
    if "packages" not in before or not changes:
        return
    identity.setdefault("continued_with", []).append({"time_s": time.time(), **now})
    run.write_json(run.identity_file, identity)
    print(
        f"note: {run.id} continues with other software: {', '.join(changes)}. Its bits will differ "
        "from those of an uninterrupted run.",
        file=sys.stderr,
    )


def _flat(software: Mapping[str, Any]) -> dict[str, str]:
    flat = {"code": _commit(software.get("git")), "Python": str(software.get("python"))}
    if network := software.get("network"):
        flat["the network's file"] = network["sha256"][:8]
        flat["the network's checkout"] = _commit(network["git"])
    return flat | {name: str(value) for name, value in software.get("packages", {}).items()}


def _commit(git_state: Mapping[str, Any] | None) -> str:
    """Format a commit, and the digest of the changes beyond it."""
    git_state = git_state or {}
    patch = git_state.get("patch_sha256")
    return str(git_state.get("commit"))[:12] + (f" with changes {patch[:8]}" if patch else "")


def _source_of(module: str) -> Path | None:
    """Find the file of a module without importing it or its packages, which may need torch."""
    paths, spec = None, None
    parts = module.split(".")
    for number in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: number + 1]), paths)
        if spec is None:
            return None
        paths = spec.submodule_search_locations
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def _code_version_with_digest(file: Path) -> tuple[dict[str, Any] | None, bytes]:
    state, patch = code_version(file)
    return state | {"patch_sha256": sha256(patch).hexdigest()} if state and patch else state, patch


def code_version(file: Path) -> tuple[dict[str, Any] | None, bytes]:
    """Return the commit of the checkout that tracks a file, and a patch for `git apply`.

    The patch lacks untracked files, though they make the checkout dirty as well. None and an empty
    patch where no checkout tracks the file.
    """
    commit = git(file.parent, "rev-parse", "HEAD")
    if commit is None or not is_tracked(file):
        return None, b""
    patch = git(file.parent, "diff", "HEAD", *_PLAIN_DIFF) or b""
    is_dirty = bool(git(file.parent, "status", "--porcelain"))
    return {"commit": commit.decode().strip(), "dirty": is_dirty}, patch


def git(directory: Path, *arguments: str) -> bytes | None:
    """Run a command of git and return its output, or None if it fails or git is missing."""
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout if done.returncode == 0 else None


def is_tracked(file: Path) -> bool:
    """Check whether a checkout tracks a file: an installed wheel may be inside another project."""
    return git(file.parent, "ls-files", "--error-unmatch", file.name) is not None


def _versions(packages: Sequence[str]) -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions
