"""A shard's samples are those of webdataset, whatever its members are called and in any order.

What webdataset gets wrong is left to test_tar_samples.py: hidden files, hard links, joined tars.
"""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import webdataset
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from data_sharding.errors import BadSample, ShardError
from data_sharding.format.image_formats import IMAGE_EXTENSIONS
from data_sharding.format.labels import LabelRule
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_reader import ShardReader

FORMATS = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)
RULES = tuple(SampleRule(LabelRule(extension=e)) for e in ("cls", "txt", "json", "meta.id"))
NO_LABELS = SampleRule(LabelRule("none"))

Sample = tuple[str, bytes | None, bytes]  # key, image, label; no image of a known kind is None


class Member(NamedTuple):
    name: str
    kind: bytes = tarfile.REGTYPE


LONG = "d" * 90 + "/" + "e" * 60 + "/"  # beyond what a header of 1979 holds
DIRECTORIES = ("", "", "", "./", "d/", "d.e/", "__d__/", LONG)
BASES = ("a", "a", "b", "A", "é", "x y", "__m__")
EXTENSIONS = (
    "JPG",
    "png",
    "CLS",
    "txt",
    "json",
    "seg.png",
    "1.jpg",
    "meta.id",
    "tar",
    "",
    "jpg/cls",
)
OTHERS = (Member("README"), Member("a/"), Member("a.jpg", tarfile.SYMTYPE), Member("__m__"))
OTHERS += (Member("a", tarfile.DIRTYPE), Member("a.b.c"))


def key() -> st.SearchStrategy[str]:
    return st.builds("".join, st.tuples(st.sampled_from(DIRECTORIES), st.sampled_from(BASES)))


@st.composite
def groups(draw: st.DrawFn) -> list[Member]:
    """Return members that are more or less a sample."""
    usual = draw(st.sampled_from([("jpg", "cls"), ("jpg", "cls"), ("jpg",), ("cls",), ()]))
    extensions = [*usual, *draw(st.lists(st.sampled_from(EXTENSIONS), max_size=2))]
    members = sample(draw(key()), *draw(st.permutations(extensions)))
    if draw(st.integers(0, 3)) == 0:
        members.insert(draw(st.integers(0, len(members))), draw(st.sampled_from(OTHERS)))
    return members


def sample(key: str, *extensions: str) -> list[Member]:
    return [Member(f"{key}.{extension}") for extension in extensions]


def pack(path: Path, members: Sequence[Member], format_: int) -> None:
    """Write a tar; every member holds its own number."""
    with tarfile.open(path, "w", format=format_) as tar:
        for number, member in enumerate(members):
            data = f"{number}".encode() if member.kind == tarfile.REGTYPE else b""
            info = tarfile.TarInfo(member.name)
            info.type, info.size, info.linkname = member.kind, len(data), "a.jpg" * (not data)
            tar.addfile(info, io.BytesIO(data))


def by_webdataset(path: Path) -> list[dict[str, Any]] | None:
    """Return the samples of a tar; None where webdataset finds a member twice."""
    source = {"url": str(path), "stream": io.BytesIO(path.read_bytes())}
    try:
        return list(group_by_keys(tar_file_expander([source])))
    except ValueError as error:
        if "duplicate file name" in str(error):
            return None
        raise


def expected(found: list[dict[str, Any]] | None, rule: SampleRule) -> list[Sample] | None:
    """Return what webdataset's samples are to us; None where the shard is an error."""
    samples = []
    for members in found or ():
        others = {name for name in members if not name.startswith("__")}
        labels = others & {rule.labels.extension} if rule.labels.kind != "none" else set()
        images = sorted((others - labels) & IMAGE_EXTENSIONS)
        if len(images) > 1 or not others - labels or (rule.labels.kind != "none" and not labels):
            return None
        image = members[images[0]] if images else None
        samples.append(
            (members["__key__"], image, members[rule.labels.extension] if labels else b"")
        )
    return samples or None


def by_tahoe(path: Path, rule: SampleRule) -> list[Sample] | None:
    try:
        with ShardReader(path, rule=rule) as reader:
            everything = range(len(reader))
            return [(reader.key(i), image(reader, i), reader.label_bytes(i)) for i in everything]
    except ShardError:
        return None


def image(reader: ShardReader, i: int) -> bytes | None:
    try:
        return bytes(reader.image(i))
    except BadSample:
        return None


@settings(max_examples=200)
@given(st.lists(groups(), max_size=4), st.sampled_from(FORMATS))
@example([[Member("a.jpg"), Member("a.cls"), Member("a.json"), Member("a.JSON")]], FORMATS[0])
def test_any_members(groups: list[list[Member]], format_: int) -> None:
    check([member for members in groups for member in members], format_)


@settings(max_examples=100)
@given(st.data(), st.sampled_from(FORMATS))
def test_whole_samples_with_their_members_in_any_order(data: st.DataObject, format_: int) -> None:
    """As above, and nearly always a sound shard."""
    members = []
    for number in range(data.draw(st.integers(1, 4))):
        directory = data.draw(st.sampled_from(["", "d.e/", LONG]))
        mine = sample(f"{directory}{number}", "jpg", "cls", "txt", "json", "seg.png", "meta.id")
        members += data.draw(st.permutations(mine))
    assert check(members, format_) == {True}


def check(members: list[Member], format_: int) -> set[bool]:
    """Compare by all rules; return whether shards were sound."""
    sound = set()
    with TemporaryDirectory() as directory:
        path = Path(directory, "a.tar")
        pack(path, members, format_)
        found = by_webdataset(path)
        for rule in (*RULES, NO_LABELS):
            wanted = expected(found, rule)
            event(f"{rule}: {'an error' if wanted is None else 'sound'}")
            assert by_tahoe(path, rule) == wanted
            sound.add(wanted is not None)
    return sound


@pytest.mark.parametrize(
    "rule", [SampleRule(LabelRule(extension="txt")), SampleRule(LabelRule(extension="json"))]
)
def test_shards_of_img2dataset(tmp_path: Path, rule: SampleRule) -> None:
    """It writes KEY.jpg, KEY.txt, KEY.json; what is not asked for is passed over."""
    path = tmp_path / "00000.tar"
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for i in range(3):
            caption, facts = f"class {i}".encode(), f'"class {i}"'.encode()
            writer.write({"__key__": f"{i:09d}", "jpg": b"%d" % i, "txt": caption, "json": facts})
    with ShardReader(path, rule=rule) as reader:
        assert [bytes(reader.image(i)) for i in range(3)] == [b"0", b"1", b"2"]
        numbers = {f"class {i}": i for i in range(3)}
        assert [rule.parse(reader.label_bytes(i), numbers) for i in range(3)] == [(0,), (1,), (2,)]
        assert [reader.key(i) for i in range(3)] == ["000000000", "000000001", "000000002"]


def test_an_image_goes_by_its_whole_extension(tmp_path: Path) -> None:
    members = sample("a", "seg.png", "jpg", "cls", "depth.tiff")
    pack(tmp_path / "a.tar", members, tarfile.GNU_FORMAT)
    with ShardReader(tmp_path / "a.tar") as reader:
        assert (bytes(reader.image(0)), reader.label_bytes(0)) == (b"1", b"2")


def test_names_of_any_length(tmp_path: Path) -> None:
    key = "d/" * 40_000 + "a"
    for format_ in tarfile.GNU_FORMAT, tarfile.PAX_FORMAT:
        pack(tmp_path / "a.tar", sample(key, "jpg", "cls"), format_)
        assert by_tahoe(tmp_path / "a.tar", SampleRule()) == [(key, b"0", b"1")]
