"""The shelf: every system that has a config with published figures, and what was measured of it."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

import conf
from orchestrator.config.parse import ConfigError, did_you_mean
from orchestrator.tracking.records.record import Record

MISSING = "-"
_CONFIGS = Path(conf.__file__).parent


@dataclass(frozen=True)
class BestResult:
    """The best evaluation of a system on some images: top-1 error in percent, and by which run."""

    top1_err: float
    data: str
    protocol: str
    run: str
    fingerprint: str | None = None


@dataclass(frozen=True)
class CatalogEntry:
    """One config of the group `model`, as the file has it."""

    name: str
    about: str
    model: Mapping[str, Any]
    measured: BestResult | None = None

    @property
    def published(self) -> Mapping[str, Any]:
        """What its paper says; see orchestrator.config.schema.Published."""
        found: Mapping[str, Any] = self.model["published"]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for programs."""
        measured = asdict(self.measured) if self.measured else None
        known = {"name": self.name, "about": self.about, "model": self.model["name"]}
        return {**known, "kwargs": self.model["kwargs"], **self.published, "measured": measured}


def load_catalog(runs: Iterable[Record] = ()) -> list[CatalogEntry]:
    """Return the systems, oldest first, with the best that runs have measured of each."""
    best = _best(runs)
    systems = []
    for file in sorted((_CONFIGS / "model").glob("*.yaml")):
        text = file.read_text()
        model = yaml.safe_load(text)
        if model.get("published"):
            title = model["published"]["title"]
            systems.append(CatalogEntry(file.stem, _head(text), model, best.get(title)))
    return sorted(systems, key=lambda system: (system.published["year"], system.name))


def find_entry(name: str, systems: Iterable[CatalogEntry]) -> CatalogEntry:
    """Return the system of a name.

    Raises:
        ConfigError: there is none.
    """
    known = {one.name: one for one in systems}
    if name not in known:
        raise ConfigError(f"no system '{name}' on the shelf; {did_you_mean(name, list(known))}")
    return known[name]


def table(systems: Iterable[CatalogEntry]) -> Table:
    """Return systems as the rows of a table."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for header in ("\nyear", "\nmodel="):
        shown.add_column(header, no_wrap=True)
    for header in ("params\n(M)", "GMACs\n", "top-1\n(%)", "top-5\n(%)", "ens.\n(%)", "yours\n(%)"):
        shown.add_column(header, justify="right", no_wrap=True)
    shown.add_column("on", overflow="fold")
    for one in systems:
        said, mark = one.published, "" if one.published["verified"] else "?"
        params, own = said["num_params"], one.measured
        shown.add_row(
            str(said["year"]),
            one.name,
            MISSING if params is None else f"{params / 1e6:.2f}",
            _cell(said["gmacs"]),
            _cell(said["top1_err"], mark),
            _cell(said["top5_err"], mark),
            _cell(said["ensemble_top5_err"]),
            MISSING if own is None else f"{own.top1_err:.2f}",
            "" if own is None else escape(own.data),
        )
    return shown


def describe(one: CatalogEntry) -> str:
    """Return what is known of a system, and how it is trained, as text."""
    said = one.published
    lines = [one.about, ""]
    for label, key in (
        ("system", "title"), ("year", "year"), ("published at", "venue"),
        ("place in ILSVRC", "ilsvrc_place"), ("data", "dataset"), ("protocol", "protocol"),
        ("top-1 error, %", "top1_err"), ("top-5 error, %", "top5_err"),
        ("nets of the ensemble", "ensemble_size"),
        ("its top-5 error, %", "ensemble_top5_err"), ("parameters", "num_params"),
        ("GMACs an image", "gmacs"), ("hardware", "hardware"), ("training time", "training_time"),
        ("training, petaFLOP", "petaflop"), ("source", "source"),
    ):  # fmt: skip
        if said[key] is not None:
            value = f"{said[key]:,}" if key == "num_params" else said[key]
            lines.append(f"{label:<22}{value}")
    lines.append(
        f"{'verified':<22}{'yes' if said['verified'] else 'no: from memory, or second hand'}"
    )
    if one.measured:
        lines.append(f"{'measured':<22}{_told(one.measured)}, in {one.measured.run}")
    lines += [f"{'caveat':<22}{caveat}" for caveat in said["caveats"]]
    return "\n".join([*lines, "", *_ways_to_train(one)])


def _ways_to_train(one: CatalogEntry) -> list[str]:
    """Return the recipe of a system's paper and the commands that begin with it."""
    recipe = one.published.get("recipe")
    experiments = _experiments(one.name)
    if recipe is None:
        return [
            "There is no recipe of its paper here. With one that you choose (conf/recipe):",
            f"  tahoe train model={one.name} recipe=... data.url=URL",
        ]
    lines = [f"recipe={recipe}: {_head((_CONFIGS / 'recipe' / f'{recipe}.yaml').read_text())}"]
    for name in experiments:
        lines += ["", f"  tahoe submit experiment={name} data.url=URL slurm=CLUSTER"]
    if not experiments:
        lines += ["", f"  tahoe train model={one.name} recipe={recipe} data.url=URL"]
    return lines


def _experiments(system: str) -> list[str]:
    """Return the experiments that are of a system's network, those at its own size first."""
    group, found = _CONFIGS / "experiment", []
    for file in [*sorted(group.glob("*.yaml")), *sorted(group.glob("*/*.yaml"))]:
        parts = yaml.safe_load(file.read_text()).get("defaults", [])
        if {"override /model": system} in parts:
            found.append(file.relative_to(group).with_suffix("").as_posix())
    return found


def _head(text: str) -> str:
    """Return the comment that a config begins with, as one line."""
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line[1:].strip() for line in lines)


def _best(runs: Iterable[Record]) -> dict[str, BestResult]:
    """Return the best evaluation of each system, by its title.

    Figures of other images do not compare: those of the paper's data set are taken where there are
    any, and of several sets the one with most runs.
    """
    titled = [run for run in runs if run.published.get("title")]
    judged = [run for run in titled if math.isfinite(run.metrics.get("val/top1", math.nan))]
    num_runs = Counter(map(_images, judged))

    def worth(run: Record) -> tuple[Any, ...]:
        images = _images(run)
        is_papers = images[0] == run.published.get("dataset")
        return (is_papers, num_runs[images], images, run.metrics["val/top1"])

    best: dict[str, BestResult] = {}
    for run in sorted(judged, key=worth):
        data, protocol = run.config["data.name"], run.config["data.eval_protocol"]
        error = 100 - run.metrics["val/top1"]
        found = BestResult(error, data, protocol, run.path, run.data_fingerprint)
        best[run.published["title"]] = found
    return best


def _images(run: Record) -> tuple[str, str]:
    return (str(run.config["data.name"]), str(run.data_fingerprint))


def _told(measured: BestResult) -> str:
    return f"{measured.top1_err:.2f} on {measured.data}, {measured.protocol}"


def _cell(value: float | None, mark: str = "") -> str:
    return MISSING if value is None else f"{value:.4g}{mark}"
