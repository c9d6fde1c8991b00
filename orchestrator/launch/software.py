"""The software of a run: the code and the packages it was made with, and those it goes on with.

Bits are promised for equal software alone. So a run that goes on with other software says so, and
its directory keeps what each part of it was trained with.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.launch.git import git, tracks
from orchestrator.run.rundir import RunDir

_PACKAGES = (
    *("tahoe-orchestrator", "torch", "torchvision", "timm", "hydra-core", "mlflow"),
    *("webdataset", "fsspec", "numpy", "pillow", "safetensors"),
)
# What `git apply` reads, whatever the user's git is configured to show.
_PLAIN_DIFF = (
    *("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative"),
    *("--src-prefix=a/", "--dst-prefix=b/"),
)


def current_software(network: str) -> tuple[dict[str, Any], bytes]:
    """Return commit, Python and packages as run.json has them, and what lies beyond the commit.

    Args:
        network: its name; one of the user's own, `package.module:function`, is noted as well.
    """
    found, patch = _noted_code(Path(__file__))
    python = sys.version.split()[0]
    software = {"git": found, "python": python, "packages": _versions(_PACKAGES)}
    if ":" in network and (source := _source_of(network.partition(":")[0])):
        digest = sha256(source.read_bytes()).hexdigest()
        software["network"] = {"sha256": digest, "git": _noted_code(source)[0]}
    return software, patch


def record_software(run: RunDir) -> None:
    """Say and note that a run goes on with other software than before, if it does."""
    identity = run.read_json(run.identity_file) or {}
    before = [identity, *identity.get("continued_with", [])][-1]
    now, _ = current_software(run.read_config()["model"]["name"])
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
    flat = {"code": _shown(software.get("git")), "Python": str(software.get("python"))}
    if network := software.get("network"):
        flat["the network's file"] = network["sha256"][:8]
        flat["the network's checkout"] = _shown(network["git"])
    return flat | {name: str(value) for name, value in software.get("packages", {}).items()}


def _shown(code: Mapping[str, Any] | None) -> str:
    """Return a commit, and which changes lie beyond it."""
    code = code or {}
    commit = str(code.get("commit"))[:12]
    return commit + (f" with changes {code['patch_sha256'][:8]}" if "patch_sha256" in code else "")


def _source_of(module: str) -> Path | None:
    """Return the file of a module without importing it or its packages, which may take torch."""
    places, spec = None, None
    parts = module.split(".")
    for number in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: number + 1]), places)
        if spec is None:
            return None
        places = spec.submodule_search_locations
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def _noted_code(file: Path) -> tuple[dict[str, Any] | None, bytes]:
    """Return what `code_version` does, with the digest of the patch."""
    found, patch = code_version(file)
    return found | {"patch_sha256": sha256(patch).hexdigest()} if found and patch else found, patch


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
