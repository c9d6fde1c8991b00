"""Check that a data set is the one that the config describes, by its classes and some images."""

from collections.abc import Sequence

from data_sharding.format.image_profile import ImageProfile
from data_sharding.format.location import Location
from data_sharding.format.manifest import Manifest, read_manifest
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config, Data
from orchestrator.launch.checks.data_choice import (
    differences,
    general_group,
    is_default,
    matching_group,
    profile_of,
)


def check_data_matches_config(config: Config, overrides: Sequence[str]) -> None:
    """Refuse a data set that mean, crops and name were not chosen for; so each of a mixture.

    Args:
        overrides: the overrides of the command line, which may request grey images explicitly.
    """
    for location in config.data.train_locations:
        _check_images(location, config.data, overrides)


def _check_images(location: Location, data: Data, overrides: Sequence[str]) -> None:
    train = read_manifest(location, "train")
    profile = profile_of(location, train)
    suggestion = _suggest(train, profile, location)
    if profile is None and is_default(data, overrides):
        raise ConfigError(
            f"none of the images at {location} could be read to see what they are, and the command "
            f"chooses no data: they would be trained on with the settings of {data.name}",
            value=str(location),
            hint=f"Nothing was started. Check that they can be read, or choose: {suggestion}.",
        )
    if data.expected and data.expected.name == data.name:
        found = differences(data.expected, len(train.classes), profile)
        if found:
            raise ConfigError(
                f"data.name={data.name}, and the images at {location} are not: "
                f"{', '.join(found)}. They would be trained on with {data.name}'s mean, std "
                "and crops, and filed under its name",
                value=str(location),
                hint=f"Nothing was started. {suggestion}; or "
                "data.name=NAME if these crops are meant for a set of yours.",
            )
    is_explicit = any(o.lstrip("+").startswith("data.in_channels=") for o in overrides)
    if profile and profile.num_coloured and data.in_channels == 1 and not is_explicit:
        raise ConfigError(
            f"data.in_channels=1, and {profile.num_coloured} of {profile.num_seen} images "
            f"read from {location} have colors, which would be lost",
            value=str(location),
            hint=f"Nothing was started. {suggestion}; or "
            "give data.in_channels=1 on the command line if grey images are intended.",
        )


def _suggest(train: Manifest, profile: ImageProfile | None, location: Location) -> str:
    """Suggest the config group of a data set: that of a known set, or the one for any."""
    shards = f"data.url={location}" if location.url else "with the same data.train and data.val"
    known, general = matching_group(train, profile, or_part=True), general_group(profile)
    if known is None:
        return f"Write data={general} {shards}"
    return f"Write data={known} {shards} if it is that set, else data={general}"
