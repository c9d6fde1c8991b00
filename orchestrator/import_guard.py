"""Tahoe's packages have plain names; this stops the program when a foreign package shadows one.

`models`, `slurm` or `conf` may also exist elsewhere on a user's `sys.path`. Importing the wrong one
would train the wrong network without a word, so the mistake is made loud. Costs no import of the
packages: only their location is looked up.
"""

from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("conf", "orchestrator", "data_sharding", "models", "slurm")


def check_not_shadowed() -> None:
    """Raise ImportError unless every package of Tahoe is found beside `orchestrator`."""
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        expected = home / name / "__init__.py"
        if found != expected:
            raise ImportError(
                f"Tahoe's package '{name}' is shadowed: found {found}, expected {expected}. "
                "Tahoe would run code that is not its own. Start it from another directory, take "
                "that place off PYTHONPATH, set PYTHONSAFEPATH=1, or give Tahoe a virtual "
                "environment of its own."
            )
