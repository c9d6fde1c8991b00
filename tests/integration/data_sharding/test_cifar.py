"""CIFAR's binary archives, small: made here, written, and read back."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from cli_runner import Tahoe
from PIL import Image

from data_sharding.errors import DataError
from data_sharding.format.manifest import read_manifest
from data_sharding.sources.cifar import cifar

RNG = np.random.default_rng(0)


def rows(num: int, num_labels: int, classes: int) -> np.ndarray:
    values = RNG.integers(0, 256, (num, num_labels + 3072), dtype=np.uint8)
    values[:, :num_labels] = np.arange(num)[:, None] % classes
    return values


TEN = {f"data_batch_{i}.bin": rows(20, 1, 10) for i in range(1, 6)} | {
    "test_batch.bin": rows(30, 1, 10)
}
HUNDRED = {"train.bin": rows(200, 2, 100), "test.bin": rows(100, 2, 100)}
HUNDRED["train.bin"][:, 0] = 19  # the coarse label, which does not count


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"cifar-binary/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def ten(**changed: bytes) -> dict[str, bytes]:
    names = "".join(f"class{i}\n" for i in range(10)).encode()
    return {name: data.tobytes() for name, data in TEN.items()} | {
        "batches.meta.txt": names + b"\n",
        **{name.replace("_bin", ".bin"): data for name, data in changed.items()},
    }


def test_cifar_10(tmp_path: Path) -> None:
    archive(tmp_path / "ten.tar.gz", ten())
    Tahoe(tmp_path)("shard", "cifar", "ten.tar.gz", "set")
    manifests = [read_manifest(str(tmp_path / "set"), split) for split in ("train", "val")]
    assert [m.num_samples for m in manifests] == [100, 30]
    assert manifests[0].classes == tuple(f"class{i}" for i in range(10))
    source = cifar(tmp_path / "ten.tar.gz")
    everything = np.concatenate([TEN[f"data_batch_{i}.bin"] for i in range(1, 6)])
    for sample, row in zip(source.splits["train"], everything, strict=True):
        assert sample.label == row[0]
        pixels = np.asarray(Image.open(io.BytesIO(sample.read())))
        # "The first 1024 bytes are the red channel values, the next 1024 the green, ..."
        assert (pixels[..., 0].ravel() == row[1:1025]).all()
        assert (pixels[..., 2].ravel() == row[2049:]).all()


def test_cifar_100_has_the_fine_labels(tmp_path: Path) -> None:
    names = "".join(f"fine{i}\n" for i in range(100)).encode()
    files = {name: data.tobytes() for name, data in HUNDRED.items()}
    source = cifar(archive(tmp_path / "a", files | {"fine_label_names.txt": names}))
    assert len(source.classes) == 100
    assert [sample.label for sample in source.splits["train"]] == [i % 100 for i in range(200)]
    assert source.splits["val"][7].label == 7


@pytest.mark.parametrize(
    ("files", "value"),
    [
        ({"data_batch_1": b"a pickle"}, "a.tar.gz"),
        (ten(test_batch_bin=bytes(3000)), 3000),
        (ten(test_batch_bin=bytes([10]) + bytes(3072)), 10),
    ],
)
def test_other_or_damaged_archives_are_refused(
    tmp_path: Path, files: dict[str, bytes], value: object
) -> None:
    with pytest.raises(DataError) as caught:
        cifar(archive(tmp_path / "a.tar.gz", files))
    assert caught.value.value in (value, str(tmp_path / str(value)))


def test_an_unreadable_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"nothing")
    for name in ("a", "b"):
        with pytest.raises(DataError) as caught:
            cifar(tmp_path / name)
        assert caught.value.value == str(tmp_path / name)


def test_a_batch_that_is_in_the_archive_twice_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for directory in ("old", "new"):
            info = tarfile.TarInfo(f"{directory}/test_batch.bin")
            tar.addfile(info, io.BytesIO())
    with pytest.raises(DataError, match=r"test_batch.bin is in it twice"):
        cifar(tmp_path / "a.tar")
