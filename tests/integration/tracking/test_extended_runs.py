"""A run whose end was moved once it had begun is no seed of one that was so long from the start."""

import json
from pathlib import Path

import pytest
from cli_runner import Tahoe

from orchestrator.run.rundir import append_json_line
from orchestrator.tracking.mlflow_store.mlflow_records import records_from_mlflow
from orchestrator.tracking.records.record import read_record
from orchestrator.tracking.reports.compare import compare
from orchestrator.tracking.reports.curves import label_of
from orchestrator.tracking.shipping.shipper import sync

# MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture
def made(create_tracked_run, store):
    """Makes finished runs of attempts with some numbers of steps, which logged a step each."""

    def make(name, *lengths, seed=1, schedule="cosine", slurm=False, **options):
        tracked = create_tracked_run(name, uri=store)
        schedule = {"name": schedule, "min_lr_factor": 0.0, **options}
        tracked.configure(recipe={"epochs": 4, "schedule": schedule})
        tracked.run.write_config({**tracked.run.read_config(), "seed": seed})
        for number, length in enumerate(lengths, start=1):
            known = {"slurm_job_id": str(number)} if slurm else {"num_steps": length}
            if slurm:
                line = {"slurm_job_id": str(number), "num_steps": length}
                append_json_line(tracked.run.jobs_file, line)
            attempt = tracked.run.begin_attempt(world_size=1, **known)
            tracked.log(length, {"val/top1": 50.0 + length}, attempt=attempt)
        tracked.write_outcome("finished", len(lengths))
        return tracked

    return make


def rows(tracked_runs):
    (section,) = compare([read_record(tracked.run) for tracked in tracked_runs])
    return {frozenset(one.id for one in row.records): row for row in section.rows}


@pytest.mark.parametrize("slurm", [False, True])
def test_an_extended_run_stands_alone(made, slurm) -> None:
    clean = [made("a", 28, 28, seed=1, slurm=slurm), made("b", 28, seed=2, slurm=slurm)]
    found = rows([*clean, made("extended", 14, 28, seed=3, slurm=slurm)])
    assert set(found) == {frozenset({"a", "b"}), frozenset({"extended"})}
    row = found[frozenset({"extended"})]
    assert row.differs == {"extended": "14 -> 28 steps"}
    assert "14 -> 28" in label_of(row)


def test_runs_that_were_extended_alike_are_seeds(made) -> None:
    found = rows([made(name, 14, 28, seed=i) for i, name in enumerate("ab")])
    assert set(found) == {frozenset({"a", "b"})}


@pytest.mark.parametrize("options", [{"schedule": "constant"}, {"min_lr_factor": 1.0}])
def test_where_the_rate_has_no_end_an_extended_run_is_as_any_other(made, options) -> None:
    found = rows([made("a", 28, **options), made("b", 14, 28, seed=2, **options)])
    assert set(found) == {frozenset({"a", "b"})}


def test_an_attempt_that_did_no_step_moved_no_end(made) -> None:
    tracked = made("a", 28)
    lines = tracked.run.attempts_file.read_text()
    first = json.dumps({"attempt": 1, "started_s": 1.0, "num_steps": 14})
    tracked.run.attempts_file.write_text(
        first + "\n" + lines.replace('"attempt": 1', '"attempt": 2')
    )
    text = tracked.run.metrics_file.read_text().replace('"attempt": 1', '"attempt": 2')
    tracked.run.metrics_file.write_text(text)
    assert "extended" not in read_record(tracked.run).config


def test_mlflow_knows_it_as_well(made, store: str) -> None:
    for tracked in (made("a", 28), made("extended", 14, 28, seed=3)):
        sync(tracked.run.path)
    assert tracked.mlflow_run().data.tags["tahoe.extended"] == "14 -> 28 steps"
    (section,) = compare(records_from_mlflow(store))
    assert {row.differs["extended"] for row in section.rows} == {"-", "14 -> 28 steps"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_is_extended_as_was_chosen(tahoe: Tahoe, train, digits: Path) -> None:
    short = (
        *("launcher.nproc_per_node=1", "logging.every_steps=1"),
        *("recipe.schedule.name=cosine", "recipe.schedule.warmup_epochs=0"),
    )
    run = train("extended", "recipe.epochs=1", *short)
    refused = tahoe("resume", str(run.path), "recipe.epochs=2", check=False)
    assert refused.returncode == 93
    assert "--schedule restart" in refused.stderr
    tahoe("resume", str(run.path), "recipe.epochs=2", "--schedule", "restart")
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    rates = [(line["step"], line["metrics"].get("train/lr")) for line in lines]
    known = {step: rate for step, rate in rates if rate is not None}
    half = max(known) // 2
    first, second = (range(start, start + half) for start in (1, half + 1))
    assert [known[step] for step in second] == pytest.approx([known[step] for step in first])
    assert known[half] < known[1] / 10
    assert read_record(run).config["extended"] == f"{half} -> {2 * half} steps"
