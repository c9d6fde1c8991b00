"""Stop the program if another package shadows one of Tahoe's.

`models`, `slurm` or `conf` may also exist elsewhere on a user's `sys.path`; importing the wrong one
would silently train the wrong network. The packages are located, not imported.
"""

from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("conf", "orchestrator", "data_sharding", "models", "slurm")


def check_not_shadowed() -> None:
    """Raise ImportError unless every package of Tahoe is found beside `orchestrator`."""
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = find_spec(name)
        location = Path(spec.origin).resolve() if spec and spec.origin else None
        expected = home / name / "__init__.py"
        if location != expected:
            raise ImportError(
                f"Tahoe's package '{name}' is shadowed: found {location}, expected {expected}. "
                "Tahoe would run code that is not its own. Start it from another directory, take "
                "that path off PYTHONPATH, set PYTHONSAFEPATH=1, or install Tahoe in a separate "
                "virtual environment."
            )
