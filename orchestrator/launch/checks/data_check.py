"""Whether a data set is what the config takes it for, by its classes and some of its images."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import TypeAdapter

import conf
from data_sharding.format.manifest import Manifest, read_manifest
from data_sharding.tools.image_profile import ImageProfile, profile_images
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config, Expected

_glimpses: dict[tuple[str, str], ImageProfile | None] = {}  # by URL and fingerprint


def check_data_matches_config(config: Config, overrides: Sequence[str]) -> None:
    """Refuse to train on another set than the one that mean, crops and name are of.

    Args:
        overrides: those of the command line, where grey views of colour images can be asked for.

    Raises:
        ConfigError: the images are not those of the named set, or are colours to be seen in grey.
    """
    data, train = config.data, read_manifest(config.data.url, "train")
    num_classes, glimpse = len(train.classes), _look(data.url, train)
    if data.expected and data.expected.name == data.name:
        wrong = _differences(data.expected, num_classes, glimpse)
        if wrong:
            raise ConfigError(
                f"data.name={data.name}, and the images at {data.url} are not: {', '.join(wrong)}. "
                f"They would be trained on with {data.name}'s mean, std and crops, and filed under "
                f"its name. Nothing was started. {_remedy(num_classes, glimpse, data.url)}, "
                "or data.name=NAME if these crops are meant for a set of yours."
            )
    asked = any(one.lstrip("+").startswith("data.in_channels=") for one in overrides)
    if glimpse and glimpse.num_coloured and data.in_channels == 1 and not asked:
        raise ConfigError(
            f"data.in_channels=1, and {glimpse.num_coloured} of {glimpse.num_seen} images looked "
            f"at in {data.url} have colours, which would be lost. Nothing was started. "
            f"{_remedy(num_classes, glimpse, data.url)}; or say data.in_channels=1 on the "
            "command line if grey is meant."
        )


def _look(url: str, train: Manifest) -> ImageProfile | None:
    """Look once at a set that is all points of a sweep's."""
    key = (url, train.fingerprint)
    if key not in _glimpses:
        _glimpses[key] = profile_images(url, "train", train)
    return _glimpses[key]


def _differences(expected: Expected, num_classes: int, glimpse: ImageProfile | None) -> list[str]:
    """Return in what a set differs from what is expected; images that nobody saw do not."""
    wrong = []
    if num_classes != expected.num_classes:
        wrong.append(f"{num_classes:,} classes and not {expected.num_classes:,}")
    if glimpse is None:
        return wrong
    if bool(glimpse.num_coloured) != expected.coloured:
        wrong.append("they have colours" if glimpse.num_coloured else "they are grey")
    others = glimpse.sizes - {expected.size}
    if expected.size and others:
        width, height = min(others)
        wrong.append("{} x {} pixels and not {} x {}".format(width, height, *expected.size))
    return wrong


def _remedy(num_classes: int, glimpse: ImageProfile | None, url: str) -> str:
    """Return what to write for a set: the group that is of it, or that of any."""
    for file in sorted((Path(conf.__file__).parent / "data").glob("*.yaml")):
        values = yaml.safe_load(file.read_text())["expected"]
        if values and values["size"] and glimpse:
            expected = _EXPECTED.validate_json(json.dumps(values))
            if not _differences(expected, num_classes, glimpse):
                return f"Write data={file.stem} data.url={url}"
    return f"Write data=shards data.url={url}"


_EXPECTED = TypeAdapter(Expected)
