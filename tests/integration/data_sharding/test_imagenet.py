"""ImageNet's archives, small: a tar of tars, a tar, a development kit, made here."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from cli_runner import Tahoe
from PIL import Image
from scipy.io import savemat

from data_sharding.errors import DataError
from data_sharding.format.manifest import read_manifest
from data_sharding.sources import imagenet as imagenet_source
from data_sharding.sources.base import Source
from data_sharding.sources.imagenet import Archives, imagenet

# In the kit's own order, which is not the sorted one; the last has children and is no class.
KIT = [(1, "n03", 0), (2, "n01", 0), (3, "n02", 0), (4, "n00", 2)]
TRUTH = [3, 1, 2, 2, 1, 3]  # ILSVRC2012_IDs of the validation images
LABEL = {1: 2, 2: 0, 3: 1}  # of the sorted WordNet ids


def jpeg(seed: int, form: str = "JPEG", mode: str = "RGB") -> bytes:
    rng = np.random.default_rng(seed)
    shape = (24, 30, len(mode)) if len(mode) > 1 else (24, 30)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode).save(file, form)
    return file.getvalue()


def tar_of(members: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def kit(truth: list[int] = TRUTH) -> bytes:
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children"]
    synsets = np.zeros(len(KIT), dtype=[(name, object) for name in fields])
    for row, (number, wnid, children) in zip(synsets, KIT, strict=True):
        row["ILSVRC2012_ID"], row["WNID"], row["num_children"] = number, wnid, children
        row["words"] = row["gloss"] = wnid
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    lines = "".join(f"{one}\n" for one in truth).encode()
    home = "ILSVRC2012_devkit_t12/data"
    return tar_of(
        {f"{home}/meta.mat": meta.getvalue(), f"{home}/{imagenet_source._TRUTH}": lines}, "w:gz"
    )


TRAIN = {
    wnid: {f"{wnid}_{n}.JPEG": jpeg(100 * int(wnid[1:]) + n) for n in (12, 3, 7, 5)}
    for wnid in ("n02", "n03", "n01")
}
TRAIN["n01"]["n01_3.JPEG"] = jpeg(1, "PNG")  # as one of ImageNet's is
TRAIN["n02"]["n02_7.JPEG"] = jpeg(2, mode="CMYK")  # as 22 are
VAL = {f"ILSVRC2012_val_{n:08d}.JPEG": jpeg(n) for n in (2, 1, 3, 4, 6, 5)}


def whole() -> bytes:
    return tar_of({f"{wnid}.tar": tar_of(images) for wnid, images in TRAIN.items()})


def damaged() -> bytes:
    """One header inside of a class, not the first, has a wrong bit."""
    data = bytearray(whole())
    data[data.index(b"n02_3.JPEG")] ^= 1
    return bytes(data)


def write(place: Path, **changed: bytes) -> Archives:
    data = {"train": whole(), "val": tar_of(VAL), "devkit": kit(), **changed}
    for name, content in data.items():
        (place / name).write_bytes(content)
    return Archives(place / "train", place / "val", place / "devkit")


def subset(archives: Archives) -> Source:
    return imagenet(archives, is_subset=True, on_checked=lambda megabytes: None)


def test_each_image_has_its_bytes_and_its_label(tmp_path: Path) -> None:
    source = subset(write(tmp_path))
    assert source.classes == ("n01", "n02", "n03")
    train = list(source.splits["train"])
    assert len(train) == 12
    for sample in train:
        name = sample.key[9:]
        wnid = name.partition("_")[0]
        assert sample.label == source.classes.index(wnid)
        assert sample.read() == TRAIN[wnid][f"{name}.JPEG"]
    val = list(source.splits["val"])
    assert [sample.label for sample in val] == [LABEL[one] for one in TRUTH]
    for number, sample in enumerate(val, start=1):
        assert sample.read() == VAL[f"ILSVRC2012_val_{number:08d}.JPEG"]
    assert source.num_bytes["train"].sum() == sum(
        len(d) for i in TRAIN.values() for d in i.values()
    )
    assert subset(write(tmp_path)).fingerprint == source.fingerprint


def test_written_as_shards_without_unpacking(tmp_path: Path) -> None:
    write(tmp_path)
    tahoe = Tahoe(tmp_path)
    archives = ("--train", "train", "--val", "val", "--devkit", "devkit")
    tahoe("shard", "imagenet", *archives, "--subset", "set")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert before == ["devkit", "set", "train", "val"]
    manifests = {split: read_manifest(str(tmp_path / "set"), split) for split in ("train", "val")}
    assert {split: m.num_samples for split, m in manifests.items()} == {"train": 12, "val": 6}
    assert manifests["train"].classes == ("n01", "n02", "n03")
    stored = {}
    for shard in (tmp_path / "set" / "train").glob("*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar:
                stored[member.name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    (png,) = [name for name in stored if name.endswith(".png")]
    assert stored[png] == TRAIN["n01"]["n01_3.JPEG"]
    assert "n01_3" in png

    refused = tahoe("shard", "imagenet", *archives, "another", check=False)
    assert refused.returncode == 1
    assert "1d675b47d978889d74fa0da5fadfb00e" in refused.stderr
    assert "subset" in refused.stderr
    assert not (tmp_path / "another").exists()


def test_counts_other_than_those_of_imagenet_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives, seen = write(tmp_path), list[int]()
    digests = {
        name: imagenet_source.hashlib.md5(path.read_bytes()).hexdigest()
        for name, path in vars(archives).items()
    }
    monkeypatch.setattr(imagenet_source, "MD5", digests)
    with pytest.raises(DataError) as caught:
        imagenet(archives, is_subset=False, on_checked=seen.append)
    assert caught.value.value == (3, 12, 6)
    assert len(seen) == 3
    for name, number in (("NUM_CLASSES", 3), ("NUM_TRAIN", 12), ("NUM_VAL", 6)):
        monkeypatch.setattr(imagenet_source, name, number)
    assert len(imagenet(archives, is_subset=False, on_checked=seen.append).classes) == 3


def without(name: str) -> bytes:
    return tar_of({n: data for n, data in VAL.items() if n != name})


def linked(kind: bytes) -> bytes:
    """One image is a link to the one before it, as GNU tar stores the second name of a file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("n01_3.JPEG")
        info.type, info.linkname = kind, "n01_12.JPEG"
        tar.addfile(info)
    return file.getvalue()


def of_n01(data: bytes) -> bytes:
    others = {f"{wnid}.tar": tar_of(TRAIN[wnid]) for wnid in ("n02", "n03")}
    return tar_of({"n01.tar": data, **others})


TWICE = tar_of({"a/n01_3.JPEG": b"", "b/n01_3.JPEG": b""})


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"train": tar_of({"n01.tar": tar_of(TRAIN["n01"])})}, "2 classes, n02"),
        ({"train": tar_of({"n09.tar": tar_of({})})}, "n09.tar"),
        ({"train": b"no tar" * 200}, "train is no complete tar"),
        ({"train": tar_of({"n01.tar": b"no tar" * 200})}, "n01.tar is no complete tar"),
        ({"train": whole()[:-11_000]}, "is no complete tar"),
        ({"train": damaged()}, "n02.tar is no complete tar"),
        ({"val": without("ILSVRC2012_val_00000006.JPEG")}, "5 images, .* 6 labels"),
        ({"val": tar_of({**VAL, "a.JPEG": b""}), "devkit": kit([*TRUTH, 1])}, "image 7"),
        ({"train": of_n01(linked(tarfile.LNKTYPE))}, "n01.tar .* n01_3.JPEG is a link"),
        ({"train": of_n01(linked(tarfile.SYMTYPE))}, "n01.tar .* n01_3.JPEG is a link"),
        ({"train": of_n01(TWICE)}, "n01.tar .* n01_3.JPEG is in it twice"),
        ({"train": of_n01(2 * tar_of(TRAIN["n01"]))}, "n01.tar .* more behind its end"),
        ({"train": whole() + whole()}, "more behind its end"),
        ({"devkit": b"nothing"}, "no development kit"),
        ({"devkit": tar_of({"a/meta.mat": b"no matlab"}, "w:gz")}, "no development kit"),
        ({"devkit": tar_of({"readme": b""}, "w:gz")}, "it has no ILSVRC2012_validation"),
        ({"devkit": kit([3, 1, 2, 2, 1, 4])}, "labels images with 4"),
    ],
)
def test_damaged_or_inconsistent_archives_are_refused(
    tmp_path: Path, changed: dict[str, bytes], named: str
) -> None:
    with pytest.raises(DataError, match=named):
        subset(write(tmp_path, **changed))


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    archives = write(tmp_path)
    archives.val.unlink()
    with pytest.raises(DataError) as caught:
        subset(archives)
    assert caught.value.value == str(archives.val)


def test_names_are_never_paths(tmp_path: Path) -> None:
    climbing = tar_of({"../../n01.tar": tar_of({"/etc/n01_1.JPEG": jpeg(5)})})
    images = {f"{wnid}.tar": tar_of(TRAIN[wnid]) for wnid in ("n02", "n03")}
    with tarfile.open(fileobj=io.BytesIO(climbing)) as tar:
        (member,) = tar.getmembers()
        data = tar.extractfile(member).read()  # type: ignore[union-attr]
    source = subset(write(tmp_path, train=tar_of({"../../n01.tar": data, **images})))
    assert source.splits["train"][0].key.endswith("-n01_1")
