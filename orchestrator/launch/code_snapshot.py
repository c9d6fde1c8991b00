"""The code of a run: copied into its directory, so that edits do not reach a job that waits.

What is copied is what git knows of the checkout and what it does not ignore. Where a package is
installed and not checked out, there is nothing that an edit could change, and nothing is copied.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from orchestrator.launch.git import git, tracks
from orchestrator.run.rundir import RunDir, RunError


def snapshot_code(run: RunDir, max_mb: float) -> tuple[str, ...]:
    """Copy the checkouts of Tahoe and of the working directory; return where modules come from.

    Returns:
        What a job's PYTHONPATH is: that of this process, with the copies for the checkouts.

    Raises:
        RunError: a checkout is larger than that.
    """
    copies: dict[Path, Path] = {}
    for root in _checkouts():
        copies[root] = run.code_dir / f"{len(copies)}-{root.name}"
        _copy(root, copies[root], max_mb)
    path = [Path(entry).absolute() for entry in _python_path() if entry]
    moved = [_relocate(entry, copies) for entry in path]
    tahoe = _relocate(_home(), copies)
    return tuple(map(str, dict.fromkeys([*moved, *([tahoe] if tahoe != _home() else [])])))


def current_python_path() -> tuple[str, ...]:
    """Return what a job's PYTHONPATH is without copies: that of this process."""
    return tuple(str(Path(entry).absolute()) for entry in _python_path() if entry)


def _python_path() -> list[str]:
    return os.environ.get("PYTHONPATH", "").split(os.pathsep)


def _home() -> Path:
    """Return the directory that Tahoe's packages lie in."""
    return Path(__file__).resolve().parent.parent.parent


def _checkouts() -> Iterator[Path]:
    """Yield the roots of the checkouts whose code a run may use."""
    found = set()
    for place in (_home(), Path.cwd()):
        top = git(place, "rev-parse", "--show-toplevel")
        if top is None or (place == _home() and not tracks(Path(__file__).resolve())):
            continue
        root = Path(os.fsdecode(top.rstrip(b"\n")))
        if root not in found:
            found.add(root)
            yield root


def _copy(root: Path, target: Path, max_mb: float) -> None:
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard") or b""
    files = [Path(os.fsdecode(name)) for name in listed.split(b"\0") if name]
    files = [file for file in files if (root / file).is_file()]  # not those removed or submodules
    sizes = {file: (root / file).stat().st_size for file in files}
    if sum(sizes.values()) > max_mb * 1e6:
        largest = sorted(sizes, key=lambda file: -sizes[file])[:3]
        raise RunError(
            f"the checkout {root} has {sum(sizes.values()) / 1e6:,.0f} MB that git does not ignore "
            f"(the largest: {', '.join(map(str, largest))}), and slurm.code_snapshot_max_mb allows "
            f"{max_mb:g}. Nothing was submitted. Let git ignore what is no code, allow more, or "
            "say slurm.code_snapshot_max_mb=null to run the code in place."
        )
    if target.exists():
        shutil.rmtree(target)
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / file, target / file)


def _relocate(path: Path, copies: dict[Path, Path]) -> Path:
    for root, copy in copies.items():
        if path.is_relative_to(root):
            return copy / path.relative_to(root)
    return path
