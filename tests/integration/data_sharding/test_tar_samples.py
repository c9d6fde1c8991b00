"""Every member of a tar is an image, a label, or counted, or the tar is refused."""

import io
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.filters import to_tuple
from webdataset.tariterators import group_by_keys, tar_file_expander

from data_sharding.errors import BadSample, ShardError
from data_sharding.format.sample_rule import SampleRule, make_rule
from data_sharding.format.shard_reader import ShardReader

Files = list[tuple[str, bytes]]


def pack(path: Path, files: Files, links: dict[str, str] | None = None) -> Path:
    """Write a tar of these files, and of directories where there are no bytes; links go last."""
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.LNKTYPE, target
            tar.addfile(member)
    return path


def pair(key: str, label: int = 0) -> Files:
    return [(f"{key}.jpg", key.encode()), (f"{key}.cls", str(label).encode())]


def read(path: Path) -> list[tuple[str, bytes, int]]:
    with ShardReader(path) as reader:
        numbers = range(len(reader))
        return [
            (reader.key(i), bytes(reader.image(i)), int(reader.label_bytes(i))) for i in numbers
        ]


def read_plainly(path: Path) -> list[tuple[str, bytes, int]]:
    """Return what webdataset reads, without its opening of URLs, which leaves files open."""
    with path.open("rb") as file:
        found = list(group_by_keys(tar_file_expander([{"url": "x", "stream": file}])))
    return [(s["__key__"], s["jpg"], int(s["cls"])) for s in found]


def refusal(path: Path, rule: SampleRule | None = None) -> str:
    with pytest.raises(ShardError) as caught:
        ShardReader(path, rule=rule or SampleRule())
    return str(caught.value)


def passed_over(path: Path) -> Counter[str]:
    with ShardReader(path) as reader:
        return reader.passed_over.counts


# ---------------------------------------------------------------- any tar

_KEYS = st.sampled_from(["a", "b", "c.d/a", "d/a", "犬", "x y"])
_EXTENSIONS = st.sampled_from(["jpg", "cls", "v2.jpg", "v2.cls", "json", "seg.png", "JPG"])
_OTHERS = ["d/", "c.d/", "d/.DS_Store", "d/._a.jpg", "Thumbs.db", "__MACOSX/d/._a.jpg"]
_OTHERS += ["__meta__", "README", ".hidden.jpg", "d/@eaDir/a.jpg"]
_SINGLE = st.one_of(st.tuples(_KEYS, _EXTENSIONS).map(".".join), st.sampled_from(_OTHERS))
_SAMPLE = _KEYS.map(lambda key: [f"{key}.jpg", f"{key}.cls"])
_NAMES = st.lists(st.one_of(_SAMPLE, _SINGLE.map(lambda name: [name])), max_size=12)


@settings(max_examples=80)
@given(_NAMES.map(lambda parts: [name for part in parts for name in part]), st.data())
def test_every_member_is_used_or_counted(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject
) -> None:
    files = [(name, b"" if name.endswith("/") else b"%d" % i) for i, name in enumerate(names)]
    images = [name for name in names if name.endswith(".jpg") and "." not in name[:1]]
    links = (
        {"z.jpg": data.draw(st.sampled_from(images))} if images and data.draw(st.booleans()) else {}
    )
    path = pack(tmp_path_factory.getbasetemp() / "any.tar", files, links)
    if links:
        with tarfile.open(path, "a") as tar:
            tar.addfile(_file("z.cls", 1), io.BytesIO(b"7"))
    try:
        found = read(path)
    except (ShardError, BadSample):
        return
    num_members = len(files) + 2 * len(links)
    assert 2 * len(found) + passed_over(path).total() == num_members
    plain = [(name, content) for name, content in files if not _is_left_by_a_system(name)]
    mine = [sample for sample in found if sample[0] != "z"]
    assert mine == read_plainly(pack(path, plain))


def _is_left_by_a_system(name: str) -> bool:
    return any(part in name for part in ("/.", "Thumbs.db", "__MACOSX", "@eaDir"))


def _file(name: str, num_bytes: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = num_bytes
    return member


# ---------------------------------------------------------------- several tars in one file


@pytest.mark.parametrize("format_", ["gnu", "pax"])
def test_concatenated_tars_are_all_read(tmp_path: Path, format_: str) -> None:
    long = "l" * 150 if format_ == "gnu" else "ü" * 120
    parts = [pair("0", 1) + pair("1", 2), pair("0", 3) + pair(long, 4), pair("0", 5)]
    tars = [pack(tmp_path / f"{n}.tar", files) for n, files in enumerate(parts)]
    path = tmp_path / "all.tar"
    path.write_bytes(b"".join(tar.read_bytes() for tar in tars))
    assert read(path) == [sample for tar in tars for sample in read(tar)]
    assert read_plainly(path) == read(tars[0])  # which is why it is said
    with ShardReader(path) as reader:
        assert reader.remarks.counts == {"archive behind another": 2}
        assert reader.remarks.firsts == {"archive behind another": "0.jpg"}
    listed = subprocess.run(["tar", "-itf", path], check=True, capture_output=True, text=True)
    assert len(listed.stdout.splitlines()) == 10


def test_trailing_bytes_that_are_no_tar(tmp_path: Path) -> None:
    data = pack(tmp_path / "a.tar", pair("a")).read_bytes()
    path = tmp_path / "b.tar"
    path.write_bytes(data + bytes(5_000_000))
    assert read(path) == read(tmp_path / "a.tar")
    path.write_bytes(data + b"<html>" * 200)
    assert f"no valid tar header at byte {len(data)}" in refusal(path)
    path.write_bytes(data + data[:1000])
    assert "truncated" in refusal(path)


def test_zeroed_header_is_not_the_end(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", pair("a") + pair("b"))
    data = bytearray(path.read_bytes())
    data[2048:2560] = bytes(512)  # the header of b.jpg
    path.write_bytes(data)
    assert "no valid tar header at byte 2560" in refusal(path)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["n_1.v2.jpg", "n_1.v2.cls"], ["n_1.v2.cls", "first dot", "`label`=v2.cls", "'_'"]),
        (["a.v1.jpg", "a.v1.cls", "a.v2.jpg", "a.v2.cls"], ["a.v1.cls", "first dot"]),
        (["n.jpg", "n.cls", "n.v2.jpg", "n.v2.cls"], ["n.v2", "would be lost", "first dot"]),
        (["n.v2.jpg", "n.v2.cls", "n.jpg", "n.cls"], ["n.v2", "would be lost", "first dot"]),
        (["a.jpg", "b.jpg", "a.cls", "b.cls"], ["no label (a.cls)", "tar --sort=name"]),
        (["a.cls", "b.cls", "a.jpg", "b.jpg"], ["no image", "a.jpg", "tar --sort=name"]),
    ],
)
def test_the_error_explains_the_grouping_rule(
    tmp_path: Path, names: list[str], parts: list[str]
) -> None:
    message = refusal(pack(tmp_path / "a.tar", [(name, b"0") for name in names]))
    for part in parts:
        assert part in message, message
    if "sort" not in parts[-1]:
        assert "--sort" not in message


def test_a_mask_belongs_to_its_sample(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [*pair("n"), ("n.seg.png", b"mask"), ("n.v2.jpg", b"")])
    assert read(path) == [("n", b"n", 0)]
    with ShardReader(path) as reader:
        assert reader.passed_over.counts == {"image with another dot in its name": 2}
        assert reader.passed_over.firsts == {"image with another dot in its name": "n.seg.png"}


def test_an_image_under_another_extension_is_named(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [("0.input.jpg", b"x"), ("0.cls", b"1"), *pair("1")])
    with ShardReader(path) as reader:
        assert len(reader) == 2
        with pytest.raises(BadSample, match=r"input\.jpg, cls.*`image`"):
            reader.image(0)


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    for name, data in pair("a"):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "b.cls").write_bytes(b"1")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    path = tmp_path / "x.tar"
    command = ["tar", "-cf", path, "-C", tmp_path, "a.jpg", "a.cls", "b.cls", "b.jpg"]
    subprocess.run(command, check=True)
    assert "b.jpg is a symbolic link" in refusal(path)
    assert "tar --dereference" in refusal(path)
    subprocess.run([*command[:-2], "b.jpg"], check=True)
    assert passed_over(path) == {"symbolic link": 1}


def test_files_of_operating_systems_are_passed_over(tmp_path: Path) -> None:
    """macOS packs `._a.jpg` before `a.jpg`; webdataset takes them for samples called `d/`."""
    names = ["./d/", "./d/.DS_Store", "./d/._a.jpg", "./d/a.jpg", "./d/._a.cls", "./d/a.cls"]
    names += ["./d/Thumbs.db", "__MACOSX/d/._a.jpg", "d/desktop.ini", "d/@eaDir/a.jpg"]
    path = pack(tmp_path / "a.tar", [(name, b"" if name.endswith("/") else b"1") for name in names])
    assert read(path) == [("./d/a", b"1", 1)]
    assert passed_over(path) == {"directory": 1, "file of the system": 7}


def test_keys_that_repeat_are_counted(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", pair("a") + pair("b") + pair("a", 1))
    assert read(path) == read_plainly(path)
    with ShardReader(path) as reader:
        assert reader.remarks.counts == {"repeated key": 1}


@pytest.mark.parametrize("command", ["gzip", "bzip2", "xz"])
def test_a_compressed_tar_is_recognised(tmp_path: Path, command: str) -> None:
    path = pack(tmp_path / "a.tar", pair("a"))
    packed = subprocess.run([command, "-c", path], check=True, capture_output=True)
    path.write_bytes(packed.stdout)
    assert f"compressed ({command})" in refusal(path)


# ---------------------------------------------------------------- chosen members


def images(path: Path, rule: SampleRule) -> list[bytes]:
    with ShardReader(path, rule=rule) as reader:
        return [bytes(reader.image(i)) for i in range(len(reader))]


@pytest.mark.parametrize(
    ("names", "image", "label", "chosen"),
    [
        (["a.input.jpg", "a.cls"], "input.jpg", "cls", "a.input.jpg"),
        (["a.v2.jpg", "a.v2.cls"], "v2.jpg", "v2.cls", "a.v2.jpg"),
        (["a.jpg", "a.target.jpg", "a.cls"], "target.jpg", None, "a.target.jpg"),
        (["a.img", "a.cls"], "img", None, "a.img"),
        (["a.png", "a.JPG", "a.cls"], "jpg;png", None, "a.JPG"),
        (["a.JPG", "a.png", "a.cls"], "png;jpg", None, "a.png"),
        (["a.webp", "a.cls"], "jpg; WebP", None, "a.webp"),
        (["a.jpg", "a.cls", "a.seg.png", "a.seg.cls"], "jpg", None, "a.jpg"),
    ],
)
def test_the_chosen_member_is_the_image(
    tmp_path: Path, names: list[str], image: str, label: str | None, chosen: str
) -> None:
    path = pack(tmp_path / "a.tar", [(name, name.encode()) for name in names])
    rule = make_rule(image, label)
    assert images(path, rule) == [chosen.encode()]
    with ShardReader(path, rule=rule) as reader:
        assert reader.passed_over.counts.total() == len(names) - 2
    with path.open("rb") as file:
        found = [*group_by_keys(tar_file_expander([{"url": "x", "stream": file}]))]
    keys = image.replace(" ", "").lower(), label or "cls"
    assert next(to_tuple(*keys)(found))[0] == chosen.encode()


def test_two_images_of_a_sample_need_a_choice(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [*pair("a"), ("a.png", b"x")])
    with pytest.raises(ShardError, match=r"two images, a\.jpg and a\.png") as caught:
        ShardReader(path)
    assert "`image`" in caught.value.hint


def test_a_sample_without_the_chosen_image_is_named(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [*pair("a"), ("b.png", b"x"), ("b.cls", b"0")])
    with ShardReader(path, rule=make_rule("jpg", None)) as reader:
        assert bytes(reader.image(0)) == b"a"
        with pytest.raises(BadSample, match=r"no image called jpg.* png, cls"):
            reader.image(1)


@pytest.mark.parametrize("image", ["", "jpg;", ".jpg", "j pg", "a/b", "*"])
def test_impossible_names_of_images(image: str) -> None:
    with pytest.raises(ValueError, match="names no extension"):
        make_rule(image, None)


@pytest.mark.parametrize("label", [".cls", ".json:label"])
def test_labels_that_begin_with_a_dot(label: str) -> None:
    with pytest.raises(ValueError, match="begins with a dot"):
        make_rule(None, label)
