"""Images of over 89 megapixels are shrunk in little memory, or whole where that is allowed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from foreign_shards import bomb, encoded, photo
from PIL import Image

from data_sharding.errors import BadSample
from data_sharding.format.shard_reader import TooLarge
from data_sharding.image.open_image import load_image
from data_sharding.image.resize import ResizeSettings
from orchestrator.cli.dataset.write import folder as shard_folder

SHRINK = ResizeSettings(max_side=100)
GROWTH_OF_MEMORY = """
import resource, sys
from pathlib import Path
from data_sharding.image.resize import ResizeSettings
shrink = ResizeSettings(max_side=200)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = Path(sys.argv[1]).read_bytes()
shrink.apply(Path(sys.argv[2]).read_bytes())
before = peak()
shrink.apply_huge(data)
print((peak() - before) >> 10)
"""


@pytest.mark.parametrize(
    ("kind", "options"), [("jpeg", {}), ("jpeg", {"progressive": True}), ("png", {})]
)
def test_the_same_picture_by_either_way(kind: str, options: dict[str, bool]) -> None:
    data = encoded(photo(1, (90, 45)).resize((900, 450)), kind, **options)
    small, expected = (
        load_image(shrunk) for shrunk in (SHRINK.apply_huge(data), SHRINK.apply(data))
    )
    assert small.size == (100, 50)
    difference = np.asarray(small, dtype=float) - np.asarray(expected)
    assert np.abs(difference).mean() < 2


@pytest.mark.parametrize("max_side", [50, 100, 101, 199, 200, 299])
def test_a_jpeg_is_never_enlarged_again(max_side: int) -> None:
    """Its scaled size is that of the result at least, and three times that if it can be."""
    small = load_image(ResizeSettings(max_side).apply_huge(encoded(photo(1, (300, 150)))))
    assert small.size == (max_side, round(max_side / 2))


def test_what_would_be_decoded_whole_needs_a_switch() -> None:
    with pytest.raises(TooLarge):
        SHRINK.apply_huge(bomb(10_000))
    with pytest.raises(TooLarge):
        ResizeSettings(100, max_megapixels=99).apply_huge(bomb(10_000))
    with pytest.raises(TooLarge):
        ResizeSettings(100, max_megapixels=100).apply_huge(bomb(50_000))
    with pytest.raises(BadSample, match="cannot be decoded"):  # since it is cut
        ResizeSettings(100, max_megapixels=100).apply_huge(bomb(10_000))


def test_what_is_not_shrunk_stays_too_large() -> None:
    with pytest.raises(TooLarge):
        ResizeSettings(max_side=400).apply_huge(encoded(photo(1, (300, 150))))


def test_the_switch_needs_a_size(tmp_path: Path) -> None:
    done = CliRunner().invoke(shard_folder, [str(tmp_path), "set", "--max-megapixels", "200"])
    assert (done.exit_code, "--max-side" in done.output) == (2, True)


def test_the_switch_is_no_part_of_older_sets() -> None:
    assert SHRINK.facts == {"max_side": 100, "quality": 90}
    assert ResizeSettings(9, max_megapixels=200).facts["max_megapixels"] == 200


@pytest.mark.slow
def test_memory_of_a_huge_jpeg_is_that_of_the_result(tmp_path: Path) -> None:
    huge, small = tmp_path / "huge.jpg", tmp_path / "small.jpg"
    huge.write_bytes(encoded(Image.new("L", (18_000, 9_000), 200)))  # 486 MB of RGB
    small.write_bytes(encoded(photo(1, (600, 300))))
    command = [sys.executable, "-c", GROWTH_OF_MEMORY, huge, small]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 60  # MB: an eighth of each side is 8 MB
    half = load_image(ResizeSettings(max_side=8_000).apply_huge(huge.read_bytes()))
    assert half.size == (8_000, 4_000)  # which is not three times smaller


@pytest.mark.slow
def test_more_than_twice_the_limit_of_pillow() -> None:
    huge = Image.new("1", (14_000, 14_000), 1)
    huge.paste(0, (0, 0, 7_000, 14_000))
    data = encoded(huge, "png")
    with pytest.raises(TooLarge):
        SHRINK.apply_huge(data)
    small = load_image(ResizeSettings(100, max_megapixels=196).apply_huge(data))
    assert small.size == (100, 100)
    assert [small.getpixel((x, 50)) for x in (20, 80)] == pytest.approx([0, 255], abs=9)
