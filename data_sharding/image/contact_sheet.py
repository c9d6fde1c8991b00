"""Draw small images on one sheet, in even tiles, each with a caption beneath.

The font is Pillow's own, so a sheet looks the same on any machine. It has few scripts: characters
that it lacks are written as in Python source, never as boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

_MARGIN, _GAP, _PADDING = 24, 14, 5  # pixels
_PAPER, _TILE, _INK, _FAINT = "#ffffff", "#eceef1", "#1c1e21", "#6b7280"
_TITLE_PX, _TEXT_PX, _LINE_PX = 22, 14, 18
_CAPTION_LINES = 2


@dataclass(frozen=True)
class Tile:
    """An image and its caption; without an image, an empty tile."""

    image: Image.Image | None
    caption: str = ""


@dataclass(frozen=True)
class Row:
    """Tiles side by side, with a label on their left."""

    tiles: Sequence[Tile]
    label: str = ""


def draw_sheet(rows: Sequence[Row], *, title: str, subtitle: str, tile_px: int) -> Image.Image:
    """Draw a sheet: title, subtitle, then the rows.

    Args:
        tile_px: width and height of a tile. Larger images are shrunk to it, smaller ones are
            enlarged by a whole factor, so that each of their pixels is a square.
    """
    columns = max(len(row.tiles) for row in rows)
    label_px = max(_width(printable(row.label), _TEXT_PX) for row in rows)
    left = _MARGIN + label_px + (_GAP if label_px else 0)
    heights = [tile_px + _caption_height(row, tile_px) + _GAP for row in rows]
    subtitle_y = _MARGIN + _TITLE_PX + 8
    top = subtitle_y + _LINE_PX + _GAP
    width = max(left + columns * (tile_px + _GAP) - _GAP + _MARGIN, 2 * _MARGIN + 480)
    sheet = Image.new("RGB", (width, top + sum(heights) - _GAP + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for y, text, px, colour in (
        (_MARGIN, title, _TITLE_PX, _INK),
        (subtitle_y, subtitle, _TEXT_PX, _FAINT),
    ):
        draw.text((_MARGIN, y), _fit(printable(text), px, width - 2 * _MARGIN), colour, _font(px))
    for row, height in zip(rows, heights, strict=True):
        middle = (_MARGIN, top + tile_px // 2)
        draw.text(middle, printable(row.label), _INK, _font(_TEXT_PX), anchor="lm")
        for number, tile in enumerate(row.tiles):
            _draw_tile(sheet, draw, tile, (left + number * (tile_px + _GAP), top), tile_px)
        top += height
    return sheet


def grid(tiles: Sequence[Tile], columns: int) -> list[Row]:
    """Arrange tiles in rows."""
    return [Row(tiles[first : first + columns]) for first in range(0, len(tiles), columns)]


def printable(text: str) -> str:
    """Escape the characters that the font lacks as in Python source."""
    return "".join(c if _has_glyph(c) else c.encode("unicode_escape").decode() for c in text)


def fit_image(image: Image.Image, size: int) -> Image.Image:
    """Fit an image to a square: shrink it, or enlarge it by a whole factor."""
    longer = max(image.size)
    if longer <= size:
        factor = size // longer
        new = (image.width * factor, image.height * factor)
        return image.resize(new, Image.Resampling.NEAREST)
    new = (max(1, image.width * size // longer), max(1, image.height * size // longer))
    return image.resize(new, Image.Resampling.LANCZOS)


def _draw_tile(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, corner: tuple[int, int], size: int
) -> None:
    x, y = corner
    draw.rectangle((x, y, x + size - 1, y + size - 1), fill=_TILE)
    if tile.image is not None:
        image = fit_image(tile.image, size)
        sheet.paste(image, (x + (size - image.width) // 2, y + (size - image.height) // 2))
    for number, line in enumerate(_wrap(printable(tile.caption), size)):
        center = (x + size // 2, y + size + _PADDING + number * _LINE_PX)
        draw.text(center, line, _INK, _font(_TEXT_PX), anchor="ma")


def _caption_height(row: Row, width: int) -> int:
    num_lines = max(len(_wrap(printable(tile.caption), width)) for tile in row.tiles)
    return _PADDING + num_lines * _LINE_PX if num_lines else 0


def _wrap(text: str, width: int) -> list[str]:
    """Break text into lines that fit, at blanks and underscores; dots replace what is too long."""
    lines: list[str] = []
    for word in text.replace("_", " ").split():
        if lines and _width(f"{lines[-1]} {word}", _TEXT_PX) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > _CAPTION_LINES:
        lines[_CAPTION_LINES - 1] += "..."
    return [_fit(line, _TEXT_PX, width) for line in lines[:_CAPTION_LINES]]


def _fit(text: str, size: int, width: int) -> str:
    """Cut text to a width in pixels; dots replace what is cut off."""
    if _width(text, size) <= width:
        return text
    text = text.rstrip(".")
    while text and _width(text + "...", size) > width:
        text = text[:-1]
    return text + "..."


def _width(text: str, size: int) -> int:
    return round(_font(size).getlength(text))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels have FreeType
    return font


@cache
def _has_glyph(character: str) -> bool:
    if character.isascii():
        return character.isprintable()
    font = _font(_TEXT_PX)
    return bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))  # of no character
