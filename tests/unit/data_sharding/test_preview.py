"""Sheets are even, their text is readable, and damaged images get an empty tile."""

from pathlib import Path

import numpy as np
import pytest
from foreign_shards import bomb, by_webdataset, encoded, jpeg, labelled
from PIL import Image

from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import Manifest
from data_sharding.format.sample_rule import SampleRule
from data_sharding.image import contact_sheet
from data_sharding.image.contact_sheet import Row, Tile, draw_sheet, fit_image, grid, printable
from data_sharding.tools.find_shards import find_shards
from data_sharding.tools.index import index_shards
from data_sharding.tools.preview import preview

RED = (255, 0, 0)


def red(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), RED)


def is_red(sheet: Image.Image) -> np.ndarray:
    return np.asarray((np.asarray(sheet) == RED).all(-1))


@pytest.mark.parametrize(
    ("size", "fitted"),
    [((8, 8), (96, 96)), ((30, 10), (90, 30)), ((400, 300), (100, 75)), ((1, 900), (1, 100))],
)
def test_images_fit_their_tiles(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert fit_image(red(*size), 100).size == fitted


def test_small_pixels_stay_squares() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    large = np.asarray(fit_image(image, 160))
    assert (large == np.asarray(image).repeat(20, 0).repeat(20, 1)).all()


def test_tiles_are_evenly_spaced_above_their_captions() -> None:
    tiles = [Tile(red(50, 50), "a name that is far too long for one line or even two of them")] * 5
    sheet = draw_sheet(grid(tiles, 3), title="t" * 500, subtitle="s", tile_px=100)
    columns, rows = (np.flatnonzero(is_red(sheet).any(axis)) for axis in (0, 1))
    assert np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)[0].tolist() == list(
        range(24, 124)
    )
    for numbers, count in (columns, 3), (rows, 2):
        starts = [
            int(run[0]) for run in np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
        ]
        assert len(starts) == count
        assert len(set(np.diff(starts))) <= 1
    ink = np.flatnonzero((np.asarray(sheet)[:, :, 0] < 100).any(1))
    between = ink[(ink > rows[99]) & (ink < rows[100])]
    assert len(between) > 10  # two lines of a caption


def test_rows_have_labels() -> None:
    rows = [Row([Tile(red(10, 10))], "epoch 1"), Row([Tile(red(10, 10))] * 2)]
    bare = draw_sheet([Row(row.tiles) for row in rows], title="", subtitle="", tile_px=100)
    labelled_ = draw_sheet(rows, title="", subtitle="", tile_px=100)
    assert is_red(labelled_).any(0).argmax() > is_red(bare).any(0).argmax() + 30


def test_characters_that_the_font_lacks_are_escaped() -> None:
    assert printable("great white shark") == "great white shark"
    assert printable("犬 ä\n\x07") == r"\u72ac \xe4\n\x07"
    box = contact_sheet._font(14).getmask("\uffff")
    assert all(bytes(contact_sheet._font(14).getmask(c)) != bytes(box) for c in printable("犬é→ß"))


def indexed(root: Path, rule: SampleRule) -> Manifest:
    found = find_shards(str(root), None)
    manifests, _ = index_shards(found, rule)
    return manifests["train"]


def draw(root: Path, manifest: Manifest, num: int, seed: int | None = None) -> Image.Image:
    return preview(str(root), "train", manifest, num=num, seed=seed, scratch=None)


def test_the_first_images_or_a_random_choice(tmp_path: Path) -> None:
    for number in range(3):
        samples = {
            str(i): {
                "png": encoded(red(8, 8) if number == 2 else Image.new("RGB", (8, 8)), "png"),
                "txt": b"n",
            }
            for i in range(10)
        }
        by_webdataset(tmp_path / f"train/{number}.tar", samples)
    manifest = indexed(tmp_path, SampleRule(LabelRule(extension="txt")))
    assert not is_red(draw(tmp_path, manifest, 9)).any()
    assert is_red(draw(tmp_path, manifest, 9, seed=1)).any()
    one, again, other = (draw(tmp_path, manifest, 9, seed=seed).tobytes() for seed in (1, 1, 2))
    assert one == again != other
    assert is_red(draw(tmp_path, manifest, 1000)).sum() == 10 * 160 * 160


def test_damaged_images_get_an_empty_tile(tmp_path: Path) -> None:
    samples = labelled(["犬", "a_b"], "txt")
    samples["bomb"] = {"png": bomb(), "txt": b"a_b"}
    samples["half"] = {"jpg": jpeg(1)[:100], "txt": b"a_b"}
    by_webdataset(tmp_path / "train/a.tar", samples)
    manifest = indexed(tmp_path, SampleRule(LabelRule(extension="txt")))
    sheet = draw(tmp_path, manifest, 64)
    tile = (np.asarray(sheet) == (0xEC, 0xEE, 0xF1)).all(-1)
    assert (tile.sum(0) == 160).sum() >= 2 * 160  # two tiles hold nothing
