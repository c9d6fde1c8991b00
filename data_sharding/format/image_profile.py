"""Colours, sizes and formats of the images of a split, as its manifest records them."""

from typing import Annotated

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

_Range = tuple[PositiveInt, PositiveInt, PositiveInt]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ImageProfile:
    """The properties of some images of a split.

    num_seen, num_coloured: number of images, and of those whose pixels have colours.
    widths, heights: the smallest, the median and the largest in pixels, as stored.
    formats: number of images of each format, as Pillow names them.
    """

    num_seen: PositiveInt
    num_coloured: NonNegativeInt
    widths: _Range
    heights: _Range
    formats: dict[str, Annotated[int, Field(gt=0)]]

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels, if they are those of all images seen."""
        has_one = self.widths[0] == self.widths[2] and self.heights[0] == self.heights[2]
        return (self.widths[0], self.heights[0]) if has_one else None

    def __str__(self) -> str:
        kind = "images with colors" if self.num_coloured else "grey images"
        if self.size:
            return "{} of {} x {} pixels".format(kind, *self.size)
        return (
            f"{kind} of {self.widths[0]} to {self.widths[2]} x {self.heights[0]} to "
            f"{self.heights[2]} pixels"
        )
