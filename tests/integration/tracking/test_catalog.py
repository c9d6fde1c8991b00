"""The shelf: configs as they are, counts as networks have them, and what runs have measured."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from cli_runner import Tahoe
from torch.utils.flop_counter import FlopCounterMode
from tracked_run import CreateTrackedRun

import conf
import models
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Reference
from orchestrator.tracking.records.catalog import describe, find_entry, load_catalog
from orchestrator.tracking.records.record import read_record
from orchestrator.tracking.records.record_index import load_records

CONFIGS = Path(conf.__file__).parent
SYSTEMS = load_catalog()
NAMES = [one.name for one in SYSTEMS]
# Of papers that name no crop.
SIZES = {
    "lenet5_1998": 32,
    "autoencoder_2006": 28,
    "resnet9_2018": 32,
    "overfeat_2013_fast": 231,
    "overfeat_2013_accurate": 221,
}


@pytest.mark.parametrize("one", SYSTEMS, ids=NAMES)
def test_what_is_published_is_complete(one) -> None:
    values = dict(one.published)
    values["caveats"] = tuple(values["caveats"])
    Reference(**values)
    assert set(one.published) == set(Reference.__dataclass_fields__)
    assert one.published["title"]
    assert (
        one.name.endswith(f"_{one.published['year']}") or f"_{one.published['year']}_" in one.name
    )
    assert one.about
    assert (CONFIGS / "recipe" / f"{one.published['recipe']}.yaml").exists()


@pytest.mark.parametrize(
    "one", [one for one in SYSTEMS if one.published["source"].startswith("timm ")], ids=str
)
def test_timms_figures_are_by_timms_protocol(one) -> None:
    """By that of some of its weights, for images as it learned from or for larger ones."""
    known = set()
    for tag in timm.list_pretrained(f"{one.model['name'].removeprefix('timm/')}.*"):
        cfg = timm.get_pretrained_cfg(tag)
        kind = "warp" if cfg.crop_mode == "squash" else "center"
        for size, share in (
            (cfg.input_size, cfg.crop_pct),
            (cfg.test_input_size or cfg.input_size, cfg.test_crop_pct or cfg.crop_pct),
        ):
            known.add(f"{kind}-{size[-1]}-of-{int(size[-1] / share)}")
    assert one.published["protocol"] in known


def test_titles_tell_systems_apart() -> None:
    titles = Counter(one.published["title"] for one in SYSTEMS)
    assert titles.most_common(1)[0][1] == 1
    years = [one.published["year"] for one in SYSTEMS]
    assert years == sorted(years)


@pytest.mark.slow
@pytest.mark.parametrize(
    "one", [one for one in SYSTEMS if one.published["num_params"]], ids=lambda one: one.name
)
def test_parameters_and_multiply_adds_are_the_networks_own(one) -> None:
    said = one.published
    crop = re.match(r"(?:center|warp|ten-crop)-(\d+)-of-", said["protocol"] or "")
    size = int(crop[1]) if crop else SIZES.get(one.name, 224)
    options = {k: size if "image_size" in str(v) else v for k, v in one.model["kwargs"].items()}
    is_lenet = one.name == "lenet5_1998"
    channels = 1 if one.published["dataset"] == "mnist" else 3
    classes = 10 if is_lenet or one.published["dataset"] == "cifar10" else 1000
    options |= {"head": "rbf"} if is_lenet else {}
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = models.build(
            one.model["name"], num_classes=classes, in_channels=channels, **options
        ).eval()
        network.stage = 4  # the autoencoder's last; it means nothing to others
        network(torch.empty(1, channels, size, size))
    assert sum(p.numel() for p in network.parameters()) == said["num_params"]
    if not is_lenet:  # whose 327 thousand count the subsampling's and the output's connections
        # timm's figures count additions of biases and the like, ours are products alone.
        assert counter.get_total_flops() / 2e9 == pytest.approx(said["gmacs"], rel=0.02)


def measure(create_tracked_run, name, *, top1, title, data="cifar10"):
    tracked = create_tracked_run(name)
    published = {"title": title, "year": 2012}
    tracked.configure(
        model={"published": published}, data={"name": data, "eval_protocol": "center-28-of-32"}
    )
    tracked.log(10, {"val/top1": top1})
    return tracked.run


def test_the_best_run_is_on_the_images_of_the_paper(create_tracked_run: CreateTrackedRun) -> None:
    """Before a better one on easier images, also where those have the same name."""
    found = []
    for name, top1, data, images in (
        ("easy", 99.0, "digits", "a"),
        ("few", 95.0, "cifar10", "b"),
        ("all-1", 60.0, "cifar10", "c"),
        ("all-2", 61.0, "cifar10", "c"),
    ):
        record = read_record(
            measure(create_tracked_run, name, top1=top1, title="AlexNet", data=data)
        )
        published = {**record.published, "dataset": "cifar10"}
        found.append(replace(record, published=published, data_fingerprint=images))
    measured = find_entry("alexnet_2012", load_catalog(found)).measured
    assert (measured.top1_err, measured.fingerprint) == (39.0, "c")
    measured = find_entry(
        "alexnet_2012", load_catalog(found[:1])
    ).measured  # nothing else was trained on
    assert (measured.top1_err, measured.data) == (1.0, "digits")


def test_the_best_run_of_each_system(
    create_tracked_run: CreateTrackedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        measure(create_tracked_run, "first", top1=60.0, title="AlexNet"),
        measure(create_tracked_run, "second", top1=75.5, title="AlexNet", data="digits"),
        measure(create_tracked_run, "third", top1=70.0, title="AlexNet", data="digits"),
        measure(create_tracked_run, "other", top1=99.0, title="a system of yours"),
        create_tracked_run("nothing").run,
    ]
    found = load_catalog(load_records(runs))
    measured = {one.name: one.measured for one in found if one.measured}
    assert set(measured) == {"alexnet_2012"}
    best = measured["alexnet_2012"]
    assert (best.top1_err, best.data, best.run) == (24.5, "digits", str(runs[1].path))
    text = describe(find_entry("alexnet_2012", found))
    assert "24.50 on digits, center-28-of-32" in text
    assert "recipe=alexnet_2012: Krizhevsky et al. 2012, section 5" in text
    assert "  tahoe submit experiment=alexnet_2012 data.url=URL" in text
    unlike = describe(find_entry("autoencoder_2006", found))
    assert "  tahoe train model=autoencoder_2006 recipe=autoencoder_2006 data.url=URL" in unlike
    swin = find_entry("swin_2021", found)
    without = {**swin.model, "published": {**swin.published, "recipe": None}}
    assert "no recipe of its paper" in describe(replace(swin, model=without))

    tahoe = Tahoe(tmp_path)
    table = tahoe("models", "--runs-dir", "my runs", "--measured").stdout
    assert re.search(r"2012 +alexnet_2012 +60.97 +0.7244 +40.7 +18.2 +16.42 +24.50 +digits", table)
    monkeypatch.setenv("COLUMNS", "40")
    narrow = tahoe("models", "--runs-dir", "my runs", "--measured").stdout
    assert re.search(r"alexnet_2012 .* 24.50 +digits", narrow)
    nothing = tahoe("models", "alexnet", "resnet9", check=False)
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "alexnet, resnet9" in nothing.stderr
    assert json.loads(tahoe("models", "alexnet", "resnet9", "--json").stdout) == []
    chosen = json.loads(tahoe("models", "--json", "--until", "2013", "--verified").stdout)
    assert [one["name"] for one in chosen] == [
        *("lenet5_1998", "autoencoder_2006", "alexnet_2012", "alexnet_2012_trained", "cat_2012"),
        *("nin_2013", "zfnet_2013"),
    ]
    one = json.loads(
        tahoe("models", "show", "alexnet_2012", "--json", "--runs-dir", "my runs").stdout
    )
    assert one["measured"]["top1_err"] == 24.5
    unknown = tahoe("models", "show", "alxnet_2012", check=False)
    assert unknown.returncode == 93
    assert "did you mean 'alexnet_2012'?" in unknown.stderr


def test_there_is_no_such_system() -> None:
    with pytest.raises(ConfigError, match="no system 'fv_svm_2011'"):
        find_entry("fv_svm_2011", SYSTEMS)
