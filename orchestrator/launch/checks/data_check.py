"""Check that a data set is the one that the config describes, by its classes and some images."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import TypeAdapter

import conf
from data_sharding.format.location import Location
from data_sharding.format.manifest import Manifest, read_manifest
from data_sharding.tools.image_profile import ImageProfile, profile_images
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config, Expected

_EXPECTED = TypeAdapter(Expected)
_profiles: dict[tuple[Location, str], ImageProfile | None] = {}  # by place and fingerprint


def check_data_matches_config(config: Config, overrides: Sequence[str]) -> None:
    """Refuse a data set that mean, crops and name were not chosen for.

    Args:
        overrides: the overrides of the command line, which may request grey images explicitly.
    """
    data, train = config.data, read_manifest(config.data.location, "train")
    num_classes, profile = len(train.classes), _profile(data.location, train)
    suggestion = _matching_group(num_classes, profile, data.location)
    if data.expected and data.expected.name == data.name:
        differences = _differences(data.expected, num_classes, profile)
        if differences:
            raise ConfigError(
                f"data.name={data.name}, and the images at {data.location} are not: "
                f"{', '.join(differences)}. They would be trained on with {data.name}'s mean, std "
                "and crops, and filed under its name",
                value=str(data.location),
                hint=f"Nothing was started. {suggestion}, or "
                "data.name=NAME if these crops are meant for a set of yours.",
            )
    is_explicit = any(o.lstrip("+").startswith("data.in_channels=") for o in overrides)
    if profile and profile.num_coloured and data.in_channels == 1 and not is_explicit:
        raise ConfigError(
            f"data.in_channels=1, and {profile.num_coloured} of {profile.num_seen} images "
            f"read from {data.location} have colors, which would be lost",
            value=str(data.location),
            hint=f"Nothing was started. {suggestion}; or "
            "give data.in_channels=1 on the command line if grey images are intended.",
        )


def _profile(location: Location, train: Manifest) -> ImageProfile | None:
    """Profile a data set once for all points of a sweep."""
    key = (location, train.fingerprint)
    if key not in _profiles:
        _profiles[key] = profile_images(location, "train", train)
    return _profiles[key]


def _differences(expected: Expected, num_classes: int, profile: ImageProfile | None) -> list[str]:
    """List the differences between a data set and the expected one; without images, fewer."""
    differences = []
    if num_classes != expected.num_classes:
        differences.append(f"{num_classes:,} classes and not {expected.num_classes:,}")
    if profile is None:
        return differences
    if bool(profile.num_coloured) != expected.coloured:
        differences.append("they have colors" if profile.num_coloured else "they are grey")
    if expected.size and (others := profile.sizes - {expected.size}):
        width, height = min(others)
        differences.append("{} x {} pixels and not {} x {}".format(width, height, *expected.size))
    return differences


def _matching_group(num_classes: int, profile: ImageProfile | None, location: Location) -> str:
    """Suggest the config group of a data set: that of a known set, or the one for any."""
    shards = f"data.url={location}" if location.url else "with the same data.train and data.val"
    for file in sorted((Path(conf.__file__).parent / "data").glob("*.yaml")):
        values = yaml.safe_load(file.read_text())["expected"]
        if values and values["size"] and profile:
            expected = _EXPECTED.validate_json(json.dumps(values))
            if not _differences(expected, num_classes, profile):
                return f"Write data={file.stem} {shards}"
    return f"Write data=shards {shards}"
