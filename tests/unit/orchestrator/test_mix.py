"""A run on several data sets: what its config may say, what is drawn how often, what is refused."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_sharding.errors import DataError
from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import Manifest, ShardInfo, write_manifest
from orchestrator.config.parse import ConfigError, config_hash, immutable_changes, parse, to_dict
from orchestrator.config.schema import Config
from orchestrator.run.mix_plan import plan_mix
from orchestrator.run.plan import Plan, make_plan
from orchestrator.run.rundir import RunDir
from orchestrator.run.train_data import Mixture, read_data
from orchestrator.tracking.mlflow_store import run_metadata
from orchestrator.training.inputs.datasets import check_fingerprint

CLASSES = tuple("abc")
ConfigOf = Callable[..., Config]


@pytest.fixture
def config_of(values: dict[str, Any], tmp_path: Path) -> ConfigOf:
    """Return a function: a config with a mixture of data sets that it writes, of given sizes."""

    def config_of(
        *sizes: int, weights: Sequence[float] = (3, 1), others: Any = None, **recipe: Any
    ) -> Config:
        for number, size in enumerate(sizes):
            options = others if others and number else {"classes": CLASSES}
            shard = ShardInfo("shard-000000.tar", size, 10240, f"{number:064d}")
            manifest = Manifest(shards=(shard,), source={}, **options)
            write_manifest(str(tmp_path / f"set-{number}"), "train", manifest)
            write_manifest(str(tmp_path / f"set-{number}"), "val", manifest)
        values["data"]["url"] = str(tmp_path / "set-0")
        values["data"]["mix"] = [
            {"url": str(tmp_path / f"set-{number}"), "weight": weight}
            for number, weight in enumerate(weights)
        ]
        values["recipe"] |= {"global_batch_size": 64, "num_micro_batches": 4} | recipe
        return parse(values)

    return config_of


def plan_of(config: Config) -> Plan:
    return make_plan(config, 2, *read_data(config))


def test_the_plan_says_how_often_each_data_set_is_drawn(config_of: ConfigOf) -> None:
    plan = plan_of(config_of(1000, 100))
    assert plan.mix
    assert (plan.num_train, plan.steps_per_epoch, plan.mix.quotas) == (1100, 17, [48, 16])
    *_, first, second = plan.summary_lines()
    assert "48 images of a step (75 %)" in first
    assert "1,000 images are drawn 0.816 times an epoch, in passes of 20 steps" in first
    assert "100 images are drawn 2.72 times an epoch, in passes of 6 steps" in second


def test_quotas_that_are_not_the_weights_are_said(config_of: ConfigOf) -> None:
    *_, first, second = plan_of(config_of(1000, 100, weights=(2, 1))).summary_lines()
    assert "44 images of a step (68.8 % where the weights ask for 66.7 %)" in first
    assert "20 images of a step (31.2 % where the weights ask for 33.3 %)" in second


def test_repeated_samples_count_as_often_as_they_are_drawn(config_of: ConfigOf) -> None:
    plan = plan_of(config_of(1000, 100, augment_repeats=2))
    assert "drawn 2.72 times an epoch, in passes of 12 steps" in plan.summary_lines()[-1]


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"classes": tuple("cab")}, "another order"),
        ({"classes": tuple("abcd")}, r"other classes \(4"),
        ({"classes": CLASSES, "labels": LabelRule("multi")}, "multi"),
    ],
)
def test_labels_that_would_not_mean_the_same_are_refused(
    config_of: ConfigOf, others: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        read_data(config_of(1000, 100, others=others))
    assert refused.value.hint
    assert str(refused.value.value).endswith("set-1")


def test_classes_without_names_are_said_to_be_unchecked(config_of: ConfigOf) -> None:
    numbered = plan_of(config_of(1000, 100)).mix
    assert numbered
    assert not numbered.note
    values = {"classes": ("0", "1", "2")}
    sources = read_data(config_of(1000, 100))[0]
    assert isinstance(sources, Mixture)
    unnamed = Mixture(
        tuple(replace(s, manifest=replace(s.manifest, **values)) for s in sources.sources)
    )
    assert "cannot be checked" in plan_mix(unnamed, 64, 4, 1).summary_lines(10)[0]


def test_a_data_set_of_less_than_its_quota_is_refused(config_of: ConfigOf) -> None:
    with pytest.raises(ConfigError, match=r"16 images of .*set-1, which has 15"):
        plan_of(config_of(1000, 15))


def test_classes_and_data_sets_are_not_balanced_at_once(config_of: ConfigOf) -> None:
    with pytest.raises(ConfigError, match="class_balanced"):
        read_data(config_of(1000, 100, class_balanced=True))


def test_images_of_a_class_are_counted_as_they_are_drawn(config_of: ConfigOf) -> None:
    config = config_of(1000, 100)
    for source, counts in zip(config.data.mix, ((100, 0, 1000), (100, 50, 0)), strict=True):
        shard = ShardInfo("s.tar", 1000, 10240, "0" * 64)
        labels = LabelRule("multi")
        manifest = Manifest(CLASSES, (shard,), {}, labels, samples_per_class=counts)
        write_manifest(str(source.url), "train", manifest)
    train, _ = read_data(config)
    assert train.samples_per_class == (200, 25, 1500)  # 3/4 and 1/4 of 2,000


def test_only_the_weights_and_the_order_make_another_run(config_of: ConfigOf) -> None:
    config = config_of(1000, 100)
    values = to_dict(config)
    for change, is_same in (
        ({"url": "/moved"}, True),
        ({"name": "other"}, True),
        ({"url": None, "train": "/flat/*.tar"}, True),
        ({"weight": 2.0}, False),
    ):
        mix = [{**values["data"]["mix"][0], **change}, values["data"]["mix"][1]]
        changed = values | {"data": values["data"] | {"mix": mix}}
        assert (not immutable_changes(values, changed)) == is_same
        assert (config_hash(parse(changed)) == config_hash(config)) == is_same
    alone = values | {"data": values["data"] | {"mix": []}}
    assert immutable_changes(values, alone).keys() == {"data.mix"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"mix": [{"weight": 1}]}, "give one of them"),
        ({"mix": [{"url": "/a", "train": "/b", "weight": 1}]}, "give one of them"),
        ({"mix": [{"url": "/a", "weight": 0}]}, "greater than 0"),
        ({"mix": [{"url": "/a", "weight": 1}], "train": "/b", "val": "/c"}, "both say"),
        ({"mix": [{"train": "/a", "weight": 1}], "url": None}, "give val"),
        ({"mix": [{"url": "s3://me:secret@b", "weight": 1}]}, "has a password"),
    ],
)
def test_a_mixture_that_cannot_be_meant_is_refused(
    values: dict[str, Any], data: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse(values | {"data": values["data"] | data})


def test_other_data_than_a_run_started_with_are_refused_by_name(
    config_of: ConfigOf, tmp_path: Path
) -> None:
    config = config_of(1000, 100)
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    train, val = read_data(config)
    assert isinstance(train, Mixture)
    mix = [
        {"name": source.name, "quota": 8, "fingerprint": source.manifest.fingerprint[:16]}
        for source in train.sources
    ]
    fingerprint = f"{train.fingerprint[:16]}-{val.fingerprint[:16]}"
    data = {"name": "set", "fingerprint": fingerprint, "mix": mix}
    run.write_json(run.identity_file, {"data": data})
    check_fingerprint(run, config.data.location, {"train": train, "val": val})
    tags = run_metadata.run_tags(run, to_dict(config))
    assert tags["tahoe.mix"] == f"8 of {tmp_path}/set-0, 8 of {tmp_path}/set-1"
    described = run_metadata.dataset(run, to_dict(config))
    assert described
    uri = f"{tmp_path}/set-0, {tmp_path}/set-1"
    assert json.loads(described["source"]) == {"uri": uri, "mix": mix}
    patterns = {"data": {"url": "/unused", "train": ["s3://b/{0..9}.tar", "s3://c"], "mix": []}}
    described = run_metadata.dataset(run, patterns)
    assert described
    assert described["source_type"] == "s3"
    assert json.loads(described["source"])["uri"] == "s3://b/{0..9}.tar, s3://c"
    other, _ = read_data(config_of(1000, 200))
    with pytest.raises(DataError) as refused:
        check_fingerprint(run, config.data.location, {"train": other})
    assert refused.value.value == f"{tmp_path}/set-1"
    assert "data.mix" in refused.value.hint
