"""`tahoe shard VERB`: the verbs that write a data set, and those that look at one.

Only argparse is imported here, so that help comes at once.
"""

import argparse

from orchestrator.cli.dataset.inspect import add_tools
from orchestrator.cli.dataset.write import add_writers


def add_shard_verbs(parser: argparse.ArgumentParser) -> None:
    """Add the verbs below `tahoe shard`; each sets `call` to what is to be run."""
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, dest="verb")
    add_writers(verbs)
    add_tools(verbs)
