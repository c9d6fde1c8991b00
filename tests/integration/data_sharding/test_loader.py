"""Laws 1 to 3 in the loader: the same batches from any workers, from any step; no sample lost."""

import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_shards import encoded, photo
from PIL import Image

import data_sharding
from data_sharding.errors import BadSample, DataError, ShardError, UnavailableError
from data_sharding.format.location import Location
from data_sharding.format.manifest import read_manifest
from data_sharding.format.shard_reader import ShardReader
from data_sharding.loading.datasets import EvalDataset, TrainDataset
from data_sharding.loading.kept_images import KeptImages, Layout, find_kept
from data_sharding.loading.loader import Batch, iter_batches, ring_bytes
from data_sharding.loading.shared_buffers import SHARED_MEMORY, check_space
from data_sharding.loading.split_reader import SplitReader
from data_sharding.rng import derive_key, uniform
from data_sharding.sampling.class_balanced import BalancedOrder, ClassIndex
from data_sharding.sampling.sample_order import MicroBatchKey, Part, SampleOrder
from data_sharding.sources.base import Sample, Source
from data_sharding.sources.folder import folder
from data_sharding.storage.shard_store import open_store
from data_sharding.transforms.crops import NUM_RANDOMS, random_resized_crop
from data_sharding.transforms.eval_protocol import parse_protocol
from data_sharding.transforms.padded_crop import PaddedCrop
from data_sharding.transforms.pixel_transforms import PixelAugment, make_augment
from data_sharding.transforms.progressive_resize import ImageSizeSchedule
from data_sharding.writing.dataset_writer import write_dataset

NUM_TRAIN, NUM_VAL, BATCH, MICROS = 50, 21, 16, 2
CUT = (3, 4)  # training images, by number, that are cut in half: two in a row


def crop(width, height, draws):
    bounds = {"scale": (0.3, 1.0), "ratio": (0.75, 1.33), "hflip_prob": 0.5}
    return random_resized_crop(width, height, draws, **bounds)


def png(number):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(root, url, *, cut=()):
    for split, num in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        for number in range(num):
            file = root / split / f"class{number % 3}" / f"{number:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(number)[: 300 if number in cut else None])
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


NOTHING = PixelAugment(())


def shard_set(url, split):
    manifest = read_manifest(url, split)
    return SplitReader(split, manifest, open_store(Location(url), split, None, manifest.rule))


def train_set(
    url,
    *,
    sizes=ImageSizeSchedule(16),  # noqa: B008
    augment=NOTHING,
    samples_per_crop=1,
    num_parts=1,
    **options,
):
    shards = shard_set(url, "train")
    sizes_of_shards = shards.manifest.shards.num_samples
    order = SampleOrder(sizes_of_shards, 7, BATCH, 4, MICROS, block_size=8, **options)
    return TrainDataset(shards, order, crop, augment, sizes, 3, samples_per_crop, num_parts)


def eval_set(url, batch_size=8, protocol="center-16-of-20"):
    return EvalDataset(shard_set(url, "val"), batch_size, parse_protocol(protocol), 3)


def collect(dataset, keys, num_workers=0):
    """Return all batches, copied out of the memory that they come in."""
    loaded = iter_batches(dataset, keys, num_workers)
    return [batch._replace(images=batch.images.clone()) for batch in loaded]


def one(dataset, name):
    return collect(dataset, [name])[0]


def names(first, last):
    steps = range(first, last)
    return [MicroBatchKey(step, micro) for step in steps for micro in range(MICROS)]


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))
        assert list(a.bad) == list(b.bad)


# torch thinks that four workers are too many for the cores of a small machine
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_batches_are_the_same_bits_from_any_number_of_workers(url, num_workers):
    dataset = train_set(url)
    alone = collect(dataset, names(0, 5))
    assert_equal(collect(dataset, names(0, 5), num_workers), alone)
    tail = collect(dataset, names(3, 5), num_workers)
    assert_equal(tail, alone[3 * MICROS :])
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in tail)


def test_evaluation_is_the_same_from_a_worker(damaged_url):
    dataset = eval_set(damaged_url)
    alone, apart = (collect(dataset, range(3), n) for n in (0, 1))
    assert_equal(apart, alone)


def test_an_error_in_a_worker_keeps_its_type_and_fields(url, tmp_path):
    incomplete = tmp_path / "set"
    shutil.copytree(url, incomplete)
    (incomplete / "train" / "shard-000001.tar").unlink()
    with pytest.raises(ShardError) as raised:
        collect(train_set(str(incomplete)), names(0, 3), 1)
    assert "train/shard-000001.tar" in raised.value.problem
    for worker in multiprocessing.active_children():  # torch would wait 10 s for it some day
        worker.kill()


def test_loading_draws_nothing_from_the_global_generator(url):
    before = torch.get_rng_state()
    collect(train_set(url), names(0, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_starting_at_a_step_is_the_tail_of_starting_at_the_first(url):
    whole = collect(train_set(url), names(0, 6))
    assert_equal(collect(train_set(url), names(4, 6)), whole[4 * MICROS :])


def test_a_batch_is_bytes_with_the_channels_last(url):
    batch = one(train_set(url), MicroBatchKey(0, 0))
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (BATCH // MICROS, 3, 16, 16)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.readable.all()


def test_a_sample_has_another_crop_in_another_epoch(url):
    dataset = train_set(url)
    views = {}
    for epoch in (0, 1):
        for step in range(3 * epoch, 3 * epoch + 3):
            for micro in range(MICROS):
                batch = one(dataset, MicroBatchKey(step, micro))
                for sample, image in zip(batch.ids.tolist(), batch.images, strict=True):
                    views.setdefault(sample, []).append(image)
    pairs = [pair for pair in views.values() if len(pair) == 2]
    assert len(pairs) > 30
    assert not any(torch.equal(*pair) for pair in pairs)


def test_evaluation_has_each_sample_once_and_ends_with_a_shorter_batch(url):
    dataset = eval_set(url)
    batches = collect(dataset, range(len(dataset)))
    assert [len(batch.ids) for batch in batches] == [8, 8, 5]
    assert torch.cat([batch.ids for batch in batches]).tolist() == list(range(NUM_VAL))


def test_an_unreadable_sample_is_replaced_by_the_next_and_named(damaged_url):
    """The next readable one in the order of the shards, seen as the sample would have been."""
    ours, theirs = train_set(damaged_url), train_set(damaged_url)
    batches = collect(ours, names(0, 3))
    assert_equal(batches, collect(theirs, names(0, 3)))
    shards, bad = ours.shards, unreadable(damaged_url)
    assert len(bad) == len(CUT)
    pixels = np.empty((1, 16, 16, 3), dtype=np.uint8)
    for name, batch in zip(names(0, 3), batches, strict=True):
        ids = ours.order.micro_batch(name.step, name.micro).ids
        draws = uniform(derive_key(7, "augment", 0, ids), NUM_RANDOMS)
        for i, sample in enumerate(ids.tolist()):
            while sample in bad:
                sample = (sample + 1) % NUM_TRAIN  # noqa: PLW2901
            assert batch.ids[i] == sample  # what was trained on
            assert (batch.labels[i],) == shards.read(sample, seen(draws[i]), pixels).labels
            assert np.array_equal(batch.images[i].permute(1, 2, 0), pixels[0])
        expected = [bad[sample] for sample in ids.tolist() if sample in bad]
        assert [line for line in batch.bad if line in expected] == expected
        assert batch.readable.all()


def test_a_sample_that_decodes_with_damage_is_used_and_named(tmp_path):
    def sample(number, data):
        return Sample(f"{number:03d}", "jpg", 0, "a test", lambda: data)

    sound = encoded(photo(1, (160, 120)))
    images = [sound, sound[: len(sound) // 2] + b"\xff\xd9", sound]
    train = [sample(number, images[number % 3]) for number in range(NUM_TRAIN)]
    source = Source(("a",), {"train": train, "val": train[:3]}, {"kind": "test"})
    write_dataset(source, str(tmp_path), seed=0, samples_per_shard=20)
    batch = one(eval_set(str(tmp_path)), 0)
    assert not batch.bad
    assert batch.readable.all()
    (line,) = batch.damaged
    assert line.startswith("val/shard-000000.tar: 001: ")
    damaged = [line for b in collect(train_set(str(tmp_path)), names(0, 3)) for line in b.damaged]
    assert 0 < len(damaged) <= NUM_TRAIN // 3 + 1  # those whose crop reaches down to it
    assert all(line.startswith("train/") for line in damaged)


def seen(draws):
    return lambda width, height: [crop(width, height, draws)]


def unreadable(url):
    """Return the reasons by sample of a training split."""
    shards, reasons = train_set(url).shards, {}
    for sample in range(NUM_TRAIN):
        try:
            shards.read(sample, seen(np.full(NUM_RANDOMS, 0.5)), np.empty((1, 4, 4, 3), np.uint8))
        except BadSample as error:
            reasons[sample] = str(error)
    return reasons


def test_a_bad_sample_is_named_with_shard_and_key(damaged_url):
    shards = read_manifest(damaged_url, "train").shards
    starts = np.cumsum([0, *(shard.num_samples for shard in shards)])
    for sample, reason in unreadable(damaged_url).items():
        number = int(np.searchsorted(starts, sample, side="right")) - 1
        with ShardReader(f"{damaged_url}/train/{shards[number].name}") as reader:
            key = reader.key(sample - int(starts[number]))
        assert reason.startswith(f"train/{shards[number].name}: {key}: cannot be decoded: ")
        assert "\n" not in reason


@pytest.mark.parametrize("label", [-1, 3, 10**9])
def test_a_label_that_no_class_has_is_a_bad_sample(tmp_path, label):
    def sample(number, label):
        return Sample(f"{number:03d}", "png", label, "a test", lambda: png(number))

    train = [sample(number, number % 3) for number in range(NUM_TRAIN)]
    val = [sample(0, 0), sample(1, label), sample(2, 2)]
    source = Source(("a", "b", "c"), {"train": train, "val": val}, {"kind": "test"})
    write_dataset(source, str(tmp_path), seed=0, samples_per_shard=20)
    batch = one(eval_set(str(tmp_path)), 0)
    assert batch.readable.sum() == 2
    (line,) = batch.bad
    assert line == f"val/shard-000000.tar: 001: has the label {label}, and there are 3 classes"
    wrong = int(torch.nonzero(~batch.readable).item())
    assert batch.labels[wrong] == 0
    assert not batch.images[wrong].any()
    assert sorted(batch.labels.tolist()) == [0, 0, 2]


def test_an_unreadable_sample_is_present_in_evaluation(tmp_path):
    url = write(tmp_path / "images", str(tmp_path / "set"), cut=(0, 20))
    dataset = eval_set(url)
    batches = collect(dataset, range(len(dataset)))
    unreadable = torch.cat([~batch.readable for batch in batches])
    assert unreadable.sum() == 2
    assert len(unreadable) == NUM_VAL
    assert not torch.cat([batch.images for batch in batches])[unreadable].any()


def test_a_data_set_without_readable_samples_is_an_error(tmp_path):
    url = write(tmp_path / "images", str(tmp_path / "set"), cut=range(NUM_TRAIN))
    with pytest.raises(DataError, match="64 samples in a row cannot be read"):
        one(train_set(url), MicroBatchKey(0, 0))


def test_a_batch_is_valid_until_the_next_but_one_is_requested(url):
    """What the rank holds while it copies: the batch in use, and the one after it."""
    dataset, keys = train_set(url), names(0, 12)
    copies = collect(dataset, keys)
    batches, before = iter_batches(dataset, keys, 2), None
    for batch, copy in zip(batches, copies, strict=True):
        if before is not None:
            assert torch.equal(before[0].images, before[1].images)
        assert torch.equal(batch.images, copy.images)
        before = (batch, copy)


def test_image_sizes_grow_with_the_step(url):
    sizes = ImageSizeSchedule(16, 8, from_step=0, to_step=4, multiple_of=4)
    grown = collect(train_set(url, sizes=sizes), names(0, 6), 1)
    assert [batch.images.shape[-1] for batch in grown[::MICROS]] == [8, 8, 12, 16, 16, 16]
    assert_equal(grown[4 * MICROS :], collect(train_set(url), names(4, 6)))


def test_augmentation_depends_on_the_sample_and_not_on_the_worker(url):
    dataset = train_set(url, augment=augment_of_all_kinds())
    augmented = collect(dataset, names(0, 3))
    assert_equal(collect(dataset, names(0, 3), 1), augmented)
    plain = collect(train_set(url), names(0, 3))
    assert not any(torch.equal(a.images, b.images) for a, b in zip(augmented, plain, strict=True))


def augment_of_all_kinds():
    return make_augment(
        auto_augment="trivialaugment",
        auto_augment_kwargs={},
        color_jitter=(0, 0, 0, 0),
        pca_lighting_std=0.1,
        random_erasing_prob=0.5,
        fill=(1, 2, 3),
    )


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repeats": 2},
        {"samples_per_crop": 3},
        {"samples_per_crop": 128},
        {"augment": augment_of_all_kinds()},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_parts_add_up_to_the_micro_batch(damaged_url, options, count):
    dataset = train_set(damaged_url, **options, num_parts=count)
    whole_set = train_set(damaged_url, **options)
    assert count * dataset.max_bytes == whole_set.max_bytes
    assert_parts_add_up(dataset, whole_set, count)


def assert_parts_add_up(dataset, whole_set, count):
    for whole, key in zip(collect(whole_set, names(0, 3)), names(0, 3), strict=True):
        keys = [key._replace(part=Part(index, count)) for index in range(count)]
        parts = collect(dataset, keys)
        assert {len(part.images) for part in parts} == {len(whole.images) // count}
        for ours, theirs in zip(zip(*parts, strict=True), whole[:4], strict=False):
            assert torch.equal(torch.cat(ours), theirs)
        assert [line for part in parts for line in part.bad] == whole.bad
        shards = {shard for key in keys for shard in dataset.shards_of(key).tolist()}
        assert sorted(shards) == whole_set.shards_of(key).tolist()


def test_parts_of_class_balanced_micro_batches_add_up(url):
    dataset = train_set(url, num_parts=4)
    labels = np.arange(NUM_TRAIN) % 3
    ends = np.cumsum(np.bincount(labels))
    index = ClassIndex(np.argsort(labels, kind="stable"), ends)
    whole_set = train_set(url)
    dataset.order = whole_set.order = BalancedOrder(index, 7, BATCH, MICROS)
    assert_parts_add_up(dataset, whole_set, 4)


def test_repeated_samples_have_different_crops(url):
    batch = one(train_set(url, repeats=2), MicroBatchKey(0, 0))
    ids, labels = (values.view(2, -1) for values in (batch.ids, batch.labels))
    assert torch.equal(ids[0], ids[1])
    assert torch.equal(labels[0], labels[1])
    first, second = batch.images.unflatten(0, (2, -1))
    assert not any(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_ten_crops_follow_each_other(url):
    ten, one_crop = (eval_set(url, 4, name) for name in ("ten-crop-16-of-20", "center-16-of-20"))
    pixels, middle = one(ten, 5), one(one_crop, 5)
    assert pixels.images.shape == (10, 3, 16, 16)  # the last batch has one sample
    assert torch.equal(pixels.images[4], middle.images[0])
    assert torch.equal(pixels.images[9], middle.images[0].flip(2))
    assert len(pixels.labels) == 1


def test_too_little_shared_memory_is_an_error_before_loading(url):
    dataset = eval_set(url)
    assert ring_bytes(dataset, 0) == 0
    assert ring_bytes(dataset, 3) == (2 * 3 + 2) * dataset.max_bytes
    check_space(ring_bytes(dataset, 3), dataset.size_key)
    with pytest.raises(DataError) as raised:
        check_space(10**16, dataset.size_key)
    assert raised.value.value == 10**16
    assert not isinstance(raised.value, UnavailableError)  # there never will be so much


def test_shared_memory_in_use_is_an_unavailable_error(url):
    whole = shutil.disk_usage(SHARED_MEMORY).total
    with tempfile.NamedTemporaryFile(dir=SHARED_MEMORY) as theirs:
        os.posix_fallocate(theirs.fileno(), 0, 1 << 20)
        dataset = eval_set(url, batch_size=1)
        num_held = whole // dataset.max_bytes - 4  # with all that there is, it would go
        with pytest.raises(UnavailableError) as raised:
            iter_batches(dataset, [0], 1, num_held=num_held)
    assert "`num_workers` or `batch_size`" in raised.value.hint


def test_held_batches_stay_valid(url):
    dataset, keys = train_set(url), names(0, 3)
    held = list(iter_batches(dataset, keys, 0, num_held=len(keys)))
    assert_equal(held, collect(dataset, keys))


# ---------------------------------------------------------------- processes

CRAMPED = """
import os, resource, sys
sys.path += sys.argv[2:]
from data_sharding.errors import DataError
from data_sharding.loading.loader import iter_batches
from fork_server import restart_fork_server
from test_loader import names, train_set

restart_fork_server()
num_open, most = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 30, most))
try:
    iter_batches(train_set(sys.argv[1]), names(0, 1), 16)
except DataError as error:
    print("refused:", error, flush=True)
"""


@pytest.mark.slow
def test_workers_that_cannot_be_started_are_an_error_and_the_rank_exits(url):
    here = Path(__file__).parent
    command = [sys.executable, "-c", CRAMPED, url, str(here), str(here.parents[1] / "support")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    assert done.stdout.startswith("refused: "), done.stderr
    assert "`num_workers`" in done.stdout


LOADING = """
import signal, sys, time, torch
from types import SimpleNamespace
import numpy as np
from data_sharding.loading.datasets import BatchMeta
from data_sharding.loading.loader import iter_batches

class Slow:
    max_bytes, shards_of, size_key = 1, None, ""
    shards = SimpleNamespace(sources=())
    def write_batch(self, name, memory):
        time.sleep(0.02)
        memory[0] = name
        return BatchMeta((1, 1, 1, 1), *[np.array([name])] * 3, [])

def main():
    received = []
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2:
        signal.signal(number, lambda number, frame: received.append(number))
    print("loading", flush=True)
    batches = iter_batches(Slow(), range(100), 2)
    numbers = [next(batches).images.item()]
    print("reading", flush=True)
    numbers += [batch.images.item() for batch in batches]
    print(sorted(received), numbers == list(range(100)), flush=True)
    batches = iter_batches(Slow(), range(100), 2)
    next(batches)
    print("again", flush=True)
    if sys.argv[1] == "crash":
        raise RuntimeError("crashed")
    signal.pause()

if __name__ == "__main__":
    main()
"""
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]


@pytest.fixture
def start_rank(tmp_path):
    """Start LOADING in a process group of its own, of which nothing is left at the end."""
    script = tmp_path / "loading.py"
    script.write_text(LOADING)
    home = str(Path(data_sharding.__file__).parent.parent)
    path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    ranks = []

    def start(end):
        command, env = [sys.executable, script, end], os.environ | {"PYTHONPATH": path}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        ranks.append(subprocess.Popen(command, env=env, start_new_session=True, **pipes))
        return ranks[-1]

    yield start
    for rank in ranks:
        with suppress(ProcessLookupError):
            os.killpg(rank.pid, signal.SIGKILL)
        rank.communicate()


def wait_until_gone(group):
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("workers outlived their rank")


@pytest.mark.slow
@pytest.mark.parametrize("end", ["crash", pytest.param("kill", marks=pytest.mark.long)])
def test_workers_ignore_the_signals_of_a_step_and_end_with_their_rank(start_rank, end):
    """Slurm signals every process of a step at any time; only the rank may take notice."""
    rank = start_rank(end)
    for moment, delay_s in ("loading", 0.3), ("reading", 0):
        assert rank.stdout.readline() == f"{moment}\n"
        time.sleep(delay_s)
        for number in SIGNALS:
            os.killpg(rank.pid, number)
    twice = sorted(int(number) for number in SIGNALS * 2)
    assert rank.stdout.readline() == f"{twice} True\n"
    assert rank.stdout.readline() == "again\n"
    if end == "kill":
        rank.kill()
    assert rank.wait(timeout=30) == (1 if end == "crash" else -signal.SIGKILL)
    wait_until_gone(rank.pid)


def test_consecutive_images_share_a_crop(url):
    """Krizhevsky's code gave 32 consecutive images one crop."""
    dataset, seen = train_set(url), []

    def noted(width, height, draws):
        seen.append(draws.tolist())
        return crop(width, height, draws)

    dataset.crop, dataset.samples_per_crop = noted, 3
    batch = one(dataset, MicroBatchKey(0, 0))
    num_images = len(batch.labels)
    assert len(seen) == num_images > 3
    for i, draws in enumerate(seen):
        assert draws == seen[i // 3 * 3]
    assert len({tuple(draws) for draws in seen}) == -(-num_images // 3)


# ---------------------------------------------------------------- images that are kept


def padded(url, **options):
    dataset = train_set(url, **options)
    dataset.crop = PaddedCrop(2, 0.5)
    return dataset


def keeping(dataset):
    dataset.kept = KeptImages(dataset.layout)
    return dataset


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_same_and_bad_samples_are_named_every_time(damaged_url, num_workers):
    keys = names(0, 3 * (NUM_TRAIN // BATCH))
    expected = collect(padded(damaged_url), keys)
    assert sum(len(batch.bad) for batch in expected) > len(CUT)  # in more than one epoch
    assert_equal(collect(keeping(padded(damaged_url)), keys, num_workers), expected)
    expected = collect(eval_set(damaged_url), [0, 1, 2] * 2)
    assert sum(len(batch.bad) for batch in expected) == 2 * len(CUT)
    assert_equal(collect(keeping(eval_set(damaged_url)), [0, 1, 2] * 2, num_workers), expected)


def test_what_one_process_has_decoded_others_read_no_more(damaged_url, monkeypatch):
    first, second = keeping(padded(damaged_url)), padded(damaged_url)
    keys = names(0, 2 * (NUM_TRAIN // BATCH))
    expected = collect(first, keys)
    second.kept = find_kept(first.kept.place)
    read = list[int]()
    monkeypatch.setattr(second.shards, "read", lambda sample, *_: read.append(sample))
    sound = next(i for i, batch in enumerate(expected) if not batch.bad)
    assert_equal(collect(second, keys[sound : sound + 1]), expected[sound : sound + 1])
    assert not read


def test_only_whole_images_of_one_size_are_kept(damaged_url):
    assert train_set(damaged_url).layout is None  # a crop of other parts of the image
    growing = ImageSizeSchedule(16, first=8, from_step=0, to_step=4)
    assert padded(damaged_url, sizes=growing).layout is None
    for sizes in ImageSizeSchedule(16), ImageSizeSchedule(16, first=32):  # of no step
        assert padded(damaged_url, sizes=sizes).layout.image_shape == (16, 16, 3)


def test_memory_that_another_process_number_would_show_is_not_taken(damaged_url):
    kept = KeptImages(padded(damaged_url).layout)
    place = kept.place
    assert find_kept(place) is not None
    assert find_kept(place._replace(token=bytes(16))) is None
    with tempfile.TemporaryFile() as other:
        path = f"/proc/{os.getpid()}/fd/{other.fileno()}"
        assert find_kept(place._replace(path=path)) is None
        other.truncate(place.layout.num_bytes)
        assert find_kept(place._replace(path=path)) is None
    del kept
    assert find_kept(place) is None


def test_memory_of_any_size_is_counted_and_kept():
    imagenet = Layout(50_000, (1, 224, 224, 3), (), "<i8")
    assert imagenet.num_bytes == 16 + 50_000 * (224 * 224 * 3 + 8 + 1)
    assert Layout(10**10, (224, 224, 3), (), "<i8").num_bytes > 10**15
    over_2_gib = Layout(800_000, (32, 32, 3), (), "<i8")
    kept = KeptImages(over_2_gib)  # takes up the few pages that are written
    sample, image = np.array([799_999]), np.full((1, 32, 32, 3), 7, dtype=np.uint8)
    kept.put(sample, image, np.array([3]))
    others = find_kept(kept.place)
    kept.take(sample, np.empty_like(image), np.zeros(1, np.int64))  # marks it
    found, label = np.empty_like(image), np.zeros(1, np.int64)
    assert not others.take(sample, found, label).size
    assert (found == 7).all()
    assert label == [3]
