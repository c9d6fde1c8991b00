"""Laws 1 to 3 in the loader: the same batches from any workers, from any step; no sample lost."""

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from data_sharding import files
from data_sharding.augment import parse_protocol, random_resized_crop
from data_sharding.loader import Batch, EvalSet, ShardSet, TrainSet, load
from data_sharding.manifest import DataError, read_manifest
from data_sharding.order import Order
from data_sharding.sources import folder
from data_sharding.write import write_dataset

NUM_TRAIN, NUM_VAL, BATCH, MICROS = 50, 21, 16, 2
CUT = (3, 4)  # training images, by number, that are cut in half: two in a row


def crop(width, height, draws):
    bounds = {"scale": (0.3, 1.0), "ratio": (0.75, 1.33), "flip_prob": 0.5}
    return random_resized_crop(width, height, draws, **bounds)


def write(root, url, *, cut=()):
    rng = np.random.default_rng(0)
    for split, num in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        for number in range(num):
            file = root / split / f"class{number % 3}" / f"{number:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(file)
            if number in cut:
                file.write_bytes(file.read_bytes()[:300])
    write_dataset(folder(root), url, seed=0, samples_per_shard=20)
    return url


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    where = tmp_path_factory.mktemp("loader")
    return write(where / "images", str(where / "a set"))


@pytest.fixture(scope="module")
def damaged_url(tmp_path_factory):
    where = tmp_path_factory.mktemp("damaged")
    return write(where / "images", str(where / "set"), cut=CUT)


def train_set(url):
    manifest = read_manifest(url, "train")
    sizes = tuple(shard.num_samples for shard in manifest.shards)
    order = Order(sizes, 7, BATCH, 4, MICROS, block_size=8)
    return TrainSet(ShardSet(url, "train", manifest), order, crop, 16, 3)


def eval_set(url, batch_size=8):
    size, view = parse_protocol("center-16-of-20")
    return EvalSet(ShardSet(url, "val", read_manifest(url, "val")), batch_size, view, size, 3)


def names(first, last):
    return [(step, micro) for step in range(first, last) for micro in range(MICROS)]


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))
        assert list(a.bad) == list(b.bad)


# torch thinks that four workers are too many for the cores of a small machine
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [1, 4])
def test_batches_are_the_same_bits_from_any_number_of_workers(url, num_workers):
    dataset = train_set(url)
    alone = list(load(dataset, names(0, 5), 0, pin_memory=False))
    assert_equal(list(load(dataset, names(0, 5), num_workers, pin_memory=False)), alone)


def test_starting_at_a_step_is_the_tail_of_starting_at_the_first(url):
    whole = list(load(train_set(url), names(0, 6), 0, pin_memory=False))
    assert_equal(list(load(train_set(url), names(4, 6), 0, pin_memory=False)), whole[4 * MICROS :])


def test_a_batch_is_bytes_with_the_channels_last(url):
    batch = train_set(url)[0, 0]
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (BATCH // MICROS, 3, 16, 16)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.readable.all()


def test_a_sample_has_another_view_in_another_epoch(url):
    dataset = train_set(url)
    views = {}
    for epoch in (0, 1):
        for step in range(3 * epoch, 3 * epoch + 3):
            for micro in range(MICROS):
                batch = dataset[step, micro]
                for sample, image in zip(batch.ids.tolist(), batch.images, strict=True):
                    views.setdefault(sample, []).append(image)
    pairs = [pair for pair in views.values() if len(pair) == 2]
    assert len(pairs) > 30
    assert not any(torch.equal(*pair) for pair in pairs)


def test_evaluation_has_each_sample_once_and_ends_with_a_shorter_batch(url):
    dataset = eval_set(url)
    batches = [dataset[number] for number in range(len(dataset))]
    assert [len(batch.ids) for batch in batches] == [8, 8, 5]
    assert torch.cat([batch.ids for batch in batches]).tolist() == list(range(NUM_VAL))


def test_an_unreadable_sample_is_replaced_by_the_next_and_named(damaged_url):
    ours, theirs = train_set(damaged_url), train_set(damaged_url)
    batches = [ours[name] for name in names(0, 3)]
    assert_equal(batches, [theirs[name] for name in names(0, 3)])
    bad = [line for batch in batches for line in batch.bad]
    assert all(line.startswith("train/shard-00000") for line in bad)
    named = {line.split(": ")[1].partition("-")[2] for line in bad}
    assert named <= {f"{number:03d}" for number in CUT}
    assert named
    reader = ours.shards
    for batch in batches:
        for sample, image, label in zip(
            batch.ids.tolist(), batch.images, batch.labels, strict=True
        ):
            assert image.any(), f"sample {sample} came without pixels"
            assert 0 <= label < len(reader.manifest.classes)


def test_an_unreadable_sample_is_present_in_evaluation(tmp_path):
    url = write(tmp_path / "images", str(tmp_path / "set"), cut=(0, 20))
    dataset = eval_set(url)
    batches = [dataset[number] for number in range(len(dataset))]
    unreadable = torch.cat([~batch.readable for batch in batches])
    assert unreadable.sum() == 2
    assert len(unreadable) == NUM_VAL
    assert not torch.cat([batch.images for batch in batches])[unreadable].any()


def test_a_data_set_of_nothing_but_damage_is_an_error(tmp_path):
    url = write(tmp_path / "images", str(tmp_path / "set"), cut=range(NUM_TRAIN))
    with pytest.raises(DataError, match="64 samples in a row cannot be read"):
        train_set(url)[0, 0]


def test_a_remote_data_set_says_what_to_do(url):
    for split in ("train", "val"):
        for name in files.list_names(files.join(url, split)):
            data = files.read_bytes(files.join(url, split, name))
            files.write_bytes(f"memory://set/{split}/{name}", data)
    try:
        with pytest.raises(DataError, match="not a local path"):
            train_set("memory://set")[0, 0]
    finally:
        fsspec.filesystem("memory").rm("/", recursive=True)
