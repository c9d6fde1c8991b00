"""The classes that a run was trained on, which other data must have in the same order."""

import json

from data_sharding.errors import DataError
from data_sharding.format.manifest import Manifest, read_manifest
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.run.rundir import RunDir
from orchestrator.training.inputs.datasets import check_fingerprint

_SHOWN = 3  # names


def own_classes(run: RunDir, config: Config) -> tuple[str, ...]:
    """Return the names of a run's classes, in the order of its outputs.

    Raises:
        DataError: it is from before they were kept, and its data set is gone or another one.
    """
    if run.classes_file.exists():
        return tuple(json.loads(run.classes_file.read_text()))
    val = read_manifest(config.data.url, "val")
    check_fingerprint(run, config.data.url, {"val": val})
    return val.classes


def check_classes(run: RunDir, config: Config, url: str, data: Manifest) -> str:
    """Refuse data on which a run's answers would mean other classes; return what is not known.

    Args:
        config: the run's own.

    Raises:
        ConfigError: the classes have other names, or another order.
    """
    try:
        ours, theirs = own_classes(run, config), data.classes
    except DataError:
        return f"what the classes of {run.id} are is not known: those of {url} are taken for them"
    nameless = [what for what, names in ((run.id, ours), (url, theirs)) if _are_numbers(names)]
    if sorted(ours) == sorted(theirs) and ours != theirs:
        place = next(
            i for i, (own, other) in enumerate(zip(ours, theirs, strict=True)) if own != other
        )
        raise ConfigError(
            f"{url} has the classes of {run.id} in another order: class {place} is "
            f"{theirs[place]!r} there and {ours[place]!r} in the run. Right answers would count as "
            "wrong. Write that set again with its classes in the run's order."
        )
    if ours != theirs and not nameless:
        lacking, unknown = (_listed(a, b) for a, b in ((ours, theirs), (theirs, ours)))
        raise ConfigError(
            f"{url} has other classes than {run.id}: of the run's {lacking} are not there, and "
            f"{unknown} are there alone. No figure would mean anything. Take data of the same "
            "classes; if only the names differ, give that set the run's: `tahoe shard index URL "
            "--classes FILE`."
        )
    if nameless:
        return (
            f"the classes of {' and '.join(nameless)} are numbers: whether class n of {run.id} "
            f"is class n of {url} cannot be checked"
        )
    return ""


def _are_numbers(names: tuple[str, ...]) -> bool:
    """Whether they are what classes without names are called."""
    return names == tuple(map(str, range(len(names))))


def _listed(names: tuple[str, ...], others: tuple[str, ...]) -> str:
    known = set(others)
    lacking = [name for name in names if name not in known]
    return (
        f"{len(lacking):,} ({', '.join([*lacking[:_SHOWN], *['...'] * (len(lacking) > _SHOWN)])})"
    )
