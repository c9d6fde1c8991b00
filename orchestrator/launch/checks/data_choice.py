"""Choose the config of a data set by what its manifest says of the images.

A command that names neither `data=` nor `experiment=` gets the group of the digits, the default. If
its data set is another one, the group follows the set.
"""

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

import conf
from data_sharding.errors import DataError
from data_sharding.format.image_profile import ImageProfile
from data_sharding.format.location import Location
from data_sharding.format.manifest import Manifest, read_manifest
from data_sharding.io.text import pluralize
from data_sharding.tools.image_profile import profile_images
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config, Data, Expected

_CHOOSING = {"data", "experiment", "data.name"}
_SIZING = ("data.image_size", "data.eval_protocol", "data.crop")
_EXPECTED = TypeAdapter(Expected)
_PHOTO_PX = 224  # at this size and above, the settings of `data=shards` are the usual ones
_SMALL_PX = 64  # images of one size up to this are padded and cropped, as CIFAR-10 is
_STEP_PX = 32  # by which networks reduce
_CROP_FRACTION = 0.875  # of the shorter side, in evaluation: 224 of 256
_WITHOUT_WORKERS_PX = 1024  # decoding fewer pixels costs less than a process
_MIN_PADDING, _PADDING_FRACTION = 1, 1 / 8
_profiles: dict[tuple[Location, str], ImageProfile | None] = {}  # by place and fingerprint


class DataGroupError(ConfigError):
    """The default group does not fit the data set; `overrides` choose what does."""

    overrides: tuple[str, ...] = ()


def check_default_data(config: Config, overrides: Sequence[str]) -> None:
    """Check that a data set for which no group is chosen is the one that the default is for.

    Args:
        overrides: the overrides of the command line; what they choose stays.

    Raises:
        DataGroupError: it is another one.
    """
    data = config.data
    if data.expected is None or not is_default(data, overrides):
        return
    location = data.train_locations[0]
    try:
        train = read_manifest(location, "train")
    except DataError:  # reported where it is needed
        return
    profile = profile_of(location, train)
    if profile is None or not differences(data.expected, len(train.classes), profile):
        return
    chosen = _choose(train, profile, _keys(overrides))
    error = DataGroupError(
        f"{location} has {profile} in {pluralize(len(train.classes), 'class')}, and "
        f"the command chooses no data: {' '.join(chosen)}",
        value=str(location),
        hint=f"Write {' '.join(chosen)}.",
    )
    error.overrides = chosen
    raise error


def is_default(data: Data, overrides: Sequence[str]) -> bool:
    """Check whether the settings are those of a known set that the command has not named."""
    is_known = data.expected is not None and data.expected.name == data.name
    return is_known and not _keys(overrides) & _CHOOSING


def _keys(overrides: Sequence[str]) -> AbstractSet[str]:
    return {override.lstrip("+~").partition("=")[0] for override in overrides}


def _choose(train: Manifest, profile: ImageProfile, given: AbstractSet[str]) -> tuple[str, ...]:
    """Return the overrides for a data set, without keys that are given."""
    group = matching_group(train, profile)
    if group is not None:
        return (f"data={group}",)
    chosen = [f"data={general_group(profile)}"]
    sizes = size_settings(profile)
    if not any(key.startswith(_SIZING) for key in given):
        chosen += [f"data.{k}={value}" for k, value in sizes.items() if f"data.{k}" not in given]
    if not given & {"model", "model.name"} and sizes.get("image_size") != _STEP_PX:
        chosen.append("model=resnet18")  # the default, LeNet-5, takes 32 pixels
    return tuple(chosen)


def profile_of(location: Location, train: Manifest) -> ImageProfile | None:
    """Return the profile of the training images; read some, once, if the manifest lacks it."""
    if train.images is not None:
        return train.images
    key = (location, train.fingerprint)
    if key not in _profiles:
        _profiles[key] = profile_images(location, "train", train)
    return _profiles[key]


def differences(expected: Expected, num_classes: int, profile: ImageProfile | None) -> list[str]:
    """List the differences between a data set and the expected one; without images, fewer."""
    found = []
    if num_classes != expected.num_classes:
        found.append(f"{num_classes:,} classes and not {expected.num_classes:,}")
    if profile is None:
        return found
    if bool(profile.num_coloured) != expected.coloured:
        found.append("they have colors" if profile.num_coloured else "they are grey")
    if expected.size and profile.size != expected.size:
        which = 0 if (profile.widths[0], profile.heights[0]) != expected.size else 2
        size = (profile.widths[which], profile.heights[which], *expected.size)
        found.append("{} x {} pixels and not {} x {}".format(*size))
    return found


def matching_group(
    train: Manifest, profile: ImageProfile | None, *, or_part: bool = False
) -> str | None:
    """Return the config group of the known data set that this is, or None.

    Args:
        or_part: accept a part of the training images of a set whose images have one size.
    """
    for group, expected in _known_sets().items():
        is_whole = train.num_samples == expected.num_train
        is_like_it = not differences(expected, len(train.classes), profile)
        if profile and is_like_it and (is_whole or (or_part and expected.size)):
            return group
    return None


def general_group(profile: ImageProfile | None) -> str:
    """Return the config group of any data set with such images."""
    return "shards_grey" if profile and not profile.num_coloured else "shards"


@cache
def _known_sets() -> Mapping[str, Expected]:
    files = sorted((Path(conf.__file__).parent / "data").glob("*.yaml"))
    values = {file.stem: yaml.safe_load(file.read_text()).get("expected") for file in files}
    return {name: _EXPECTED.validate_json(json.dumps(v)) for name, v in values.items() if v}


def size_settings(profile: ImageProfile) -> dict[str, Any]:
    """Return the keys of `data` that depend on the sizes of the images, where `shards` differs.

    The images of one small size keep it: training pads and crops them, as is usual with CIFAR-10.
    Others are scaled to a multiple of 32 pixels that their shorter side has, up to 224.
    """
    height, width = profile.heights[1], profile.widths[1]
    side, settings = min(height, width), dict[str, Any]()
    if profile.size and height == width and side <= _SMALL_PX:
        size = -(-side // _STEP_PX) * _STEP_PX
        padding = max(round(size * _PADDING_FRACTION), _MIN_PADDING)
        settings = {
            "image_size": size,
            "crop.mode": "random_crop_padded",
            "crop.padding": padding,
            "eval_protocol": f"center-{size}-of-{size}",
        }
    elif side < _PHOTO_PX:
        size = max(side // _STEP_PX * _STEP_PX, _STEP_PX)
        resized = round(size / _CROP_FRACTION)
        settings = {"image_size": size, "eval_protocol": f"center-{size}-of-{resized}"}
    if settings and not profile.num_coloured:
        settings["crop.hflip_prob"] = 0.0  # small grey images may be characters
    if width * height <= _WITHOUT_WORKERS_PX:
        settings["num_workers"] = 0
    return settings
