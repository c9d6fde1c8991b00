"""A set that is written in parts, some of them killed, is the set of one process."""

from dataclasses import replace
from pathlib import Path

import pytest
from foreign_shards import by_webdataset, contents, encoded, jpeg, photo
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import S3

from data_sharding.errors import DataError
from data_sharding.format.sample_rule import SampleRule
from data_sharding.io import filesystem
from data_sharding.io.process_pool import StoppedError
from data_sharding.scanning.scan import ReadOptions
from data_sharding.sources.base import Source
from data_sharding.sources.folder import folder
from data_sharding.sources.shards import from_webdataset
from data_sharding.writing import journal
from data_sharding.writing.dataset_writer import is_published
from data_sharding.writing.parts import (
    PlannedParts,
    load_parts,
    plan_parts,
    publish_parts,
    save_parts,
    write_part,
)
from data_sharding.writing.shard_tasks import WriteSettings
from data_sharding.writing.shard_writer import ImageChecks

SETTINGS = WriteSettings(7, samples_per_shard=2, checks=ImageChecks(0.5, dedupe=True))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("photos")
    for number in range(16):
        path = root / ("val" if number % 4 == 0 else "train") / "ab"[number // 4 % 2] / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = jpeg(number) if number != 5 else encoded(photo(5, mode="CMYK"))
        path.with_suffix(".jpg").write_bytes(data[: 100 if number == 1 else None])
    (root / "train" / "a" / "copy.jpg").write_bytes(jpeg(3))
    return folder(root)


@pytest.fixture(scope="module")
def whole(photos: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    url = tmp_path_factory.mktemp("whole") / "set"
    publish_parts(plan_of(url, ()), photos, ignore)
    return contents(url)


def plan_of(url: Path, names: tuple[str, ...], num_parts: int = 1) -> PlannedParts:
    return PlannedParts(str(url), str(url.parent), SETTINGS, names, num_parts, 1)


def ignore(done: int, total: int) -> None:
    pass


@settings(max_examples=50)
@given(st.integers(0, 100), st.integers(1, 40))
def test_every_shard_is_in_one_part(num_shards: int, num_parts: int) -> None:
    names = [f"train-{number:06d}" for number in range(num_shards)]
    plan = plan_of(Path("x"), tuple(names), num_parts)
    parts = [plan.names_of(part) for part in range(num_parts)]
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("num_parts", [1, 3])
def test_parts_write_the_bytes_of_one_process(
    num_parts: int, photos: Source, whole: dict[str, str], tmp_path: Path
) -> None:
    url = tmp_path / "set"
    names = plan_parts(photos, str(url), SETTINGS, num_workers=1)
    assert len(names) == 8  # 11 images of train, in 6 shards, and 4 of val
    save_parts(plan_of(url, names, num_parts), photos, tmp_path)
    plan, source = load_parts(tmp_path)
    assert plan == plan_of(url, names, num_parts)
    for part in range(num_parts):
        with pytest.raises(StoppedError):
            write_part(plan, source, part, killed_after_three)
        assert not is_published(str(url))
    assert plan.num_finished() == num_parts
    assert len(plan_parts(photos, str(url), SETTINGS, num_workers=1)) == 8 - num_parts
    for part in range(num_parts - 1):
        write_part(plan, source, part, ignore)
    dataset = publish_parts(plan, source, ignore)  # and what the last part has left
    assert not dataset.reused
    assert contents(url) == whole
    write_part(plan, source, 0, ignore)  # a job that was requeued too often
    assert contents(url) == whole


def test_a_record_of_another_number_of_images_does_not_count(
    photos: Source, tmp_path: Path
) -> None:
    url = tmp_path / "set"
    names = plan_parts(photos, str(url), SETTINGS, num_workers=1)
    write_part(plan_of(url, names), photos, 0, ignore)
    assert plan_parts(photos, str(url), SETTINGS, num_workers=1) == ()
    record = url / "in_progress" / f"{names[0]}.json"
    record.write_text(record.read_text().replace('"num_files": 2', '"num_files": 1'))
    assert plan_parts(photos, str(url), SETTINGS, num_workers=1) == names[:1]


def killed_after_three(done: int, total: int) -> None:
    if done == 3:
        raise StoppedError


def test_parts_share_the_lock_and_keep_others_out(
    photos: Source, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_LOCK_TIMEOUT_S", 0)
    url, refused = tmp_path / "set", list[DataError]()
    plan = plan_of(url, plan_parts(photos, str(url), SETTINGS, num_workers=1), 2)

    def write_the_other(done: int, total: int) -> None:
        if done == 1:
            write_part(plan, photos, 1, ignore)
            with pytest.raises(DataError) as caught:
                publish_parts(plan, photos, ignore)
            refused.append(caught.value)

    write_part(plan, photos, 0, write_the_other)
    assert [error.value for error in refused] == [str(url)]
    assert plan.num_finished() == len(plan.names)
    publish_parts(plan, photos, ignore)
    assert contents(url) == whole


@pytest.mark.slow
def test_parts_in_a_bucket(
    photos: Source, whole: dict[str, str], s3_server: S3, tmp_path: Path
) -> None:
    """Where there are no locks, two parts write at the same time too, and others may take over."""
    s3_server.fail()
    url = s3_server.url("parts of a set")
    names = plan_parts(photos, url, SETTINGS, num_workers=1)
    plan = replace(plan_of(tmp_path, names, 2), url=url)

    def write_the_other(done: int, total: int) -> None:
        if done == 1:
            write_part(plan, photos, 1, ignore)
        if done == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        write_part(plan, photos, 0, write_the_other)
    assert plan.num_finished(0) == 1
    assert plan.num_finished(1) == 4
    assert plan_parts(photos, url, SETTINGS, num_workers=1) == plan.names_of(0)[1:]
    write_part(plan, photos, 0, ignore)
    publish_parts(plan, photos, ignore)
    fs, directory = filesystem.store_of(url)
    fs.get(directory, str(tmp_path / "copy"), recursive=True)
    assert contents(tmp_path / "copy") == whole


def test_a_part_of_another_set_is_refused(photos: Source, tmp_path: Path) -> None:
    url = tmp_path / "set"
    plan = plan_of(url, plan_parts(photos, str(url), SETTINGS, num_workers=1))
    plan_parts(photos, str(url), replace(SETTINGS, seed=8), num_workers=1)
    with pytest.raises(DataError) as caught:
        write_part(plan, photos, 0, ignore)
    assert caught.value.value == str(url)
    assert not [path for path in contents(url) if path.endswith(".tar")]


def test_what_no_other_process_sees_is_refused(photos: Source, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        plan_parts(photos, "memory://set", SETTINGS, num_workers=1)
    assert caught.value.value == "memory://set"
    members = {str(i): {"jpg": jpeg(i), "cls": b"0"} for i in range(4)}
    shard = by_webdataset(tmp_path / "a.tar", members)
    reading = ReadOptions(tmp_path, 1, lambda done: None)
    local = from_webdataset([str(shard)], SampleRule(), reading, val_fraction=0.5)
    remote = replace(
        local, splits={k: replace(v, origins=("memory://a.tar",)) for k, v in local.splits.items()}
    )
    with pytest.raises(DataError) as caught:
        plan_parts(remote, str(tmp_path / "set"), SETTINGS, num_workers=1)
    assert caught.value.value == "memory://a.tar"


def test_a_directory_without_a_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_parts(tmp_path)
    assert caught.value.value == tmp_path
