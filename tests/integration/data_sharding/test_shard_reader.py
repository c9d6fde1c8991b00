"""A tar is read as webdataset reads it, and a damaged one is an error, never wrong samples."""

import gc
import io
import os
import random
import struct
import subprocess
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset

from data_sharding.errors import BadLabelError, BadSample, DataError, ShardError
from data_sharding.format import shard_reader as shard_module
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_reader import ShardReader

Samples = list[tuple[str, bytes, int]]
BLOCK = 512


def read(path: Path) -> Samples:
    with ShardReader(path) as reader:
        return [
            (reader.key(i), bytes(reader.image(i)), int(reader.label_bytes(i)))
            for i in range(len(reader))
        ]


def read_plainly(path: Path) -> Samples:
    """Return what webdataset reads; it leaves its files to the garbage collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        found = list(webdataset.WebDataset([str(path)], shardshuffle=False))
        gc.collect()
    return [(s["__key__"], s.get("jpg", s.get("png")), int(s["cls"])) for s in found]


def content(number: int) -> bytes:
    """Return stand-ins for images: sizes at, above and below the block size, and none."""
    return random.Random(number).randbytes((0, 1, 511, 512, 513, 1024, 3000)[number % 7])


def pack(path: Path, files: dict[str, bytes], **settings: Any) -> Path:
    with tarfile.open(path, "w", **settings) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def pair(key: str, number: int, extension: str = "jpg") -> dict[str, bytes]:
    return {f"{key}.{extension}": content(number), f"{key}.cls": str(number).encode()}


def pairs(*keys: str) -> dict[str, bytes]:
    return {name: data for n, key in enumerate(keys) for name, data in pair(key, n).items()}


def refusal(path: Path, expected: ShardInfo | None = None) -> str:
    with pytest.raises(ShardError) as caught:
        ShardReader(path, expected)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def no_tarfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbid the slow way."""

    def fail(*arguments: object) -> None:
        raise AssertionError("the fast walk gave up")

    monkeypatch.setattr(shard_module, "_walk_with_tarfile", fail)


@pytest.fixture(params=["fast", "tarfile"])
def both_walks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read once by the fast walk and once by tarfile; the results must not differ."""

    def fail(*arguments: object) -> None:
        raise shard_module._UnusualError

    if request.param == "tarfile":
        monkeypatch.setattr(shard_module, "_walk_plain", fail)


# ---------------------------------------------------------------- tars from everywhere


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Class folders as `tar` would pack them: directories, short, long and unicode names."""
    root = tmp_path / "ïmages here"
    keys = ["n01/0001", "n01/0002", "n02/" + "d" * 60 + "/0003", "n02/" + "d" * 60 + "/" + "f" * 60]
    for number, key in enumerate(keys):
        for name, data in pair(key, number).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
    return root


def gnu_tar(path: Path, root: Path, *options: str) -> Path:
    command = ["tar", "--sort=name", *options, "-cf", path, "-C", root, "."]
    subprocess.run(command, check=True)
    return path


@pytest.mark.parametrize("format_", ["gnu", "ustar", "pax", "v7"])
def test_gnu_tar(tmp_path: Path, images: Path, format_: str) -> None:
    if format_ == "v7":  # has no names beyond 100 bytes
        subprocess.run(["rm", "-r", images / "n02"], check=True)
    path = gnu_tar(tmp_path / "a shärd.tar", images, f"--format={format_}")
    found = read(path)
    assert found == read_plainly(path)
    assert [label for _, _, label in found] == ([0, 1] if format_ == "v7" else [0, 1, 2, 3])
    assert all(image == content(label) for _, image, label in found)
    assert found[0][0] == "./n01/0001"


@pytest.mark.parametrize("format_", ["gnu", "ustar", "pax", "v7"])
def test_gnu_tar_of_short_names_is_fast(
    tmp_path: Path, images: Path, format_: str, no_tarfile: None
) -> None:
    subprocess.run(["rm", "-r", images / "n02"], check=True)
    path = gnu_tar(tmp_path / "a.tar", images, f"--format={format_}")
    assert [label for _, _, label in read(path)] == [0, 1]


def test_gnu_tar_of_unicode_names(tmp_path: Path, images: Path) -> None:
    (images / "n01" / "犬.jpg").write_bytes(b"image")
    (images / "n01" / "犬.cls").write_bytes(b"7")
    (images / "n01" / "caf\udce9.jpg").write_bytes(b"latin")
    (images / "n01" / "caf\udce9.cls").write_bytes(b"8")
    for format_ in "gnu", "pax":
        path = gnu_tar(tmp_path / f"{format_}.tar", images, f"--format={format_}")
        found = read(path)
        assert found == read_plainly(path)
        assert ("./n01/犬", b"image", 7) in found
        assert len(found) == 6


@pytest.mark.parametrize("mtime", [None, 0])
def test_webdataset_writer(tmp_path: Path, mtime: int | None, no_tarfile: None) -> None:
    pattern = str(tmp_path / "made by others-%03d.tar")
    with webdataset.ShardWriter(pattern, maxcount=10, verbose=0, mtime=mtime) as writer:
        for i in range(25):
            writer.write({"__key__": f"a/{i:05d}", "jpg": content(i), "cls": i, "json": {"i": i}})
    for number, num_samples in enumerate([10, 10, 5]):
        path = tmp_path / f"made by others-{number:03d}.tar"
        assert read(path) == read_plainly(path)
        assert len(read(path)) == num_samples


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_python_tarfile(tmp_path: Path, format_: int, both_walks: None) -> None:
    keys = [f"{i:03d}" for i in range(20)] + [
        f"{i}/" + "directory/" * 10 + "name" for i in range(3)
    ]
    if format_ != tarfile.USTAR_FORMAT:
        keys += ["l" * 200, "d" * 300 + "/" + "n" * 100, "ü" * 80]
    path = pack(tmp_path / "a.tar", pairs(*keys), format=format_)
    assert read(path) == read_plainly(path)
    assert [key for key, _, _ in read(path)] == keys


def test_pax_headers_with_long_names(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}) as tar:
        for name, data in pairs("a", "b").items():
            member = tarfile.TarInfo("wrong/" + name)
            member.size = len(data)
            member.pax_headers = {"path": "right/" + name, "mtime": "1.5"}
            tar.addfile(member, io.BytesIO(data))
    assert [key for key, _, _ in read(path)] == ["right/a", "right/b"]
    assert read(path) == read_plainly(path)


def test_members_that_are_no_files_are_ignored(tmp_path: Path, images: Path) -> None:
    os.mkfifo(images / "n01" / "0002.fifo.jpg")
    (images / "n01" / "0002.link.jpg").symlink_to("/etc/passwd")
    (images / "zz.jpg").symlink_to("n01/0001.jpg")
    (images / "zz.cls").symlink_to("n01/0001.cls")
    path = gnu_tar(tmp_path / "a.tar", images)
    assert read(path) == read_plainly(path)
    assert len(read(path)) == 4


LINKED = [("./a", 0), ("./b", 1), ("./c", 1)]


def test_hard_links_are_read_as_their_targets(tmp_path: Path) -> None:
    root = tmp_path / "linked"
    root.mkdir()
    (root / "a.jpg").write_bytes(b"x" * 600)
    (root / "a.cls").write_bytes(b"0")
    for name in "b.jpg", "c.jpg":
        (root / name).hardlink_to(root / "a.jpg")
    (root / "b.cls").write_bytes(b"1")
    (root / "c.cls").hardlink_to(root / "b.cls")
    path = gnu_tar(tmp_path / "a.tar", root)
    assert read(path) == [(key, b"x" * 600, label) for key, label in LINKED]
    with ShardReader(path) as reader:
        assert reader.has_links
        assert reader.passed_over.counts == {"directory": 1}
    with ShardReader(pack(tmp_path / "b.tar", pairs("a", "b"))) as reader:
        assert not reader.has_links
    (root / "a.jpg").unlink()  # now c.jpg is the link, and b.jpg the file
    command = ["tar", "--sort=name", "-cf", path, "-C", root, "b.jpg", "b.cls", "c.jpg", "c.cls"]
    subprocess.run(command, check=True)
    subprocess.run(["tar", "--delete", "-f", path, "b.jpg"], check=True)
    assert "'c.jpg' is a hard link to 'b.jpg'" in refusal(path)


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "sparse"
    root.mkdir()
    (root / "a.cls").write_bytes(b"0")
    with (root / "a.jpg").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 20)
        file.write(b"end")
    for format_ in "gnu", "pax":
        path = gnu_tar(tmp_path / "a.tar", root, "--sparse", f"--format={format_}")
        assert "--sparse" in refusal(path)


# ---------------------------------------------------------------- headers


def patch_header(path: Path, start: int, at: int, field: bytes, *, signed: bool = False) -> None:
    """Overwrite part of the header at byte `start`, and make its checksum right again."""
    data = bytearray(path.read_bytes())
    header = data[start : start + BLOCK]
    header[at : at + len(field)] = field
    header[148:156] = b" " * 8
    total = sum(struct.unpack("512b" if signed else "512B", header))
    header[148:156] = b"%06o\0 " % total
    data[start : start + BLOCK] = header
    path.write_bytes(data)


def test_sizes_in_base_256(tmp_path: Path, both_walks: None) -> None:
    path = pack(tmp_path / "a.tar", {"a.jpg": b"x" * 700, "a.cls": b"1"})
    patch_header(path, 0, 124, b"\x80" + (700).to_bytes(11, "big"))
    assert read(path) == [("a", b"x" * 700, 1)]


def test_signed_checksums_of_old_tars(tmp_path: Path, both_walks: None) -> None:
    path = pack(tmp_path / "a.tar", {"é.jpg": b"x", "é.cls": b"1"}, format=tarfile.GNU_FORMAT)
    patch_header(path, 0, 0, "é".encode(), signed=True)
    assert read(path) == [("é", b"x", 1)]


@pytest.mark.parametrize(
    "size",
    [b"-0000000001\0", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"0000000000x\0", b"77777777777\0"],
)
def test_hostile_sizes(tmp_path: Path, both_walks: None, size: bytes) -> None:
    path = pack(tmp_path / "a.tar", pairs("a", "b"))
    for start in 0, BLOCK:
        patch_header(path, start, 124, size)
        refusal(path)


@pytest.mark.parametrize("kind", b"LKSxg12345679AZ")
def test_hostile_types(tmp_path: Path, kind: int) -> None:
    """Whatever a header calls its member, the shard is refused or read as webdataset reads it."""
    for start in headers(pack(tmp_path / "a.tar", pairs("a", "b", "c"))):
        path = pack(tmp_path / "a.tar", pairs("a", "b", "c"))
        patch_header(path, start, 156, bytes([kind]))
        result = try_to_read(path)
        assert isinstance(result, str) or result == read_plainly(path)


# ---------------------------------------------------------------- samples


def test_members_may_be_in_any_order_among_others(tmp_path: Path, both_walks: None) -> None:
    files = {
        "__meta__": b"skipped", "__dir__/x.jpg": b"skipped", "README": b"no extension",
        "b.cls": b" 3\n", "b.txt": b"text", "b.JPG": b"B", "b.seg.png": b"not the image",
        ".hidden.jpg": b"no key",
        "a.json": b"{}", "a.jpeg": b"A", "a.CLS": b"-1", "notes": b"between",
        "dir.v2/c.1.jpg": b"the extension is 1.jpg", "dir.v2/c.webp": b"C", "dir.v2/c.cls": b"007",
    }  # fmt: skip
    path = pack(tmp_path / "a.tar", files)
    assert read(path) == [("b", b"B", 3), ("a", b"A", -1), ("dir.v2/c", b"C", 7)]


def test_grouping_is_that_of_webdataset(tmp_path: Path, both_walks: None) -> None:
    files: dict[str, bytes] = {}
    for key in "a", "./a", "d.e/a", "d/.b/a", "x y", "_", "d//a", "d/__a", "-", "A", "a\nb":
        files |= pair(key, len(files))
        files |= {"no_dot_between" + str(len(files)): b"", f"__{len(files)}__/x.jpg": b""}
    path = pack(tmp_path / "a.tar", files)
    assert read(path) == read_plainly(path)
    assert len(read(path)) == 11


def test_invalid_labels_are_refused(tmp_path: Path) -> None:
    labels = [b"", b"cat", b"1.0", b"\xff", b"0x1", b"1 2"]
    files = {}
    for i, label in enumerate(labels):
        files |= {f"{i}.jpg": b"x", f"{i}.cls": label}
    with ShardReader(pack(tmp_path / "a.tar", files)) as reader:
        for i in range(len(labels)):
            assert bytes(reader.image(i)) == b"x"
            with pytest.raises(BadLabelError, match=r"has the label b.*, which is not single cls"):
                SampleRule().parse(reader.label_bytes(i), {"a": 0})


def test_images_of_an_unknown_kind(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", {"a.jxl": b"x", "a.cls": b"1", **pair("b", 2)})
    with ShardReader(path) as reader:
        with pytest.raises(BadSample, match="has no image of a known kind"):
            reader.image(0)
        assert (reader.label_bytes(0), reader.key(0)) == (b"1", "a")
        assert bytes(reader.image(1)) == content(2)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.cls": b"1"}, "the sample 'a' has no image"),
        ({**pairs("a"), "b.cls": b"1", **pairs("c")}, "the sample 'b' has no image"),
        ({"a.jpg": b"", **pairs("b")}, r"the sample 'a' has no label (a.cls)"),
        ({"a.jpg": b"x", "a.txt": b"1"}, "the sample 'a' has no label"),
        ({**pairs("a"), "a.png": b""}, "the sample 'a' has two images"),
        ({**pairs("a"), "a.CLS": b"2"}, "the sample 'a' has two members .cls"),
        ({**pairs("a"), **pairs("b"), "README": b""}, ""),
        ({"README": b"x", "__x__": b""}, "it holds no samples"),
        ({}, "it holds no samples"),
    ],
)
def test_incomplete_samples_are_refused(
    tmp_path: Path, files: dict[str, bytes], reason: str
) -> None:
    path = pack(tmp_path / "a.tar", files)
    if reason:
        assert reason in refusal(path)
    else:
        assert len(read(path)) == 2


# ---------------------------------------------------------------- damage


def try_to_read(path: Path) -> Samples | str:
    """Return the samples, or the error message; anything but a ShardError goes on."""
    try:
        return read(path)
    except ShardError as error:
        return str(error)


def headers(path: Path) -> list[int]:
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


def by_webdataset(path: Path) -> Path:
    with path.open("wb") as file, webdataset.TarWriter(file) as writer:
        for i in range(4):
            writer.write({"__key__": str(i), "jpg": content(i), "cls": i})
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "plain": lambda path: pack(path, pairs("a", "b", "c", "d", "e", "f", "g")),
    "times": by_webdataset,
    "gnu": lambda path: pack(path, pairs("a", "l" * 150, "c"), format=tarfile.GNU_FORMAT),
    "pax": lambda path: pack(path, pairs("a", "ü" * 120, "c"), format=tarfile.PAX_FORMAT),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_truncated_shards_are_refused(tmp_path: Path, maker: str) -> None:
    path = MAKERS[maker](tmp_path / "a.tar")
    whole, data = read(path), path.read_bytes()
    expected = ShardInfo("a.tar", len(whole), len(data), "0" * 64)
    end = len(data.rstrip(b"\0"))  # in the last member
    mark = -(-end // BLOCK) * BLOCK  # where the end mark begins
    for boundary in range(0, len(data) + 1, BLOCK):
        for size in boundary - 1, boundary, boundary + 1:
            if not 0 <= size < len(data):
                continue
            path.write_bytes(data[:size])
            assert f"{size} bytes and its manifest says {len(data)}" in refusal(path, expected)
            if size < mark + BLOCK:
                message = refusal(path)
                assert re_truncated(message), message
            else:
                assert read(path) == whole


def re_truncated(message: str) -> bool:
    return any(word in message for word in ("truncated", "it is empty", "damaged"))


@pytest.mark.parametrize("maker", MAKERS)
def test_flipped_bits_in_headers(tmp_path: Path, maker: str) -> None:
    path = MAKERS[maker](tmp_path / "a.tar")
    whole, data = read(path), path.read_bytes()
    blank = {154, 155}  # behind the checksum's digits: says nothing
    with path.open("r+b", buffering=0) as file:
        for start in headers(path):
            for at in range(BLOCK):
                flipped = bytes([data[start + at] ^ 1 << (at % 8)])
                os.pwrite(file.fileno(), flipped, start + at)
                result = try_to_read(path)
                says_nothing = at in blank | {148} and result == whole
                assert isinstance(result, str) or says_nothing, (start, at)
                os.pwrite(file.fileno(), data[start + at : start + at + 1], start + at)


@pytest.mark.parametrize("maker", MAKERS)
def test_random_damage_raises_nothing_else(tmp_path: Path, maker: str) -> None:
    path = MAKERS[maker](tmp_path / "a.tar")
    data = path.read_bytes()
    dice = random.Random(maker)
    for _ in range(500):
        damaged = bytearray(data)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(data))
            damaged[at : at + dice.randint(1, 20)] = dice.randbytes(dice.randint(1, 20))
        path.write_bytes(damaged)
        try:
            with ShardReader(path) as reader:
                for i in range(len(reader)):
                    reader.key(i)
                    bytes(reader.image(i))
        except (ShardError, BadSample):
            pass


def test_files_that_are_no_tars_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for data in b"x", os.urandom(5000), b"\x1f\x8b" + bytes(2000), b"<html>" * 1000:
        path.write_bytes(data)
        refusal(path)
    path.write_bytes(b"")
    assert "it is empty" in refusal(path)
    path.write_bytes(bytes(10240))
    assert "it holds no samples" in refusal(path)
    path.write_bytes(b"<html>" * 1000)
    assert "no valid tar header at byte 0" in refusal(path)


def test_the_error_names_the_shard(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", pairs("a", "b"))
    start = headers(path)[2]
    data = bytearray(path.read_bytes())
    data[start] ^= 1
    path.write_bytes(data)
    assert f"no valid tar header at byte {start}" in refusal(path)


# ---------------------------------------------------------------- what the manifest says


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    assert "no shard at" in refusal(tmp_path / "a b.tar")
    (tmp_path / "a.tar").mkdir()
    assert "Is a directory" in refusal(tmp_path / "a.tar")
    assert issubclass(ShardError, DataError)


def test_a_wrong_number_of_samples_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", pairs("a", "b"))
    size = path.stat().st_size
    assert len(ShardReader(path, ShardInfo("a.tar", 2, size, "0" * 64))) == 2
    refusal(path, ShardInfo("a.tar", 3, size, "0" * 64))


# ---------------------------------------------------------------- life


def test_images_outlive_the_reader(tmp_path: Path) -> None:
    reader = ShardReader(pack(tmp_path / "a.tar", pairs("a", "b", "c", "d")))
    image = reader.image(3)
    assert isinstance(image, memoryview)
    assert image.readonly
    reader.close()
    reader.close()
    assert bytes(image) == content(3)
    with pytest.raises(ValueError, match="released"):
        reader.image(3)


def test_no_copy_of_the_shard_is_made(tmp_path: Path) -> None:
    """The images of a shard are pages of its file: opening it costs 40 bytes a sample."""
    path = pack(tmp_path / "a.tar", {"a.jpg": bytes(1 << 20), "a.cls": b"1"})
    with ShardReader(path) as reader:
        assert reader._index.nbytes == 40
        assert reader.image(0).obj is reader._map


def test_samples_out_of_range(tmp_path: Path) -> None:
    with ShardReader(pack(tmp_path / "a.tar", pairs("a"))) as reader:
        with pytest.raises(IndexError):
            reader.image(1)
        with pytest.raises(IndexError):
            reader.label_bytes(1)
