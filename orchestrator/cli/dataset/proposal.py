"""A config of a data set, proposed by its statistics: the file conf/data/NAME.yaml."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

import conf
from data_sharding.errors import DataError
from data_sharding.format.image_profile import ImageProfile
from data_sharding.format.location import Location
from data_sharding.io.atomic_file import write_atomic
from data_sharding.tools.stats import Stats
from orchestrator.config.schema import Data
from orchestrator.launch.checks.data_choice import size_settings

Values = dict[str, Any]

_PLACE_KEYS = ("url", "train", "val", "manifest", "fold")
_SAMPLE_KEYS = ("image", "label", "multi_label", "class_map")
_GROUP = Path("conf", "data")  # searched in the working directory


def propose_config(data: str | Data, stats: Stats, name: str | None = None) -> Values | None:
    """Return the values of a file of the group `data`, or None if no image could be read.

    Args:
        data: the URL of the data set, or a config that says where it is and what its samples are.
        stats: those of the training split.
        name: name of the data set; None for that of its directory.
    """
    if not stats.mean:
        return None
    location = Location.of(data) if isinstance(data, str) else data.location
    values: Values = {"defaults": ["shards", "_self_"], "name": name or _name(location)}
    if isinstance(data, str):
        values["url"] = data
    else:
        given = {key: getattr(data, key) for key in (*_PLACE_KEYS, *_SAMPLE_KEYS)}
        given["url"] = location.url
        values |= {
            key: value
            for key, value in given.items()
            if value not in (None, ()) and value is not False
        }
    values |= {
        "in_channels": len(stats.mean),
        "mean": [round(x, 4) for x in stats.mean],
        "std": [max(round(x, 4), 1e-4) for x in stats.std],
    }
    return values | _sizes(stats)


def to_yaml(values: Values) -> str:
    """Return the content of the file."""
    plain = json.loads(json.dumps(values))  # tuples as lists
    text: str = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=118)
    return f"# Proposed by `tahoe shard stat`; conf/data/shards.yaml explains the keys.\n{text}"


def check_output(path: Path) -> None:
    """Refuse a file that exists, or that would not be found as a choice of its own.

    Raises:
        DataError: it is refused.
    """
    shipped = Path(conf.__file__).parent / "data" / path.name
    reasons = {
        "it has another extension than .yaml": path.suffix != ".yaml",
        "it exists already": path.exists(),
        "Tahoe has a config of that name, which would hide it": shipped.exists(),
    }
    for reason, applies in reasons.items():
        if applies:
            raise DataError(
                f"{path}: {reason}; nothing was written",
                value=str(path),
                hint=f"Choose another name, such as {_GROUP / 'mine.yaml'}.",
            )


def write_config(path: Path, values: Values) -> None:
    """Write the file, and its directory; raises DataError."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, to_yaml(values))
    print(f"wrote {path}: {train_command(values)}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise DataError if the block cannot write the file that the option -o names."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}",
            value=str(path),
            hint="Give another path with -o.",
        ) from error


def train_command(values: Values) -> str:
    """Return the command that trains with the file; LeNet-5, the default, takes 32 pixels."""
    model = "" if values["image_size"] == 32 else " model=resnet18"
    return f"tahoe train data={values['name']}{model}"


def _sizes(stats: Stats) -> Values:
    num = stats.formats.total()
    num_coloured = num if len(stats.mean) == 3 else 0
    sides = (_pixels(stats.widths), _pixels(stats.heights))
    profile = ImageProfile(num, num_coloured, *sides, dict(stats.formats))
    sizes: Values = {"image_size": 224, "crop": {}, "eval_protocol": "center-224-of-256"}
    for key, value in {"num_workers": 2, **size_settings(profile)}.items():
        section, _, name = key.rpartition(".")
        (sizes[section] if section else sizes)[name] = value
    return {key: value for key, value in sizes.items() if value != {}}


def _pixels(percentiles: tuple[float, ...]) -> tuple[int, int, int]:
    low, median, high = (max(round(x), 1) for x in percentiles)
    return low, median, high


def _name(location: Location) -> str:
    directory = location.url or location.base("train")
    return re.sub(r"[^\w.-]+", "_", directory.rstrip("/").rpartition("/")[2]) or "mine"
