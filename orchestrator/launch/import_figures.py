"""`tahoe import`: figures that others have published, as runs in MLflow."""

import argparse
from typing import TYPE_CHECKING

from orchestrator.launch.arguments import add_verb

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
    from orchestrator.figures import counted
    from orchestrator.rundir import RunError
    from orchestrator.tracking.imported import import_runs, published, timm_results
    from orchestrator.tracking.lineage import shelf
    from orchestrator.tracking.outgoing import summary
    from orchestrator.tracking.store import MlflowException

    is_own = options.source == "published"
    wanted = published(shelf()) if is_own else timm_results(options.source)
    try:
        num_made, num_there = import_runs(wanted, options.uri, options.experiment)
    except (MlflowException, OSError) as error:
        raise RunError(
            f"not all was imported: {summary(error)}. The same command goes on where it stopped."
        ) from error
    made = counted(num_made, "run")
    print(f"{made} made in {options.experiment!r}; {num_there:,} there already")
    return 0
