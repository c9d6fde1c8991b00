"""The arguments of `tahoe drill`, which need nothing that a drill needs."""

import argparse
from pathlib import Path

from orchestrator.drill.faults import KINDS


def add_drill_options(parser: argparse.ArgumentParser) -> None:
    """Add what `drill` takes besides overrides, which are Hydra's to read."""
    parser.add_argument("--faults", type=int, default=20, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of what is hurt when")
    kinds_help = f"of {', '.join(KINDS)} (default: all that apply)"
    parser.add_argument("--kind", action="append", choices=KINDS, metavar="KIND", help=kinds_help)
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="default: %(default)s")
    nodes_help = "run it as a job on a rehearsal cluster, and lose its nodes instead"
    parser.add_argument("--on-nodes", action="store_true", help=nodes_help)
    place_help = "where both runs lie (default: a new directory under runs_dir)"
    parser.add_argument("--directory", type=Path, metavar="DIR", help=place_help)
    parser.add_argument("--json", action="store_true", help="for programs")


def drill(options: argparse.Namespace) -> int:
    """Run a drill."""
    from orchestrator.drill.experiment import drill

    return drill(options)
