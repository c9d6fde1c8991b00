"""Every experiment says what it is, composes at its own size, and trains when it is small."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from ranks import run_on_ranks
from safetensors.torch import save_file
from timm.layers import DropPath
from torch import nn

import conf
from data_sharding.format.manifest import Manifest, ShardInfo, write_manifest
from data_sharding.sources.folder import folder
from data_sharding.writing.dataset_writer import write_dataset
from orchestrator.config.parse import parse
from orchestrator.config.schema import Config
from orchestrator.jobs.dry_run import dry_run
from orchestrator.launch.compose import compose
from orchestrator.launch.create_run import create_or_open_run
from orchestrator.run.rundir import RunDir, read_json_lines
from orchestrator.training.distributed.world import World
from orchestrator.training.monitoring.metric_log import MetricLog
from orchestrator.training.stop_signal import StopSignal
from orchestrator.training.task.model import build_model
from orchestrator.training.task.warm_start import load_initial_weights
from orchestrator.training.train import train

FILES = sorted(Path(conf.__file__).parent.glob("experiment/*.yaml"))
HISTORY = [
    file.stem for file in FILES if file.stem != "cifar10_resnet9" and "demo_" not in file.stem
]
# Of FFCV's, which differ in their epochs alone, one is trained; PNASNet's recipe is NASNet's.
ALIKE = r"ffcv_rn50_(24|32|40|56|88)|pnasnet_2017"
TRAINED = [name for name in HISTORY if not re.fullmatch(ALIKE, name)]
# What makes networks of libraries small; those of ours have a width.
ONE_EACH = "[1,1,1,1]"
TINY = {
    "beit_2021": ("depth=1",),
    "coatnet_2021": (f"depths={ONE_EACH}", "embed_dim=[32,32,32,32]", "img_size=96"),
    "convnext_tiny_2022": (f"depths={ONE_EACH}",),
    "convnextv2_2023": (f"depths={ONE_EACH}", "dims=[32,32,32,32]"),
    "deit_2020": ("depth=1",),
    "efficientnetv2_2021": ("channel_multiplier=0.2", "depth_multiplier=0.1"),
    "eva02_2023": ("depth=1",),
    "inception_v3_2015": ("aux_logits=false",),  # whose map would be too small
    "maxvit_2022": (f"depths={ONE_EACH}", "embed_dim=[32,32,32,32]", "img_size=96"),
    "nasnet_2017": ("num_features=672",),
    "resnext101_2016": (f"layers={ONE_EACH}",),
    "senet154_2017": (f"layers={ONE_EACH}",),
    "sovit_2023": ("depth=1",),
    "swin_2021": (f"depths={ONE_EACH}",),
    "vit_2020": ("depth=1",),
}
AT_ANOTHER_SIZE = ("convnextv2_2023", "mobilenet_v4_2024")  # than what is published is of
PETAFLOP = {
    file.stem: float(told[1].replace(",", ""))
    for file in FILES
    if (told := re.search(r"([\d,]+) petaFLOP", file.read_text()))
    and file.stem not in AT_ANOTHER_SIZE
}
SIBLINGS = {"noisy_student_2019": "timm/tf_efficientnet_b0"}
LINEAGE = [f"lineage_cifar/{file.stem}" for file in sorted(FILES[0].parent.glob("*/*.yaml"))]


@pytest.mark.parametrize("name", HISTORY)
def test_it_says_how_long_on_what_and_what_to_expect(name: str) -> None:
    (file,) = (one for one in FILES if one.stem == name)
    head = " ".join(line for line in file.read_text().splitlines() if line.startswith("#"))
    assert f"tahoe submit experiment={name} " in head
    assert re.search(r"Expected: \d", head)
    assert re.search(r"arXiv \d{4}\.\d{4,5}|NIPS 2012|Proc\. IEEE|github\.com|weights [A-Z]", head)


def test_inception_v3_has_its_auxiliary_classifier_in_training_alone() -> None:
    (composed,) = compose(["experiment=inception_v3_2015", "data.url=anywhere"])
    assert composed.config.recipe.aux_loss_weight == 0.4
    with torch.device("meta"):
        network = build_model(composed.config, 1000)
        images = torch.empty(2, 3, 299, 299)
        assert [tuple(one.shape) for one in network.train()(images)] == [(2, 1000)] * 2
        assert tuple(network.eval()(images).shape) == (2, 1000)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "told"), PETAFLOP.items())
def test_its_petaflop_are_those_of_its_epochs(name: str, told: float) -> None:
    (composed,) = compose([f"experiment={name}", "data.url=anywhere"])
    published, recipe = composed.config.model.published, composed.config.recipe
    assert published is not None
    assert published.gmacs is not None
    epochs = recipe.epochs or (recipe.steps or 0) * recipe.global_batch_size / 1_281_167
    assert told == pytest.approx(6e-6 * published.gmacs * 1_281_167 * epochs, rel=2e-3)


def test_published_petaflop_are_those_of_the_published_gmacs() -> None:
    """Where the recipe is the paper's: six operations a multiply-add of every image."""
    group, num_compared = FILES[0].parent.parent, 0
    for file in group.glob("model/*.yaml"):
        said = yaml.safe_load(file.read_text()).get("published") or {}
        if said.get("petaflop"):
            recipe = yaml.safe_load((group / f"recipe/{said['recipe']}.yaml").read_text())
            area = (160 / 224) ** 2 if file.stem == "rsb_a3_2021" else 1  # in training
            expected = 6e-6 * area * said["gmacs"] * 1_281_167 * recipe["epochs"]
            assert said["petaflop"] == pytest.approx(expected, rel=2e-3), file.stem
            num_compared += 1
    assert num_compared > 20


@pytest.mark.parametrize(
    ("name", "of_paths", "of_units"),
    [
        ("deit_2020", 0.1, 0),  # table 9
        ("rsb_a1_2021", 0.05, 0),  # table 2
        ("rsb_a2_2021", 0.05, 0),
        ("rsb_a3_2021", 0, 0),
        ("efficientnet_b0_2019", 0.2, 0.2),  # section 5.2
        ("convnext_tiny_2022", 0.1, 0),  # TRAINING.md
        ("vgg16_2014", 0, 0.5),  # section 3.1
        ("senet154_2017", 0, 0.2),  # appendix
        ("inception_v4_2016", 0, 0.2),
        ("nasnet_2017", 0, 0.5),
        ("swin_2021", 0.5, 0),  # section A2.1
        ("beit_2021", 0.4, 0),
        ("coatnet_2021", 0.3, 0.125),  # table 10; in what tells positions, timm's
        ("maxvit_2022", 0.9, 0),  # table 12
        ("efficientnetv2_2021", 0.2, 0),
        ("convnextv2_2023", 0.3, 0),  # table 11
        ("eva02_2023", 0.15, 0),
        ("mobilenet_v4_2024", 0.35, 0.2),
    ],
)
def test_what_is_dropped_is_as_published(name: str, of_paths: float, of_units: float) -> None:
    """It is an option of the model, and the recipe alone would leave it out."""
    (composed,) = compose([f"experiment={name}", "data.url=anywhere"])
    config = composed.config
    with torch.device("meta"):
        network = build_model(config, 1000)
    paths = [layer.drop_prob for layer in network.modules() if isinstance(layer, DropPath)]
    units = [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)]
    units.append(getattr(network, "drop_rate", 0.0))
    # EfficientNet's grow up to that of a block behind its last.
    assert max(paths, default=0) == pytest.approx(of_paths, rel=0.1)
    assert max(units) == of_units


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings(
    "ignore:torch.searchsorted|Using a non-tuple sequence:UserWarning"
)  # timm
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", [file.stem for file in FILES if "\ninit_from: timm/" in file.read_text()]
)
def test_the_weights_that_it_begins_with_fit(name: str, tmp_path: Path) -> None:
    """Their shapes, at full size: windows, positions and heads are not those of the network."""
    (composed,) = compose([f"experiment={name}", "data.url=anywhere"])
    config = composed.config
    source = str(config.init_from).removeprefix("timm/")
    assert timm.models.is_model_pretrained(source)
    with torch.device("meta"):
        theirs, ours = timm.create_model(source), build_model(config, 1000)
    file = tmp_path / "weights.safetensors"
    save_file({name: torch.ones(one.shape) for name, one in theirs.state_dict().items()}, file)
    ours = ours.to_empty(device="cpu")
    for parameter in ours.parameters():
        parameter.data.fill_(2.0)
    load_initial_weights(ours, file, 1000, 3)
    file.unlink()
    learned = [one for one in ours.parameters() if not (one == 2.0).all()]
    assert sum(one.numel() for one in learned) > 0.95 * sum(p.numel() for p in ours.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "num_classes", "num_images"),
    [(HISTORY, 1000, (1_281_167, 50_000)), ((*LINEAGE, "cifar10_resnet9"), 10, (50_000, 10_000))],
    ids=("ImageNet", "CIFAR-10"),
)
def test_all_can_be_submitted_at_their_own_size(
    names: list[str],
    num_classes: int,
    num_images: tuple[int, int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for split, number in zip(("train", "val"), num_images, strict=True):
        shards = tuple(
            ShardInfo(f"shard-{first:08}.tar", min(10_000, number - first), 10240, "0" * 64)
            for first in range(0, number, 10_000)
        )
        classes = tuple(f"n{i:08}" for i in range(num_classes))
        write_manifest(str(tmp_path), split, Manifest(classes, shards, {}))
    # One set stands for all of them, so that it cannot be what each is named.
    given = [f"data.url={tmp_path}", "launcher=slurm", "slurm=default", "data.expected=null"]
    dry_run(["-m", f"experiment={','.join(names)}", *given])
    shown = capsys.readouterr().out
    assert f"# an array of {len(names)} jobs like this:" in shown
    for name in names:
        (line,) = (line for line in shown.splitlines() if f" experiment={name} " in f"{line} ")
        assert int(line.split()[1].replace(",", "")) > 0  # steps


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of noise that look like photographs in their sizes alone."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(64):
        split = "val" if number % 4 == 3 else "train"
        file = root / split / f"n{number % 10:08d}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        width, height = rng.integers(100, 160, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)
    url = tmp_path_factory.mktemp("shards") / "set"
    write_dataset(folder(root), str(url), seed=0, samples_per_shard=20)
    return url


def small(name: str, url: Path, place: Path) -> list[str]:
    """Return overrides that leave of an experiment what is not its size."""
    where = (
        *(f"experiment={name}", f"data.url={url}", "data.name=noise"),
        *(f"run_dir={place / name}", "tracking=none"),
        *(["data.in_channels=1"] if name == "lenet5_1998" else []),  # of colours, and asked for
    )
    few = (
        *(
            "data.num_lanes=2",
            "data.num_workers=0",
            "launcher.nproc_per_node=2",
            "recipe.epochs=null",
        ),
        *("recipe.images=null", "recipe.steps=2", "recipe.global_batch_size=24"),
        *("recipe.num_micro_batches=2", "logging.every_steps=1", "checkpoint.keep_best=null"),
    )
    if name in (*LINEAGE, "lenet5_1998"):
        return [*where, *few]
    (composed,) = compose([f"experiment={name}", f"data.url={url}"])
    config = composed.config
    is_own = "/" not in config.model.name and config.model.name not in (
        "resnet_2015",
        "blurpool_2019",
    )
    views = (
        "ten-crop-96-of-104" if config.data.eval_protocol.startswith("ten") else "center-96-of-104"
    )
    return [
        *where,
        *few,
        *("data.image_size=96", f"data.eval_protocol={views}", "data.crop.resize_range=[96,120]"),
        "recipe.progressive_resize=null",
        *(["+model.kwargs.width=0.1"] if is_own else []),
        *(f"++model.kwargs.{option}" for option in TINY.get(name, ())),
        *([f"model.name={SIBLINGS[name]}", "model.published=null"] if name in SIBLINGS else []),
        "init_from=null",
    ]


def train_all(world: World, config: Config, runs: list[str]) -> None:
    for path in runs:
        run = RunDir(Path(path))
        attempt = run.num_attempts if world.is_main else 1
        with MetricLog(run.metrics_file if world.is_main else None, attempt) as metrics:
            stop = StopSignal(run, polls_file=False)
            train(run, parse(run.read_config()), world, metrics, stop)
        world.barrier()
        if world.is_main:
            shutil.rmtree(run.checkpoints_dir)  # of hundreds of megabytes


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_steps_on_two_ranks(images: Path, tmp_path: Path) -> None:
    runs = []
    for name in (*TRAINED, *LINEAGE):
        (composed,) = compose(small(name, images, tmp_path))
        run, plan = create_or_open_run(composed)
        run.begin_attempt(num_steps=plan.num_steps)
        runs.append(run)
    run_on_ranks(train_all, 2, composed.config, [str(run.path) for run in runs])
    for run in runs:
        steps = {
            line["step"]: line["metrics"]
            for line in read_json_lines(run.metrics_file)
            if "train/loss" in line["metrics"]
        }
        assert set(steps) == {1, 2}, run.id
        most = 300 if run.id == "lenet5_1998" else 50  # a squared distance in 84 dimensions
        assert 0 < steps[1]["train/loss"] < most, run.id
        assert math.isfinite(steps[2]["train/loss"]), run.id  # at rates that are for larger batches
        figures = [line["metrics"] for line in read_json_lines(run.metrics_file)]
        assert any("val/top1" in line for line in figures), run.id
