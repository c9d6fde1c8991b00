"""`tahoe register`: a checkpoint of a run in MLflow's registry of models."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.shared.arguments import add_verb

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add_register_verb(verbs: "Verbs") -> None:
    text = "make the best checkpoint of a run a version of a model in MLflow"
    verb = add_verb(verbs, "register", register, text)
    verb.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    verb.add_argument("--name", help="of the model (default: that of the network and the data)")
    verb.add_argument("--step", type=int, help="of the checkpoint (default: the best, or newest)")


def register(options: argparse.Namespace) -> int:
    """Register it, and say where it is."""
    from orchestrator.run.rundir import RunDir
    from orchestrator.tracking.mlflow_store.registry import register as registered

    run = RunDir(options.run.absolute())
    made = registered(run, options.name, options.step)
    print(f"version {made.version} of {made.name} is step {made.step:,} of {run.id}")
    print(f"  mlflow.pyfunc.load_model({made.uri!r})")
    return 0
