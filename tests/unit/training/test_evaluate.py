"""Law 3 in evaluation: each sample counts once on any number of ranks; unreadable is wrong."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from data_sharding.errors import DataError, ShardError
from data_sharding.format.location import Location
from data_sharding.format.manifest import read_manifest
from data_sharding.loading.datasets import EvalDataset
from data_sharding.loading.loader import iter_batches
from data_sharding.loading.split_reader import SplitReader
from data_sharding.sources.folder import folder
from data_sharding.storage.shard_store import open_store
from data_sharding.transforms.eval_protocol import parse_protocol
from data_sharding.writing.dataset_writer import write_dataset
from orchestrator.config.schema import Config
from orchestrator.evaluation.evaluate_runs import with_data
from orchestrator.training.distributed.world import World
from orchestrator.training.inputs.device import Device
from orchestrator.training.step.evaluate import evaluate
from orchestrator.training.task.losses import make_objective

CPU = torch.device("cpu")
NUM_CLASSES, NUM_VAL, NUM_UNREADABLE = 6, 33, 3


@dataclasses.dataclass(frozen=True)
class OneOfSeveral(World):
    """A rank whose sum is completed by the tables of the ranks that were run before it."""

    tables: list[torch.Tensor] = dataclasses.field(default_factory=list)
    objects: list[object] = dataclasses.field(default_factory=list)

    def gather_objects(self, value: object) -> list[object]:
        self.objects.append(value)
        return self.objects

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self.tables.append(values.clone())
        return torch.stack(self.tables).sum(dim=0)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a data set of noise whose val split has 33 images, 3 of them cut in half."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(2 * NUM_VAL):
        split = ("train", "val")[number % 2]
        file = root / split / f"class{number // 2 % NUM_CLASSES}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(file)
        if split == "val" and number < 2 * NUM_UNREADABLE:
            file.write_bytes(file.read_bytes()[:1000])
    url = str(tmp_path_factory.mktemp("shards") / "set")
    write_dataset(folder(root), url, seed=0, samples_per_shard=10)
    return url


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 900, NUM_CLASSES)
    )


@pytest.fixture(scope="module")
def told(config: Config) -> Config:
    data = dataclasses.replace(
        config.data,
        in_channels=3,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        num_workers=0,
        max_bad_fraction=NUM_UNREADABLE / NUM_VAL,
    )
    return dataclasses.replace(config, data=data)


@pytest.fixture(scope="module")
def judge(told: Config, url: str, network: nn.Module) -> Callable[[int, int], dict[str, float]]:
    def run(num_ranks: int, batch_size: int, *protocol: str) -> dict[str, float]:
        dataset = eval_set(url, batch_size, *protocol)
        tables: list[torch.Tensor] = []
        objective, device = make_objective(told.recipe), Device.create(told, CPU)
        for rank in range(num_ranks):
            world = OneOfSeveral(rank, rank, num_ranks, CPU, None, tables)  # type: ignore[arg-type]
            if rank == num_ranks - 1:
                return evaluate(network, objective, dataset, told, world, device).metrics
            with pytest.raises(AssertionError, match="evaluated"):  # the others are still missing
                evaluate(network, objective, dataset, told, world, device)
        raise AssertionError

    return run


def eval_set(url: str, batch_size: int, protocol: str = "center-32-of-36") -> EvalDataset:
    manifest = read_manifest(url, "val")
    store = open_store(Location(url), "val", None, manifest.rule)
    return EvalDataset(SplitReader("val", manifest, store), batch_size, parse_protocol(protocol), 3)


def test_metrics_do_not_depend_on_the_number_of_ranks(
    judge: Callable[[int, int], dict[str, float]],
) -> None:
    alone = judge(1, 8)
    for num_ranks in (2, 3, 4):
        assert judge(num_ranks, 8) == alone


def test_metrics_equal_those_of_a_plain_loop(
    judge: Callable[[int, int], dict[str, float]], url: str, network: nn.Module
) -> None:
    correct1 = correct5 = loss = 0.0
    for batch in iter_batches(eval_set(url, 1), range(NUM_VAL), 0):
        images = (batch.images.float() / 255 - 0.5) / 0.2
        with torch.no_grad():
            logits = network.eval()(images)
        if not batch.readable.item():
            loss += np.log(NUM_CLASSES)
            continue
        ranks = logits[0].argsort(descending=True).tolist()
        place = ranks.index(batch.labels.item())
        correct1, correct5 = correct1 + (place == 0), correct5 + (place < 5)
        loss += F.cross_entropy(logits, batch.labels).item()
    result = judge(1, 8)
    assert result["val/top1"] == pytest.approx(100 * correct1 / NUM_VAL)
    assert result["val/top5"] == pytest.approx(100 * correct5 / NUM_VAL)
    assert result["val/loss"] == pytest.approx(loss / NUM_VAL, rel=1e-5)
    assert 0 < result["val/top1"] < result["val/top5"] < 100 * (1 - NUM_UNREADABLE / NUM_VAL) + 1e-9


def test_unreadable_images_are_named_and_counted(url: str) -> None:
    dataset = eval_set(url, 8)
    batches = list(iter_batches(dataset, range(len(dataset)), 0))
    bad = [line for batch in batches for line in batch.bad]
    assert len(bad) == sum(int((~batch.readable).sum()) for batch in batches) == NUM_UNREADABLE
    assert all("val/shard-" in line for line in bad)


def test_too_many_unreadable_images_are_an_error(
    told: Config, url: str, network: nn.Module
) -> None:
    allowed = dataclasses.replace(told.data, max_bad_fraction=(NUM_UNREADABLE - 1) / NUM_VAL)
    told = dataclasses.replace(told, data=allowed)
    objective, device = make_objective(told.recipe), Device.create(told, CPU)
    world = OneOfSeveral(0, 0, 1, CPU, None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data\.max_bad_fraction=0\.06") as refused:
        evaluate(network, objective, eval_set(url, 8), told, world, device)
    assert refused.value.value == NUM_UNREADABLE


def test_data_error_of_one_rank_is_raised_on_all(
    told: Config, url: str, network: nn.Module, tmp_path: Path
) -> None:
    shutil.copytree(url, tmp_path / "set")
    max((tmp_path / "set" / "val").glob("*.tar")).unlink()
    dataset = eval_set(str(tmp_path / "set"), 20)  # a batch a rank; the first has all its shards
    objective, device = make_objective(told.recipe), Device.create(told, CPU)
    shared: tuple[list[torch.Tensor], list[object]] = ([], [])
    for rank in (1, 0):
        world = OneOfSeveral(rank, rank, 2, CPU, None, *shared)  # type: ignore[arg-type]
        with pytest.raises(ShardError, match="no shard at"):
            evaluate(network, objective, dataset, told, world, device)
    assert [error is None for error in shared[1]] == [False, True]
    assert network.training  # as it was


def test_ten_crops_are_scored_by_their_mean_probability(
    judge: Callable[..., dict[str, float]], url: str, network: nn.Module
) -> None:
    correct, protocol = 0, "ten-crop-32-of-36"
    for batch in iter_batches(eval_set(url, 1, protocol), range(NUM_VAL), 0):
        with torch.no_grad():
            logits = network.eval()((batch.images.float() / 255 - 0.5) / 0.2)
        best = logits.softmax(dim=1).mean(dim=0).argmax()
        correct += int(best == batch.labels and batch.readable)
    for batch_size in (1, 8):
        result = judge(1, batch_size, protocol)
        assert result["val/top1"] == pytest.approx(100 * correct / NUM_VAL)
    assert result["val/loss"] != judge(1, 8)["val/loss"]


def test_the_fold_of_a_run_is_kept_where_other_data_have_it(config: Config, tmp_path: Path) -> None:
    config = config.replace({"data.url": "own", "data.fold": 1})
    (tmp_path / "fold-1").mkdir()
    assert with_data(config, str(tmp_path), "val").data.location == Location(str(tmp_path))
    (tmp_path / "fold-1/manifest.json").touch()
    location = with_data(config, str(tmp_path), "val").data.location
    assert location == Location(str(tmp_path), fold=1)
    assert with_data(config, None, "val") is config
