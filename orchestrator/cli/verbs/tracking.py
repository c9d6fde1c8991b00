"""`tahoe register|import|sync|ui`: runs and models in MLflow."""

from pathlib import Path

import click

from orchestrator.cli.shared.arguments import PATH, run_argument, runs_argument
from orchestrator.cli.shared.commands import Command


@click.command(cls=Command)
@run_argument
@click.option("--name", help="name of the model (default: that of the network and the data)")
@click.option("--step", type=int, help="step of the checkpoint (default: the best, or newest)")
def register(run: Path, name: str | None, step: int | None) -> None:
    """Register a checkpoint as a version of a model in MLflow."""
    from orchestrator.run.rundir import RunDir
    from orchestrator.tracking.mlflow_store import registry

    run_dir = RunDir(run.absolute())
    version = registry.register(run_dir, name, step)
    print(f"version {version.version} of {version.name} is step {version.step:,} of {run_dir.id}")
    print(f"  mlflow.pyfunc.load_model({version.uri!r})")


@click.command("import", cls=Command)
@click.argument(
    "source",
    metavar="published|CSV",
    help="the published results of `tahoe models`, or the path or URL of a results file of timm",
)
@click.option("--uri", default="sqlite:///mlflow.db", help="MLflow store")
@click.option("--experiment", default="tahoe", metavar="NAME", help="MLflow experiment")
def import_results(source: str, uri: str, experiment: str) -> None:
    """Import published results into MLflow, to compare with."""
    from orchestrator.number_format import pluralize
    from orchestrator.redact import one_line_error
    from orchestrator.run.rundir import RunError
    from orchestrator.tracking.mlflow_store import import_results as importer
    from orchestrator.tracking.mlflow_store.client import MlflowException
    from orchestrator.tracking.records.catalog import load_catalog

    if source == "published":
        results = importer.published_results(load_catalog())
    else:
        results = importer.timm_results(source)
    try:
        num_created, num_existing = importer.import_runs(results, uri, experiment)
    except (MlflowException, OSError) as error:
        raise RunError(
            f"not all results were imported: {one_line_error(error)}",
            value=source,
            hint="Run the same command again: it continues where it stopped.",
        ) from error
    created = pluralize(num_created, "run")
    print(f"{created} created in {experiment!r}; {num_existing:,} existed already")


@click.command(cls=Command)
@runs_argument
def sync(runs: tuple[Path, ...]) -> None:
    """Send to MLflow what it has not received."""
    from orchestrator.jobs.status import never_begun
    from orchestrator.run.sweepdir import expand_sweeps
    from orchestrator.tracking.shipping import shipper

    run_dirs = expand_sweeps(runs)
    never = never_begun(run_dirs)
    for run in run_dirs:
        shipper.sync(run.path, never=never.get(run))
        if run in never:
            print(f"{run.id} is shown as KILLED: {never[run]}")


@click.command(cls=Command)
@click.argument(
    "runs", nargs=-1, type=PATH, metavar="[RUN]...", help="runs and sweeps whose pages are printed"
)
@click.option("--uri", help="MLflow store (default: that of the runs, or sqlite:///mlflow.db)")
@click.option("--port", type=int, default=5000, help="port of the server")
def ui(runs: tuple[Path, ...], uri: str | None, port: int) -> None:
    """Open MLflow's pages on the store of the runs."""
    from orchestrator.tracking.mlflow_ui.serve import serve_ui, tracking_uri_of

    serve_ui(uri or tracking_uri_of(runs), port, paths=runs)
