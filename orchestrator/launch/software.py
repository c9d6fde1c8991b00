"""The software of a run: the code and the packages it was made with, and those it goes on with.

Bits are promised for equal software alone. So a run that goes on with other software says so, and
its directory keeps what each part of it was trained with.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.launch.git import git, tracks
from orchestrator.rundir import RunDir

_PACKAGES = (
    *("tahoe-orchestrator", "torch", "torchvision", "timm", "hydra-core", "mlflow"),
    *("webdataset", "fsspec", "numpy", "pillow", "safetensors"),
)
# What `git apply` reads, whatever the user's git is configured to show.
_PLAIN_DIFF = (
    *("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative"),
    *("--src-prefix=a/", "--dst-prefix=b/"),
)


def current_software() -> tuple[dict[str, Any], bytes]:
    """Return commit, Python and packages as run.json has them, and what lies beyond the commit."""
    found, patch = code_version(Path(__file__))
    if found and patch:
        found["patch_sha256"] = sha256(patch).hexdigest()
    python = sys.version.split()[0]
    return {"git": found, "python": python, "packages": _versions(_PACKAGES)}, patch


def note_software(run: RunDir) -> None:
    """Say and note that a run goes on with other software than before, if it does."""
    identity = run.read_json(run.identity_file) or {}
    before = [identity, *identity.get("continued_with", [])][-1]
    now, _ = current_software()
    changes = [*_changes(before, now)]
    if "packages" not in before or not changes:
        return
    identity.setdefault("continued_with", []).append({"time_s": time.time(), **now})
    run.write_json(run.identity_file, identity)
    print(
        f"note: {run.id} goes on with other software: {', '.join(changes)}. It continues, but "
        "not with the bits of a run that was left alone.",
        file=sys.stderr,
    )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is not as it was, as NAME OLD -> NEW."""
    old, new = _flat(before), _flat(now)
    for name, value in new.items():
        if name in old and old[name] != value:
            yield f"{name} {old[name]} -> {value}"


def _flat(software: Mapping[str, Any]) -> dict[str, str]:
    code = software.get("git") or {}
    commit = str(code.get("commit"))[:12]
    changed = f" with changes {str(code['patch_sha256'])[:8]}" if "patch_sha256" in code else ""
    flat = {"code": commit + changed, "Python": str(software.get("python"))}
    return flat | {name: str(value) for name, value in software.get("packages", {}).items()}


def code_version(file: Path) -> tuple[dict[str, Any] | None, bytes]:
    """Return the commit of the checkout that tracks a file, and what lies there beyond it.

    The second is a patch for `git apply`; it has no files that git does not know, which make the
    checkout dirty as well. None and an empty patch where no checkout tracks the file.
    """

    place = file.parent
    commit = git(place, "rev-parse", "HEAD")
    if commit is None or not tracks(file):
        return None, b""
    patch = git(place, "diff", "HEAD", *_PLAIN_DIFF) or b""
    is_dirty = bool(git(place, "status", "--porcelain"))
    return {"commit": commit.decode().strip(), "dirty": is_dirty}, patch


def _versions(packages: Sequence[str]) -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions
