"""Copy the code of a run into its directory, so that edits do not reach a pending job.

Copied are the files that git tracks or does not ignore. Code that is installed, and not checked
out, cannot be edited by accident, and is not copied.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from orchestrator.launch.software import git, is_tracked
from orchestrator.run.rundir import RunDir, RunError

_HOME = Path(__file__).resolve().parent.parent.parent  # of Tahoe's packages


def snapshot_code(run: RunDir, max_mb: float) -> tuple[str, ...]:
    """Copy the checkouts of Tahoe and of the working directory.

    Returns:
        The PYTHONPATH of a job: that of this process, with the copies in place of the checkouts.
    """
    copies: dict[Path, Path] = {}
    for root in _checkouts():
        copies[root] = run.code_dir / f"{len(copies)}-{root.name}"
        _copy(root, copies[root], max_mb)
    paths = [_relocate(Path(entry), copies) for entry in current_python_path()]
    tahoe = _relocate(_HOME, copies)
    return tuple(map(str, dict.fromkeys([*paths, *([tahoe] if tahoe != _HOME else [])])))


def current_python_path() -> tuple[str, ...]:
    """Return the PYTHONPATH of this process as absolute paths."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return tuple(str(Path(entry).absolute()) for entry in entries if entry)


def _checkouts() -> Iterator[Path]:
    """Yield the roots of the checkouts whose code a run may use."""
    roots = set()
    for directory in (_HOME, Path.cwd()):
        top = git(directory, "rev-parse", "--show-toplevel")
        if top is None or (directory == _HOME and not is_tracked(Path(__file__).resolve())):
            continue
        root = Path(os.fsdecode(top.rstrip(b"\n")))
        if root not in roots:
            roots.add(root)
            yield root


def _copy(root: Path, target: Path, max_mb: float) -> None:
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard") or b""
    names = [Path(os.fsdecode(name)) for name in listed.split(b"\0") if name]
    # is_file: neither removed files nor submodules
    sizes = {name: (root / name).stat().st_size for name in names if (root / name).is_file()}
    total_mb = sum(sizes.values()) / 1e6
    if total_mb > max_mb:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        raise RunError(
            f"the checkout {root} has {total_mb:,.0f} MB that git does not ignore (the largest: "
            f"{', '.join(map(str, largest))}), and slurm.code_snapshot_max_mb allows {max_mb:g}",
            value=root,
            hint="Nothing was submitted. Let git ignore files that are not code, raise the limit, "
            "or run the code in place with slurm.code_snapshot_max_mb=null.",
        )
    if target.exists():
        shutil.rmtree(target)
    for name in sizes:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target / name)


def _relocate(path: Path, copies: dict[Path, Path]) -> Path:
    for root, copy in copies.items():
        if path.is_relative_to(root):
            return copy / path.relative_to(root)
    return path
