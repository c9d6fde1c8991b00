"""What git says of a directory; nothing where there is no git, or no checkout."""

import subprocess
from pathlib import Path


def git(place: Path, *arguments: str) -> bytes | None:
    """Return what a command of git prints at a place, or None if it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(place), *arguments], capture_output=True, check=False
        )
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout if done.returncode == 0 else None


def tracks(file: Path) -> bool:
    """Whether a checkout tracks a file: an installed wheel may lie inside another project."""
    return git(file.parent, "ls-files", "--error-unmatch", file.name) is not None
