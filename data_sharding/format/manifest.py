"""Manifests: all that planning a run needs to know about the shards of a split.

`URL/train/manifest.json` and `URL/val/manifest.json` each list the shards beside them; manifests of
other shards are where `format.location` says. A manifest is written after its shards, so a split
that has one is complete. Its values are checked when it is read; no name of a shard leads out of
the directory that the names are relative to.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, field, replace
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass

from data_sharding.errors import DataError, MissingManifestError, UnavailableError
from data_sharding.format.image_profile import ImageProfile
from data_sharding.format.labels import LabelRule
from data_sharding.format.location import Location, find_file, fold_name, write_files
from data_sharding.format.sample_rule import ClassLabels, SampleRule, check_image
from data_sharding.format.shard_table import ShardInfo as ShardInfo  # noqa: PLC0414  exported here too
from data_sharding.format.shard_table import ShardTable, TableFile
from data_sharding.io import filesystem

FORMAT = "tahoe-shards-1"
FILE_NAME = "manifest.json"
SPLITS = ("train", "val")
PUBLISH_ORDER = SPLITS[::-1]  # a data set is complete when train has its manifest
TABLE_NAME = "shards.safetensors"
_MAX_LISTED = 10_000  # shards; more are a table in a file of its own, mapped and not parsed


def _as_table(shards: Any) -> ShardTable:
    return shards if isinstance(shards, ShardTable) else ShardTable.from_infos(shards)


@dataclass(frozen=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
class Manifest:
    """The shards of a split, in order; label i is the class `classes[i]`.

    `source` records how the shards were made, in plain JSON values; of it, only the digest of a
    class map is compared.
    `image` and `class_labels` are as in `SampleRule`; the counts are of the samples that it keeps.
    `samples_per_class` counts the samples that show each class, where a sample has several labels;
    None where it has one, or was written before they were counted. `num_folds` is the number of
    folds at the URL of a fold.
    `images` says what some of the images are; it is no part of the identity of the data.
    """

    classes: tuple[str, ...]
    shards: Annotated[ShardTable, BeforeValidator(_as_table)]
    source: Mapping[str, Any]
    labels: LabelRule = LabelRule()
    image: Annotated[str, AfterValidator(check_image)] | None = None
    class_labels: ClassLabels | None = None
    samples_per_class: tuple[int, ...] | None = None
    images: ImageProfile | None = field(default=None, compare=False)
    num_folds: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.classes and self.labels.kind != "none":
            raise ValueError("there are no classes")
        repeated = next((name for name, num in Counter(self.classes).items() if num > 1), None)
        if repeated is not None:
            raise ValueError(f"the class {repeated!r} is listed twice")
        self._check_class_labels()
        self.shards.check()
        self._check_samples_per_class()
        return self

    def _check_class_labels(self) -> None:
        if self.class_labels is None:
            return
        if len(self.class_labels) != len(self.classes):
            raise ValueError(
                f"class_labels has {len(self.class_labels)} classes, and there are "
                f"{len(self.classes)}"
            )
        labels = Counter(label for labels in self.class_labels for label in labels)
        repeated = next((label for label, num in labels.items() if num > 1), None)
        if repeated is not None:
            raise ValueError(f"class_labels has the label {repeated!r} twice")

    def _check_samples_per_class(self) -> None:
        counts = self.samples_per_class
        if counts is not None and (
            len(counts) != len(self.classes)
            or not all(0 <= count <= self.num_samples for count in counts)
        ):
            raise ValueError("samples_per_class does not fit the classes and the samples")

    @cached_property
    def rule(self) -> SampleRule:
        """The rule by which the samples are read from the shards."""
        return SampleRule(self.labels, self.image, self.class_labels)

    @cached_property
    def class_indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.classes)}

    def parse_labels(self, data: bytes) -> tuple[int, ...]:
        """Parse the labels in a member's bytes to class indices; raises BadLabelError."""
        return self.rule.parse(data, self.class_indices)

    @property
    def num_samples(self) -> int:
        return int(self.shards.num_samples.sum())

    @property
    def num_bytes(self) -> int:
        return int(self.shards.num_bytes.sum())

    @property
    def fingerprint(self) -> str:
        """The identity of the data: a SHA-256 (hex) that changes with any byte of any shard.

        If the digests of the shards are not whole, only with the bytes that they cover.
        """
        identity: list[Any] = [self.classes, asdict(self.labels), self.shards.sha256]
        if self.rule != SampleRule(self.labels):
            identity += [self.image, self.class_labels]
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def url_of(where: str | Location, split: str) -> str:
    """Return the URL of a split's manifest."""
    return find_file(Location.of(where), split, FILE_NAME)


def has_manifest(where: str | Location, split: str) -> bool:
    """Check whether a split has a manifest; raises what its store raises."""
    location = Location.of(where)
    with suppress(PermissionError):
        return split in location.splits and filesystem.exists(url_of(location, split))
    return False


def read_manifests(where: str | Location) -> dict[str, Manifest]:
    """Read the manifests of those splits or folds that a data set has, at least one."""
    location = Location.of(where)
    if location.fold is not None:
        return {split: read_manifest(location, split) for split in SPLITS}
    manifests, missing = dict[str, Manifest](), list[MissingManifestError]()
    for split in location.splits:
        try:
            manifests[split] = read_manifest(location, split)
        except MissingManifestError as error:
            missing.append(error)
    if not manifests and location.url is not None:
        folds = [fold_name(fold) for fold in range(_num_folds(location))]
        manifests = {fold: read_manifest(location, fold) for fold in folds}
    if not manifests:
        raise missing[0]
    return manifests


def read_manifest(where: str | Location, split: str) -> Manifest:
    """Read the manifest of a split.

    Raises:
        DataError: it does not exist, cannot be read, or has impossible values.
    """
    location = Location.of(where)
    if location.fold is not None and split == "train":
        return _read_other_folds(location)
    manifest_url = location.files(split, FILE_NAME)[0]
    try:
        manifest_url = url_of(location, split)
        data = filesystem.read_bytes(manifest_url)
    except FileNotFoundError:
        return _read_own(location, split)
    except DataError:
        raise
    except PermissionError as error:
        if not location.has_named_files:
            raise _cannot_read(manifest_url, error) from error
        return _read_own(location, split)
    except Exception as error:  # also of unknown protocols, missing packages, bad options
        raise _cannot_read(manifest_url, error) from error
    return _parse(data, location, split, manifest_url)


def _read_other_folds(location: Location) -> Manifest:
    """Read the manifests of all folds but that of a location, as one."""
    val = read_manifest(location, "val")
    names = [fold_name(i) for i in range(val.num_folds or 0) if i != location.fold]
    folds = {name: read_manifest(str(location.url), name) for name in names}
    apart = [
        name for name, m in folds.items() if (m.source, m.classes) != (val.source, val.classes)
    ]
    if apart:
        raise DataError(
            f"{apart[0]} at {location} was not written with {fold_name(location.fold or 0)}, so "
            "that images of one may be in the other: nothing is read",
            value=apart[0],
            hint="Write the data set again, with all of its folds.",
        )
    counts = [manifest.samples_per_class or () for manifest in folds.values()]
    shards = (
        replace(shard, name=f"{name}/{shard.name}")
        for name in folds
        for shard in folds[name].shards
    )
    return replace(
        val,
        shards=ShardTable.from_infos(shards),
        samples_per_class=tuple(map(sum, zip(*counts, strict=True))) or None,
    )


def _num_folds(location: Location) -> int:
    """Return the number of folds at a URL; 0 if it has none."""
    with suppress(DataError):
        return read_manifest(str(location), fold_name(0)).num_folds or 0
    return 0


def write_manifest(
    where: str | Location, split: str, manifest: Manifest, *, anywhere: bool = False
) -> None:
    """Publish the manifest of a split, whole or not at all; its shards must exist already.

    A table of many shards is a file of its own, which the manifest names with its digest.

    Args:
        anywhere: write it to another place where nothing can be written beside the shards.
    """

    def write(url_of_file: Callable[[str], str]) -> None:
        values: dict[str, Any] = {"format": FORMAT, "classes": manifest.classes}
        if manifest.labels != LabelRule():
            values["labels"] = asdict(manifest.labels)
        for name in ("image", "class_labels", "samples_per_class", "num_folds"):
            if getattr(manifest, name) is not None:
                values[name] = getattr(manifest, name)
        if len(manifest.shards) <= _MAX_LISTED:
            values["shards"] = [shard.as_listed() for shard in manifest.shards]
        else:
            table, url = manifest.shards.to_bytes(), url_of_file(TABLE_NAME)
            filesystem.write_bytes(url, table)
            name = url.rpartition("/")[2]
            values["shards"] = asdict(TableFile(name, len(table), manifest.shards.sha256))
        if manifest.images is not None:
            values["images"] = asdict(manifest.images)
        values["source"] = manifest.source
        text = json.dumps(values, indent=2, ensure_ascii=False)
        filesystem.write_bytes(url_of_file(FILE_NAME), (text + "\n").encode())

    write_files(Location.of(where), split, write, anywhere=anywhere)


_COUNT = "Count them once: `tahoe shard index` takes the same overrides of `data`."


def _read_own(location: Location, split: str) -> Manifest:
    """Read the manifest of the data set itself, where it agrees with what is asked of its samples.

    Raises:
        DataError: it does not, or there is none.
    """
    if not location.rules:
        raise _missing(location, split)
    try:
        manifest = read_manifest(replace(location, rules=""), split)
    except UnavailableError:
        raise
    except DataError:
        raise _missing(location, split) from None
    asked = json.loads(location.rules)
    found = {
        "image": manifest.image,
        "label": str(manifest.labels),
        "class_map_sha256": manifest.source.get("class_map_sha256"),
    }
    if all(asked[name] in (None, value) for name, value in found.items()):
        return manifest
    raise DataError(
        f"the samples of {split} at {location} are counted as {manifest.rule}, and not yet as "
        f"asked for: {_asked(asked)}",
        value=str(location),
        hint=_COUNT,
    )


def _asked(asked: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.removesuffix('_sha256')} {str(value)[:40]}"
        for name, value in asked.items()
        if value not in (None, False)
    )


def _missing(location: Location, split: str) -> MissingManifestError:
    num_folds = _num_folds(location) if location.url and split in SPLITS else 0
    if num_folds or location.fold is not None:
        return location.fold_error(num_folds)
    if not location.has_named_files:
        return MissingManifestError(
            f"no data set at {location}: {split}/{FILE_NAME} does not exist",
            value=str(location),
            hint="Check the URL, or write a data set: `folder` makes one from directories of "
            "images, one a class, `digits` from scikit-learn's handwritten digits.",
        )
    places = " or ".join(url.rpartition("/")[0] for url in location.files(split, FILE_NAME))
    return MissingManifestError(
        f"the shards of {split} at {', '.join(location.patterns(split))} are not counted yet: "
        f"there is no manifest of them in {places}",
        value=str(location),
        hint=_COUNT,
    )


def _parse(data: bytes, location: Location, split: str, manifest_url: str) -> Manifest:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _unusable(manifest_url, f"it is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise _unusable(manifest_url, "it is not a JSON object")
    version = values.pop("format", None)
    if version != FORMAT:
        raise DataError(
            f"{manifest_url} has the format {version!r}, and this Tahoe reads {FORMAT!r}: the data "
            "set cannot be used",
            value=version,
            hint="Upgrade Tahoe if the set is newer, or write the set again.",
        )
    try:
        if isinstance(values.get("shards"), dict):
            table_file = _TABLE.validate_python({"shards": values["shards"]})["shards"]
            values["shards"] = _map_table(manifest_url, location, split, table_file)
        elif "shards" in values:
            values["shards"] = _LISTED.validate_python({"shards": values["shards"]})["shards"]
        return _MANIFEST.validate_python(values)
    except ValidationError as error:
        raise _unusable(manifest_url, _first_problem(error)) from error


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(name) for name in first["loc"])
    if not key:  # one of our own checks, which names it
        return str(first["msg"]).removeprefix("Value error, ")
    return f"{key}: {first['msg']}, found {first['input']!r:.80}"


def _map_table(
    manifest_url: str, location: Location, split: str, table_file: TableFile
) -> ShardTable:
    """Map the table that a manifest names, from a file on this node."""
    directory = manifest_url.rpartition("/")[0]
    table_url = filesystem.join(directory, table_file.file)
    try:
        if table_url not in location.files(split, TABLE_NAME):
            raise ValueError(f"{table_file.file!r} is not the name of its table")
        return table_file.open(table_url)
    except (FileNotFoundError, ValueError) as error:
        raise _unusable(table_url, str(error)) from error
    except OSError as error:
        raise _cannot_read(table_url, error) from error


_LISTED = TypeAdapter(dict[str, tuple[ShardInfo, ...]])
_TABLE = TypeAdapter(dict[str, TableFile])
_MANIFEST = TypeAdapter(Manifest)


def _cannot_read(url: str, error: Exception) -> DataError:
    kind = UnavailableError if isinstance(error, OSError) else DataError
    return kind(
        f"cannot read {url}: {type(error).__name__}: {error}",
        value=url,
        hint="Check the URL, the credentials and the network.",
    )


def _unusable(url: str, reason: str) -> DataError:
    return DataError(
        f"{url} is no usable manifest: {reason}. Nothing is read from this data set",
        value=url,
        hint="Restore the file from where it was copied, or write the set again.",
    )
