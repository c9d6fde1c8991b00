"""The classes that a run was trained on, which other data must have in the same order."""

import json

from data_sharding.format.manifest import Manifest
from orchestrator.config.parse import ConfigError
from orchestrator.run.rundir import RunDir
from orchestrator.run.train_data import are_numbers

_MAX_NAMES = 3  # in messages


def own_classes(run: RunDir) -> tuple[str, ...]:
    """Return the names of a run's classes, in the order of its outputs."""
    return tuple(json.loads(run.classes_file.read_text()))


def check_classes(run: RunDir, url: str, data: Manifest) -> str:
    """Refuse data whose class numbers mean other classes than the run's; return what is unknown.

    Raises:
        ConfigError: the classes have other names, or another order.
    """
    own, other = own_classes(run), data.classes
    if sorted(own) == sorted(other) and own != other:
        number = next(
            i for i, names in enumerate(zip(own, other, strict=True)) if len({*names}) > 1
        )
        raise ConfigError(
            f"{url} has the classes of {run.id} in another order: class {number} is "
            f"{other[number]!r} there and {own[number]!r} in the run, so right predictions would "
            "count as wrong",
            value=url,
            hint="Write that set again with its classes in the run's order.",
        )
    nameless = [name for name, classes in ((run.id, own), (url, other)) if are_numbers(classes)]
    if nameless:
        return (
            f"the classes of {' and '.join(nameless)} are numbers: whether class n of {run.id} "
            f"is class n of {url} cannot be checked"
        )
    if own != other:
        missing, unknown = _difference(own, other), _difference(other, own)
        raise ConfigError(
            f"{url} has other classes than {run.id}: it lacks {missing} of the run's, and "
            f"{unknown} are not in the run, so no metric would mean anything",
            value=url,
            hint="Say which class of the run each label is with `tahoe evaluate --class-map FILE`, "
            "or take data of the same classes; if only the names differ, give that set the run's: "
            "`tahoe shard index URL --classes FILE`.",
        )
    return ""


def _difference(names: tuple[str, ...], others: tuple[str, ...]) -> str:
    known = set(others)
    missing = [name for name in names if name not in known]
    shown = [*missing[:_MAX_NAMES], *["..."] * (len(missing) > _MAX_NAMES)]
    return f"{len(missing):,} ({', '.join(shown)})"
