"""`tahoe shard` and `tahoe data`: verbs that write data sets, and verbs that inspect them.

Only argparse is imported here, so that help is instant.
"""

import argparse

from orchestrator.cli.dataset.inspect import add_augmented_preview, add_inspectors
from orchestrator.cli.dataset.write import add_writers


def add_shard_verbs(parser: argparse.ArgumentParser) -> None:
    """Add the verbs of `tahoe shard`; each sets `call`."""
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, dest="verb")
    add_writers(verbs)
    add_inspectors(verbs)


def add_data_verbs(parser: argparse.ArgumentParser) -> None:
    """Add the verbs of `tahoe data`; each sets `call`."""
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, dest="verb")
    add_augmented_preview(verbs)
