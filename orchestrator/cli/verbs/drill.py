"""`tahoe drill`: a run under injected faults."""

from dataclasses import asdict
from typing import Any

import click

from orchestrator.cli.shared.arguments import (
    HYDRA_FLAGS,
    PATH,
    POSITIVE,
    flag,
    json_option,
    overrides_argument,
)
from orchestrator.cli.shared.commands import Command
from orchestrator.console import print_json
from orchestrator.drill.faults import KINDS


@click.command(cls=Command, context_settings=HYDRA_FLAGS)
@overrides_argument("overrides of the config, or one run directory", "[OVERRIDES]...|RUN")
@click.option("--faults", type=POSITIVE, default=20, metavar="N", help="number of faults")
@click.option("--seed", type=int, default=0, help="seed of the fault schedule")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(KINDS),
    metavar="KIND",
    help=f"kind of fault, repeatable: {', '.join(KINDS)} (default: all that apply)",
)
@click.option("--ranks", type=POSITIVE, default=2, metavar="N", help="number of ranks")
@flag("--on-nodes", help="run as a job on a local cluster, and lose its nodes instead")
@click.option(
    "--directory", type=PATH, metavar="DIR", help="directory of both runs (default: in runs_dir)"
)
@json_option
def drill(as_json: bool, **options: Any) -> int:
    """Inject faults into a run; compare it with an undisturbed one.

    Both are short versions of the run.
    """
    from orchestrator.drill.compare import show
    from orchestrator.drill.experiment import DrillOptions
    from orchestrator.drill.experiment import drill as run_drill

    report = run_drill(DrillOptions(**options))
    if as_json:
        print_json({**asdict(report), "passed": report.passed})
    else:
        show(report)
    return 0 if report.passed else 1
