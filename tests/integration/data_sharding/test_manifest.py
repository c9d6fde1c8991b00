"""A manifest survives the way through a URL, and nothing hostile or broken in it is believed."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import fsspec
import numpy as np
import pytest

import data_sharding
from data_sharding.errors import DataError
from data_sharding.format.labels import LabelRule
from data_sharding.format.location import Location
from data_sharding.format.manifest import (
    TABLE_NAME,
    Manifest,
    ShardInfo,
    read_manifest,
    write_manifest,
)
from data_sharding.format.shard_table import ShardTable
from data_sharding.io import filesystem

SHARDS = (
    ShardInfo("shard-000000.tar", 3, 10240, "0" * 64),
    ShardInfo("shard-000001.tar", 2, 20480, "a" * 64),
)
TABLE = {"file": "shards.safetensors", "num_bytes": 10, "columns_sha256": "0" * 64}
MANIFEST = Manifest(("cat", "çäß 犬"), SHARDS, {"kind": "folder", "val_fraction": 0.1})


@pytest.fixture(params=["a set", "file://a set", "memory://a set"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param.startswith("memory"):
        return f"memory://{tmp_path}/ünï set"
    return request.param.replace("a set", str(tmp_path / "ünï set"))


def test_round_trip(url: str) -> None:
    write_manifest(url, "train", MANIFEST)
    read = read_manifest(url, "train")
    assert read == MANIFEST
    assert read.fingerprint == MANIFEST.fingerprint
    assert (read.num_samples, read.num_bytes) == (5, 30720)
    assert json.loads(filesystem.read_bytes(filesystem.join(url, "train", "manifest.json"))) == {
        "format": "tahoe-shards-1",
        "classes": ["cat", "çäß 犬"],
        "shards": [
            {"name": s.name, "num_samples": s.num_samples, "num_bytes": s.num_bytes, "sha256": h}
            for s, h in zip(SHARDS, ("0" * 64, "a" * 64), strict=True)
        ],
        "source": {"kind": "folder", "val_fraction": 0.1},
    }


def test_fingerprint_is_the_identity_of_the_data() -> None:
    assert replace(MANIFEST, source={}).fingerprint == MANIFEST.fingerprint
    others = [
        replace(MANIFEST, classes=("çäß 犬", "cat")),
        replace(MANIFEST, shards=SHARDS[::-1]),
        replace(MANIFEST, shards=(SHARDS[0], replace(SHARDS[1], sha256="b" * 64))),
    ]
    assert len({MANIFEST.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_fingerprint_never_changes() -> None:
    """It is written into the identity of runs."""
    manifest = Manifest(("ä",), (ShardInfo("a.tar", 3, 10240, "0" * 64),), {"kind": "any"})
    table = b"(1, 5)" + b"a.tar" + (3).to_bytes(8, "little") + (10240).to_bytes(8, "little")
    digest = sha256(table + bytes(32)).hexdigest()
    canonical = f'[["\\u00e4"],{{"extension":"cls","field":null,"kind":"single"}},"{digest}"]'
    assert manifest.fingerprint == sha256(canonical.encode()).hexdigest()


def test_a_missing_manifest_is_an_error(url: str) -> None:
    with pytest.raises(DataError, match="no data set at") as caught:
        read_manifest(url, "val")
    assert caught.value.value == url
    assert "`folder`" in caught.value.hint


def test_unreadable_store(tmp_path: Path) -> None:
    (tmp_path / "train" / "manifest.json").mkdir(parents=True)
    with pytest.raises(DataError, match="IsADirectoryError"):
        read_manifest(str(tmp_path), "train")
    with pytest.raises(DataError, match="Protocol not known: nope"):
        read_manifest("nope://set", "train")


def values(**changes: object) -> dict[str, object]:
    shard = {"name": "a.tar", "num_samples": 1, "num_bytes": 10240, "sha256": "0" * 64}
    sound = {"format": "tahoe-shards-1", "classes": ["a"], "shards": [shard], "source": {}}
    top = {name: value for name, value in changes.items() if name in sound or name == "extra"}
    shard.update({name: value for name, value in changes.items() if name not in top})
    return {**sound, **top}


def read(tmp_path: Path, text: str | bytes) -> Manifest:
    filesystem.write_bytes(
        str(tmp_path / "train" / "manifest.json"), text.encode() if isinstance(text, str) else text
    )
    return read_manifest(str(tmp_path), "train")


def test_the_sound_one_is_sound(tmp_path: Path) -> None:
    assert read(tmp_path, json.dumps(values())).num_samples == 1


@pytest.mark.parametrize(
    "name",
    ["../a.tar", "a/../../b.tar", "./a.tar", "a//b.tar", "..", "a.tar/", "a.tar\n", "a.zip",
     ".tar/../a.tar", "a.tar\0", "", ".tar", 7, None],
)  # fmt: skip
def test_hostile_shard_names(tmp_path: Path, name: object) -> None:
    with pytest.raises(DataError, match=r"shards\.0\.name: "):
        read(tmp_path, json.dumps(values(name=name)))


@pytest.mark.parametrize("name", ["/etc/a.tar", "s3://b/a.tar"])
def test_shards_elsewhere_are_not_read(tmp_path: Path, name: str) -> None:
    manifest = read(tmp_path, json.dumps(values(name=name)))
    with pytest.raises(DataError) as error:
        Location(str(tmp_path)).shard_url("train", manifest.shards[0].name)
    assert error.value.value == name


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_samples": -1}, r"shards\.0\.num_samples: .* greater than 0, found -1"),
        ({"num_samples": 0}, r"shards\.0\.num_samples"),
        ({"num_samples": "1"}, r"shards\.0\.num_samples"),
        ({"num_samples": True}, r"shards\.0\.num_samples"),
        ({"num_samples": 1.0}, r"shards\.0\.num_samples"),
        ({"num_bytes": -512}, r"shards\.0\.num_bytes"),
        ({"sha256": "0" * 63}, r"shards\.0\.sha256"),
        ({"sha256": "G" * 64}, r"shards\.0\.sha256"),
        ({"surprise": 1}, r"shards\.0\.surprise"),
        ({"extra": 1}, "extra: "),
        ({"shards": []}, "there are no shards"),
        ({"shards": "ab"}, "shards: "),
        ({"shards": {}}, r"shards\.file: Field required"),
        ({"shards": {**TABLE, "columns_sha256": "../a"}}, r"shards\.columns_sha256: "),
        ({"shards": {**TABLE, "surprise": 1}}, r"shards\.surprise"),
        ({"shards": ["a.tar"]}, r"shards\.0: "),
        ({"classes": []}, "there are no classes"),
        ({"classes": "ab"}, "classes: "),
        ({"classes": [1]}, r"classes\.0: "),
        ({"classes": ["a", "b", "a"]}, "the class 'a' is listed twice"),
        ({"shards": values()["shards"] * 2}, "the shard 'a.tar' is listed twice"),  # type: ignore[operator]
        ({"source": []}, "source: "),
    ],
)
def test_impossible_values_are_refused(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read(tmp_path, json.dumps(values(**changes)))
    assert caught.value.value == str(tmp_path / "train" / "manifest.json")


def test_a_table_elsewhere_is_not_read(tmp_path: Path) -> None:
    table = {**TABLE, "file": "../a.safetensors"}
    with pytest.raises(DataError) as error:
        read(tmp_path, json.dumps(values(shards=table)))
    assert error.value.value == str(tmp_path / "train" / "../a.safetensors")


@pytest.mark.parametrize("text", ["", "{", "{}{}", b"\xff\xfe", "[" * 100_000, "nul", '{"a": 1,}'])
def test_broken_json(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(DataError, match="it is not JSON"):
        read(tmp_path, text)


def test_json_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it is not a JSON object"):
        read(tmp_path, "[]")
    for version in None, "tahoe-shards-2":
        with pytest.raises(DataError) as caught:
            read(tmp_path, json.dumps(values(format=version)))
        assert caught.value.value == version


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a b" / "manifest.json"
    filesystem.write_bytes(str(target), b"old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        filesystem.write_bytes(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in target.parent.iterdir()] == ["manifest.json"]


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    target = tmp_path / "manifest.json"
    filesystem.write_bytes(str(target), b"old")
    with target.open("rb") as reader:
        filesystem.write_bytes(str(target), b"new")
        assert reader.read() == b"old"
    assert target.read_bytes() == b"new"


def test_files_by_url(url: str) -> None:
    assert filesystem.list_names(url) == []
    for name in "b", "a":
        filesystem.write_bytes(filesystem.join(url, "sub dir", name), name.encode())
    assert filesystem.list_names(filesystem.join(url + "/", "sub dir")) == ["a", "b"]
    assert filesystem.read_bytes(filesystem.join(url, "sub dir", "b")) == b"b"
    filesystem.remove(filesystem.join(url, "sub dir", "a"))
    filesystem.remove(filesystem.join(url, "sub dir", "a"))
    assert not filesystem.exists(filesystem.join(url, "sub dir", "a"))
    path = filesystem.local_path(url)
    assert (path is None) == url.startswith("memory")
    assert path is None or (path / "sub dir" / "b").is_file()


def test_published_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    filesystem.write_bytes(str(tmp_path / "published"), b"")
    assert (tmp_path / "published").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys, data_sharding.format.manifest, data_sharding.format.shard_reader;"
        "import data_sharding.sources.base;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'webdataset', 'sklearn', 'hydra')))"
    )
    home = Path(data_sharding.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=home, check=True)


# ---------------------------------------------------------------- a million shards


def many(num: int = 10_001) -> Manifest:
    rng = np.random.default_rng(0)
    shards = [
        ShardInfo(f"shard-{i:06d}.tar", int(n), 10240 * int(n), rng.bytes(32).hex())
        for i, n in enumerate(rng.integers(1, 100, num))
    ]
    return Manifest(("a", "b"), shards, {"kind": "any"})


def test_many_shards_are_a_table_beside_the_manifest(tmp_path: Path) -> None:
    listed, table = many(10_000), many()
    for url, manifest in ((str(tmp_path / "a"), listed), (str(tmp_path / "b"), table)):
        write_manifest(url, "train", manifest)
        found = read_manifest(url, "train")
        assert found == manifest
        assert found.fingerprint == manifest.fingerprint
        assert found.num_samples == sum(shard.num_samples for shard in manifest.shards)
        assert list(found.shards) == list(manifest.shards)
    assert filesystem.list_names(str(tmp_path / "a" / "train")) == ["manifest.json"]
    assert filesystem.list_names(str(tmp_path / "b" / "train")) == ["manifest.json", TABLE_NAME]
    assert listed.fingerprint != table.fingerprint


def test_a_table_travels_as_its_path(tmp_path: Path) -> None:
    write_manifest(str(tmp_path), "train", many())
    mapped = read_manifest(str(tmp_path), "train").shards
    sent = pickle.dumps(mapped)
    assert len(sent) < 1000
    assert pickle.loads(sent) == mapped == pickle.loads(pickle.dumps(many().shards))


def test_a_remote_table_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    manifest = many()
    try:
        write_manifest("memory://many", "train", manifest)
        assert read_manifest("memory://many", "train") == manifest
        (copy,) = tmp_path.glob("tahoe-*/tables/*.safetensors")
        copy.write_bytes(copy.read_bytes()[:-1])  # cut short by a full disk, say
        assert read_manifest("memory://many", "train") == manifest
        filesystem.remove(f"memory://many/train/{TABLE_NAME}")
        assert read_manifest("memory://many", "train") == manifest
        copy.unlink()
        with pytest.raises(DataError, match=TABLE_NAME):
            read_manifest("memory://many", "train")
    finally:
        fsspec.filesystem("memory").rm("/", recursive=True)


@pytest.mark.parametrize(
    ("offset", "value"), [(0, 1), (7, 255), (8, 0), (30, 0), (-1, 7), (400, 7), (10_001 * 20, 200)]
)
def test_a_damaged_table_is_refused(tmp_path: Path, offset: int, value: int) -> None:
    write_manifest(str(tmp_path), "train", many())
    path = tmp_path / "train" / TABLE_NAME
    damaged = bytearray(path.read_bytes())
    damaged[offset] = value if damaged[offset] != value else value + 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=TABLE_NAME):
        read_manifest(str(tmp_path), "train")


def test_a_table_with_trailing_bytes_is_refused(tmp_path: Path) -> None:
    write_manifest(str(tmp_path), "train", many())
    path = tmp_path / "train" / TABLE_NAME
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match=f"it has {size + 1} bytes, not {size}"):
        read_manifest(str(tmp_path), "train")


@pytest.mark.parametrize("size", [0, 7, 100, 10_000, 600_000])
def test_a_truncated_table_is_refused(tmp_path: Path, size: int) -> None:
    write_manifest(str(tmp_path), "train", many())
    path = tmp_path / "train" / TABLE_NAME
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=TABLE_NAME):
        read_manifest(str(tmp_path), "train")
    path.unlink()
    with pytest.raises(DataError, match="No such file"):
        read_manifest(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("names", "num_samples", "reason"),
    [
        ([b"a.tar", b"b.tar"], [1, 0], r"shards.1.num_samples: 0 is not from 1 to 2\*\*62 - 1"),
        ([b"a.tar", b"a.tar"], [1, 1], "'a.tar' is listed twice"),
        ([b"b.tar", b"a.tar", b"b.tar"], [1, 1, 1], "'b.tar' is listed twice"),
        ([b"a.tar", b"../b.tar"], [1, 1], "no name of a .tar file"),
        ([b"a.tar", b".tar"], [1, 1], "no name of a .tar file"),
        ([b"a.tar", b"b.zip"], [1, 1], "no name of a .tar file"),
        ([b"aa.tar", b"a\0.tar"], [1, 1], "no name of a .tar file"),
        ([b"a.tar", b""], [1, 1], "no name of a .tar file"),
    ],
)
def test_a_table_with_impossible_values_is_refused(
    names: list[bytes], num_samples: list[int], reason: str
) -> None:
    num, as_bytes = len(names), np.array(names, dtype=np.bytes_)
    table = ShardTable(
        as_bytes.view(np.uint8).reshape(num, -1),
        np.array(num_samples),
        np.ones(num, dtype=np.int64),
        np.zeros((num, 32), dtype=np.uint8),
    )
    with pytest.raises(ValueError, match=reason):
        Manifest(("a",), table, {})


def test_other_label_rules_are_in_the_manifest(tmp_path: Path) -> None:
    rule = LabelRule("multi", "json", "tags")
    shards = (ShardInfo("a.tar", 3, 10240, "0" * 64),)
    manifest = Manifest(("a",), shards, {}, rule)
    write_manifest(str(tmp_path), "train", manifest)
    assert read_manifest(str(tmp_path), "train").labels == rule
    assert manifest.fingerprint != Manifest(("a",), shards, {}).fingerprint
    assert Manifest((), shards, {}, LabelRule("none")).classes == ()
