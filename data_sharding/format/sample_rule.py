"""Choose what the samples of a shard are: the member with the image, the labels, the classes kept.

A reader needs nothing else to find the same samples everywhere, so a manifest records all of it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

from pydantic import ValidationError

from data_sharding.errors import BadLabelError
from data_sharding.format.image_formats import IMAGE_EXTENSIONS
from data_sharding.format.labels import LabelRule, class_index

_ALTERNATIVES = re.compile(r"[a-z0-9_-][a-z0-9._-]*(?:;[a-z0-9_-][a-z0-9._-]*)*")
_ANY_IMAGE = dict.fromkeys(IMAGE_EXTENSIONS, 0)

# For each class, the labels in the shards, numbers or names, that mean it.
ClassLabels = tuple[tuple[int | str, ...], ...]


@dataclass(frozen=True)
class SampleRule:
    """The rule by which samples are read from a shard.

    Args:
        labels: the member with the labels, and their format.
        image: extensions of the image, in webdataset's syntax: `jpg;png` takes the first of these
            that a sample has, `input.jpg` is all that follows the first dot of a name. None: any
            known extension of images.
        class_labels: labels of each class. Samples with other labels only are passed over. None:
            labels are the numbers or the names of the classes, and every sample counts.
    """

    labels: LabelRule = LabelRule()  # noqa: RUF009  immutable
    image: str | None = None
    class_labels: ClassLabels | None = None

    @cached_property
    def image_ranks(self) -> Mapping[str, int]:
        """The extensions of images; of several in a sample the one of the lowest rank is taken."""
        if self.image is None:
            return _ANY_IMAGE
        return {extension: rank for rank, extension in enumerate(self.image.split(";"))}

    @property
    def digest_of_choice(self) -> str:
        """A digest (hex) of the choice of classes, for names of files; empty without one."""
        if self.class_labels is None:
            return ""
        return hashlib.sha256(repr((self.labels, self.class_labels)).encode()).hexdigest()[:16]

    def parse(self, data: bytes, classes: Mapping[str, int]) -> tuple[int, ...]:
        """Parse the labels in a member's bytes to class indices.

        Args:
            classes: index of each class by its name.

        Raises:
            BadLabelError: they do not follow the rule, or there is no such class.
        """
        return tuple(class_index(value, classes) for value in self.values(data))

    def values(self, data: bytes) -> list[int | str]:
        """Parse the labels in a member's bytes; those of chosen classes become their indices.

        Raises:
            BadLabelError: they do not follow the rule.
        """
        values = self.labels.values(data)
        if self.class_labels is None:
            return values
        return [self._indices[value] for value in values if value in self._indices]

    def keeps(self, data: bytes) -> bool:
        """Check whether a sample counts, by the bytes of its label.

        A bad label is kept: it is a fault, which is reported where the sample is used.
        """
        if self.class_labels is None:
            return True
        try:
            values = self.labels.values(data)
        except BadLabelError:
            return True
        return not values or any(value in self._indices for value in values)

    def __str__(self) -> str:
        image = "" if self.image is None else f", images {self.image}"
        chosen = "" if self.class_labels is None else f", {len(self.class_labels):,} classes chosen"
        return f"{self.labels}{image}{chosen}"

    @cached_property
    def _indices(self) -> dict[int | str, int]:
        assert self.class_labels is not None
        return {label: i for i, labels in enumerate(self.class_labels) for label in labels}


def make_rule(image: str | None, label: str | None, *, multi_label: bool = False) -> SampleRule:
    """Make the rule that a user describes.

    Args:
        image: extensions of the image, as in `SampleRule`.
        label: `cls`, `txt`, `json:FIELD.FIELD`, another extension, or `none`; None is `cls`.
        multi_label: whether a sample has any number of labels.

    Raises:
        ValueError: there is no such rule.
    """
    extension, _, field = (label or "cls").partition(":")
    if extension == "none":
        labels = LabelRule("none")
    elif extension.startswith("."):
        raise ValueError(f"label={label} begins with a dot: write cls, json:FIELD, or output.cls")
    else:
        try:
            labels = LabelRule("multi" if multi_label else "single", extension, field or None)
        except ValidationError as error:
            reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
            raise ValueError(f"label={label}: {reason}") from None
    return SampleRule(labels, None if image is None else check_image(image))


@dataclass(frozen=True)
class SampleChoice:
    """A choice of members and classes of the samples; None stands for what a manifest says.

    Args:
        image, label, multi_label: as in `make_rule`.
        class_map_sha256: digest (hex) of the class map.
    """

    image: str | None = None
    label: str | None = None
    multi_label: bool = False
    class_map_sha256: str | None = None

    @property
    def rule(self) -> SampleRule:
        """The rule without the classes; raises ValueError if there is none."""
        return make_rule(self.image, self.label, multi_label=self.multi_label)

    def to_text(self) -> str:
        """Return a canonical text, which is empty without a choice."""
        if self == SampleChoice():
            return ""
        values = {**asdict(self), "image": self.rule.image, "label": str(self.rule.labels)}
        if self.label is None and not self.multi_label:
            values["label"] = None
        return json.dumps(values, sort_keys=True)


def check_image(image: str) -> str:
    """Return the extensions of images in lower case without blanks; ValueError if they are none."""
    extensions = ";".join(part.strip() for part in image.lower().split(";"))
    if not _ALTERNATIVES.fullmatch(extensions):
        raise ValueError(f"image={image} names no extension: write jpg, jpg;png, or input.jpg")
    return extensions
