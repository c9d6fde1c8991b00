"""The data of a run: its validation split, and its training split or those that are mixed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import zip_longest

import numpy as np

from data_sharding.format.labels import LabelRule
from data_sharding.format.location import Location
from data_sharding.format.manifest import Manifest, read_manifest
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config


@dataclass(frozen=True)
class TrainSource:
    """The training split of a data set, which a mixture takes samples from."""

    name: str
    location: Location
    weight: float
    manifest: Manifest


@dataclass(frozen=True)
class Mixture:
    """The training splits of several data sets, with what a manifest says of one."""

    sources: tuple[TrainSource, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.sources[0].manifest.classes

    @property
    def labels(self) -> LabelRule:
        """The rule for labels of the first source; those of all have its kind."""
        return self.sources[0].manifest.labels

    @property
    def num_samples(self) -> int:
        return sum(source.manifest.num_samples for source in self.sources)

    @property
    def samples_per_class(self) -> tuple[int, ...] | None:
        """The samples that show each class, of `num_samples` drawn by the weights."""
        total = np.zeros(len(self.classes))
        for source in self.sources:
            counts = source.manifest.samples_per_class
            if counts is None:
                return None
            total += source.weight / source.manifest.num_samples * np.array(counts)
        per_weight = self.num_samples / sum(source.weight for source in self.sources)
        return tuple(np.rint(per_weight * total).astype(int).tolist())

    @cached_property
    def fingerprint(self) -> str:
        """The identity of the data: a SHA-256 (hex) over the fingerprints, in order."""
        fingerprints = (source.manifest.fingerprint for source in self.sources)
        return sha256("-".join(fingerprints).encode()).hexdigest()

    def name_changed(self, recorded: Sequence[str]) -> str:
        """Name the data sets that are not the recorded ones, given by short fingerprints."""
        pairs = zip_longest(self.sources, recorded)
        changed = [s for s, old in pairs if s and s.manifest.fingerprint[:16] != old]
        return ", ".join(source.name for source in changed or self.sources)


TrainData = Manifest | Mixture


def are_numbers(classes: Sequence[str]) -> bool:
    """Check whether classes have no names but their indices."""
    return tuple(classes) == tuple(map(str, range(len(classes))))


def read_data(config: Config) -> tuple[TrainData, Manifest]:
    """Read the manifests of the training data and of the validation split.

    Raises:
        DataError: one does not exist, cannot be read, or has impossible values.
        ConfigError: the data sets of a mixture do not fit together.
    """
    return read_train(config), read_manifest(config.data.location, "val")


def read_train(config: Config) -> TrainData:
    """Read the manifest of the training split, or those of the splits that are mixed."""
    data = config.data
    if not data.mix:
        return read_manifest(data.location, "train")
    sources = tuple(
        TrainSource(entry.label, location, entry.weight, read_manifest(location, "train"))
        for entry, location in zip(data.mix, data.train_locations, strict=True)
    )
    first = sources[0]
    for source in sources[1:]:
        _check_classes(first, source)
    if config.recipe.class_balanced:
        raise ConfigError(
            "recipe.class_balanced=true and data.mix both say how often a sample is drawn",
            value="recipe.class_balanced",
            hint="Give one of them: the weights of data.mix balance data sets, not classes.",
        )
    return Mixture(sources)


def _check_classes(first: TrainSource, other: TrainSource) -> None:
    """Refuse to mix data sets whose labels do not mean the same."""
    own, others = first.manifest, other.manifest
    if own.labels.kind != others.labels.kind:
        raise ConfigError(
            f"data.mix: {first.name} has {own.labels.kind} labels and {other.name} "
            f"{others.labels.kind}, so no loss fits both",
            value=other.name,
            hint="Index one of them again with another --label.",
        )
    if own.classes == others.classes:
        return
    if sorted(own.classes) == sorted(others.classes):
        difference = "the same classes in another order"
        hint = "Name the classes in one order for all: data.class_map=FILE, and count the shards"
    else:
        num, num_others = len(own.classes), len(others.classes)
        difference = f"other classes ({num_others:,}, and {num:,} in the first)"
        hint = "Keep those that all have by data.class_map=FILE, and count the shards"
    raise ConfigError(
        f"data.mix: {other.name} has {difference} than {first.name}, so equal labels would not "
        "mean the same",
        value=other.name,
        hint=f"{hint}: `tahoe shard index` takes the same overrides. If only names differ, give it "
        "those of the first: `tahoe shard index URL --classes FILE`.",
    )
