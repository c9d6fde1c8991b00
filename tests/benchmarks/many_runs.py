"""`tahoe list`, `compare` and `report` over ten thousand runs, beside MLflow's own query of them.

    python tests/benchmarks/many_runs.py [--runs 10000] [--rounds 2] [DIRECTORY]

The runs are copies of one, with other seeds, networks and batch sizes: 100 points each, as run
directories and in an SQLite store. Each round asks all in turn: MLflow's client for its Run
objects, Tahoe's verbs for the store, and Tahoe's verbs for the directories, whose index there is
after the first time. What is printed is the median of the wall times, with starting Python.
"""

import argparse
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from orchestrator.config.parse import to_dict
from orchestrator.launch.compose import compose
from orchestrator.run.rundir import RunDir
from orchestrator.tracking.shipping.shipper import sync

SYSTEMS = ("lenet5_1998", "alexnet_2012", "vgg11_2014", "resnet18", "timm/convnext_tiny")
BATCHES = (64, 128, 256, 512)
NUM_LINES, FIGURES = 25, ("train/loss", "train/lr", "perf/images_per_s", "val/top1")
VERBS = {"list": ("list",), "compare": ("compare",), "report": ("report", "--data", "digits")}
MLFLOW = """
import sys
from orchestrator.tracking.mlflow_store.client import MlflowClient
client, token, count = MlflowClient(tracking_uri=sys.argv[1]), None, 0
places = [one.experiment_id for one in client.search_experiments()]
while True:
    page = client.search_runs(places, max_results=1000, page_token=token)
    count, token = count + len(page), page.token
    if not token:
        sys.exit(count != int(sys.argv[2]))
"""


def make_run(place: Path, number: int) -> RunDir:
    """Write a finished run; what differs from run to run is told apart by its number."""
    run = RunDir(place / f"run-{number:05d}")
    run.path.mkdir()
    model, batch = SYSTEMS[number % 5], BATCHES[number // 5 % 4]
    seed = number // 20
    text = _config_text().replace("seed: 0\n", f"seed: {seed}\n", 1)
    text = text.replace("name: lenet5_1998\n", f"name: {model}\n", 1)
    run.config_file.write_text(text.replace("batch_size: 64\n", f"batch_size: {batch}\n", 1))
    identity = {"id": run.id, "uid": f"uid-{number}", "created_s": 1.7e9 + number}
    data = {"name": "digits", "fingerprint": "f" * 64}
    run.write_json(run.identity_file, {**identity, "data": data})
    times = {"started_s": 1.7e9 + number, "world_size": 8}
    lines = [{"attempt": 1, **times}, {"attempt": 1, "ended_s": 1.7e9 + number + 3600}]
    run.attempts_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = {"outcome": "finished", "step": NUM_LINES, "attempt": 1, "reason": "all is done"}
    run.write_json(run.outcome_file, outcome)
    with run.metrics_file.open("w") as file:
        for step, figures in enumerate(figures_of(number), start=1):
            line = {"step": step, "time_ms": 1_700_000_000_000 + step, "attempt": 1}
            file.write(json.dumps({**line, "metrics": figures}) + "\n")
    return run


def figures_of(number: int) -> Iterable[dict[str, float]]:
    for step in range(1, NUM_LINES + 1):
        values = (2 / step, 0.1, 1000 + number % 97, 90 - 40 / step + number % 7)
        yield dict(zip(FIGURES, values, strict=True))


def _config_text() -> str:
    if not _text:
        overrides = ["model=lenet5_1998", "data=digits", "seed=0", "recipe.global_batch_size=64"]
        (composed,) = compose(overrides)
        run = RunDir(Path(tempfile.mkdtemp()))
        config = to_dict(composed.config)
        run.write_config({**config, "tracking": {**config["tracking"], "uri": _uri[0]}})
        _text.append(run.config_file.read_text())
    return _text[0]


_text: list[str] = []
_uri: list[str] = []


def copy_in_store(file: Path, template_id: str, runs: Iterable[tuple[int, RunDir]]) -> None:
    """Give the store a copy of a run for each of the runs, by MLflow 3's tables."""
    with closing(sqlite3.connect(file)) as store:
        rows = {
            table: store.execute(f"select * from {table} where run_uuid = ?", [template_id])
            for table in ("runs", "params", "tags")
        }
        names = {
            table: [column[0] for column in found.description] for table, found in rows.items()
        }
        kept = {t: [dict(zip(names[t], row, strict=True)) for row in rows[t]] for t in rows}
        template = next(row for row in kept["tags"] if row["key"] == "tahoe.record")
        for number, run in runs:
            own = {"run_uuid": uuid.uuid4().hex}
            config = run.read_config()
            told = {
                "seed": str(config["seed"]),
                "tahoe.model": config["model"]["name"],
                "model.name": config["model"]["name"],
                "recipe.global_batch_size": str(config["recipe"]["global_batch_size"]),
                "tahoe.uid": f"uid-{number}",
                "tahoe.run_id": run.id,
                "tahoe.run_dir": str(run.path),
                "mlflow.runName": run.id,
            }
            record = {"id": run.id, "path": str(run.path), "uid": f"uid-{number}"}
            record["created_s"] = run.read_json(run.identity_file)["created_s"]
            told["tahoe.record"] = json.dumps(json.loads(template["value"]) | record)
            for table, some in kept.items():
                for row in some:
                    new = {**row, **own}
                    if table == "runs":
                        new |= {"name": run.id, "start_time": row["start_time"] + number}
                    elif row["key"] in told:
                        new["value"] = told[row["key"]]
                    _insert(store, table, new)
            for step, figures in enumerate(figures_of(number), start=1):
                for key, value in figures.items():
                    point = {"key": key, "value": value, "step": step, "is_nan": 0, **own}
                    point["timestamp"] = 1_700_000_000_000 + step
                    _insert(store, "metrics", point)
                    if step == NUM_LINES:
                        _insert(store, "latest_metrics", point)
        store.commit()


def _insert(store: sqlite3.Connection, table: str, row: dict[str, object]) -> None:
    marks = ", ".join("?" * len(row))
    store.execute(f"insert into {table} ({', '.join(row)}) values ({marks})", [*row.values()])


def timed(*command: object) -> float:
    start_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return time.perf_counter() - start_s


def asked(place: Path, uri: str, num_runs: int) -> dict[str, Callable[[], float]]:
    tahoe = ("-m", "orchestrator.cli.main")
    output = {"report": ("--output", place / "report")}
    found: dict[str, Callable[[], float]] = {
        "MLflow's client": lambda: timed("-c", MLFLOW, uri, num_runs)
    }
    for verb, words in VERBS.items():
        more = output.get(verb, ())
        where = ("--runs-dir", place / "runs")
        found[f"{verb} --from-mlflow"] = lambda w=words, m=more: timed(
            *tahoe, *w, "--from-mlflow", uri, *m
        )
        found[verb] = lambda w=words, m=more, at=where: timed(*tahoe, *w, *at, *m)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(dir=options.directory))
    store = place / "mlflow.db"
    _uri.append(f"sqlite:///{store}")
    (place / "runs").mkdir()
    runs = [make_run(place / "runs", number) for number in range(options.runs)]
    sync(runs[0].path)
    template = (runs[0].read_json(runs[0].mlflow_file) or {})["run_id"]
    copy_in_store(store, template, [*enumerate(runs)][1:])
    print(f"{platform.machine()}, {os.cpu_count()} cores; {options.runs} runs; {place}")
    ways = asked(place, _uri[0], options.runs)
    first = {verb: ways[verb]() for verb in ("list",)}
    print(f"the first time, with no index: list {first['list']:.1f} s")
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, ask in ways.items():
            taken[name].append(ask())
    base = statistics.median(taken["MLflow's client"])
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        print(
            f"{name:24} {median:6.1f} s  {median / base:5.2f} x  {[round(s, 1) for s in seconds]}"
        )


if __name__ == "__main__":
    main()
