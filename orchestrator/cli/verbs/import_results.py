"""`tahoe import`: figures that others have published, as runs in MLflow."""

import argparse
from typing import TYPE_CHECKING

from orchestrator.cli.shared.arguments import add_verb

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add_import_verb(verbs: "Verbs") -> None:
    text = "bring figures that others have published into MLflow, to compare with"
    verb = add_verb(verbs, "import", import_figures, text)
    from_help = "published (those of `tahoe lineage`), or a results file of timm at a path or URL"
    verb.add_argument("source", metavar="published|CSV", help=from_help)
    verb.add_argument("--uri", default="sqlite:///mlflow.db", help="default: %(default)s")
    verb.add_argument("--experiment", default="tahoe", metavar="NAME", help="default: %(default)s")


def import_figures(options: argparse.Namespace) -> int:
    """Make the runs that are not there yet."""
    from orchestrator.number_format import pluralize
    from orchestrator.redact import one_line_error
    from orchestrator.run.rundir import RunError
    from orchestrator.tracking.mlflow_store.client import MlflowException
    from orchestrator.tracking.mlflow_store.import_results import (
        import_runs,
        published_results,
        timm_results,
    )
    from orchestrator.tracking.records.catalog import load_catalog

    is_own = options.source == "published"
    wanted = published_results(load_catalog()) if is_own else timm_results(options.source)
    try:
        num_made, num_there = import_runs(wanted, options.uri, options.experiment)
    except (MlflowException, OSError) as error:
        raise RunError(
            f"not all was imported: {one_line_error(error)}. The same command goes on where it "
            "stopped."
        ) from error
    made = pluralize(num_made, "run")
    print(f"{made} made in {options.experiment!r}; {num_there:,} there already")
    return 0
