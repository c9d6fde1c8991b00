"""The catalogue: every system that has a config with published results, and one's own results."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from rich.markup import escape
from rich.table import Table

import conf
from orchestrator.config.parse import ConfigError, did_you_mean
from orchestrator.console import make_table
from orchestrator.tracking.records.record import Record

MISSING = "-"
_CONFIGS = Path(conf.__file__).parent


@dataclass(frozen=True)
class BestResult:
    """The best evaluation of a system on some images: the top-1 error in percent, and the run."""

    top1_err: float
    data: str
    protocol: str
    run: str
    fingerprint: str | None = None


@dataclass(frozen=True)
class CatalogEntry:
    """One config of the group `model`."""

    name: str
    about: str
    model: Mapping[str, Any]
    measured: BestResult | None = None

    @property
    def published(self) -> Mapping[str, Any]:
        """The results of its paper; see orchestrator.config.schema.Reference."""
        published: Mapping[str, Any] = self.model["published"]
        return published

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, for programs."""
        return {
            "name": self.name,
            "about": self.about,
            "model": self.model["name"],
            "kwargs": self.model["kwargs"],
            **self.published,
            "measured": asdict(self.measured) if self.measured else None,
        }


def load_catalog(runs: Iterable[Record] = ()) -> list[CatalogEntry]:
    """Load the systems, the oldest first, with the best result of one's own runs of each."""
    best = _best_results(runs)
    entries = []
    for file in sorted((_CONFIGS / "model").glob("*.yaml")):
        text = file.read_text()
        model = yaml.safe_load(text)
        if model.get("published"):
            title = model["published"]["title"]
            entries.append(CatalogEntry(file.stem, _head_comment(text), model, best.get(title)))
    return sorted(entries, key=lambda entry: (entry.published["year"], entry.name))


def find_entry(name: str, entries: Iterable[CatalogEntry]) -> CatalogEntry:
    """Return the entry of a name."""
    by_name = {entry.name: entry for entry in entries}
    if name not in by_name:
        suggestion = did_you_mean(name, list(by_name))
        raise ConfigError(f"no system '{name}' in the catalogue; {suggestion}", value=name)
    return by_name[name]


def table(entries: Iterable[CatalogEntry]) -> Table:
    """Build a table with a row for each system."""
    numbers = ("params\n(M)", "GMACs\n", "top-1\n(%)", "top-5\n(%)", "ens.\n(%)", "yours\n(%)")
    shown = make_table("\nyear", "\nmodel=", *numbers, num_text=2, collapse_padding=True)
    shown.add_column("on", overflow="fold")
    for entry in entries:
        published, mark = entry.published, "" if entry.published["verified"] else "?"
        params, measured = published["num_params"], entry.measured
        shown.add_row(
            str(published["year"]),
            entry.name,
            MISSING if params is None else f"{params / 1e6:.2f}",
            _cell(published["gmacs"]),
            _cell(published["top1_err"], mark),
            _cell(published["top5_err"], mark),
            _cell(published["ensemble_top5_err"]),
            MISSING if measured is None else f"{measured.top1_err:.2f}",
            "" if measured is None else escape(measured.data),
        )
    return shown


def describe(entry: CatalogEntry) -> str:
    """Describe a system and its training, as text."""
    published = entry.published
    lines = [entry.about, ""]
    for label, key in (
        ("system", "title"), ("year", "year"), ("published at", "venue"),
        ("place in ILSVRC", "ilsvrc_place"), ("data", "dataset"), ("protocol", "protocol"),
        ("top-1 error, %", "top1_err"), ("top-5 error, %", "top5_err"),
        ("nets of the ensemble", "ensemble_size"),
        ("its top-5 error, %", "ensemble_top5_err"), ("parameters", "num_params"),
        ("GMACs an image", "gmacs"), ("hardware", "hardware"), ("training time", "training_time"),
        ("training, petaFLOP", "petaflop"), ("source", "source"),
    ):  # fmt: skip
        if published[key] is not None:
            value = f"{published[key]:,}" if key == "num_params" else published[key]
            lines.append(f"{label:<22}{value}")
    verified = "yes" if published["verified"] else "no: from memory, or second hand"
    lines.append(f"{'verified':<22}{verified}")
    if best := entry.measured:
        result = f"{best.top1_err:.2f} on {best.data}, {best.protocol}, in {best.run}"
        lines.append(f"{'measured':<22}{result}")
    lines += [f"{'caveat':<22}{caveat}" for caveat in published["caveats"]]
    return "\n".join([*lines, "", *_training_commands(entry)])


def _training_commands(entry: CatalogEntry) -> list[str]:
    recipe = entry.published.get("recipe")
    if recipe is None:
        return [
            "There is no recipe of its paper here. With one that you choose (conf/recipe):",
            f"  tahoe train model={entry.name} recipe=... data.url=URL",
        ]
    experiments = _experiments(entry.name)
    lines = [
        f"recipe={recipe}: {_head_comment((_CONFIGS / 'recipe' / f'{recipe}.yaml').read_text())}"
    ]
    for name in experiments:
        lines += ["", f"  tahoe submit experiment={name} data.url=URL slurm=CLUSTER"]
    if not experiments:
        lines += ["", f"  tahoe train model={entry.name} recipe={recipe} data.url=URL"]
    return lines


def _experiments(system: str) -> list[str]:
    """Return the experiments with a system's network, those at its original size first."""
    group, names = _CONFIGS / "experiment", []
    for file in [*sorted(group.glob("*.yaml")), *sorted(group.glob("*/*.yaml"))]:
        parts = yaml.safe_load(file.read_text()).get("defaults", [])
        if {"override /model": system} in parts:
            names.append(file.relative_to(group).with_suffix("").as_posix())
    return names


def _head_comment(text: str) -> str:
    """Return the comment at the head of a config, as one line."""
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line[1:].strip() for line in lines)


def _best_results(runs: Iterable[Record]) -> dict[str, BestResult]:
    """Find the best evaluation of each system, by its title.

    Metrics on different images do not compare: the paper's data set is preferred, then the set with
    most runs.
    """
    titled = [run for run in runs if run.published.get("title")]
    evaluated = [run for run in titled if math.isfinite(run.metrics.get("val/top1", math.nan))]
    num_runs = Counter(map(_images, evaluated))

    def rank(run: Record) -> tuple[Any, ...]:
        images = _images(run)
        is_of_paper = images[0] == run.published.get("dataset")
        return (is_of_paper, num_runs[images], images, run.metrics["val/top1"])

    best: dict[str, BestResult] = {}
    for run in sorted(evaluated, key=rank):
        best[run.published["title"]] = BestResult(
            top1_err=100 - run.metrics["val/top1"],
            data=run.config["data.name"],
            protocol=run.config["data.eval_protocol"],
            run=run.path,
            fingerprint=run.data_fingerprint,
        )
    return best


def _images(run: Record) -> tuple[str, str]:
    return (str(run.config["data.name"]), str(run.data_fingerprint))


def _cell(value: float | None, mark: str = "") -> str:
    return MISSING if value is None else f"{value:.4g}{mark}"
