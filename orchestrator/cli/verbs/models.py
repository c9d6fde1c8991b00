"""`tahoe lineage` and `tahoe describe`: the systems that can be trained by name."""

import argparse
from typing import TYPE_CHECKING

from orchestrator.cli.shared.arguments import add_runs_dir, add_verb
from orchestrator.json_output import strict_json

if TYPE_CHECKING:
    from orchestrator.tracking.records.catalog import CatalogEntry

_LEGEND = """\
Errors: top-1 and top-5 of a single network, top-5 of the challenge's ensemble (ens.), and top-1 of
your best run. `?` is not verified. Figures under other protocols, or on other data, do not compare:
`tahoe describe NAME` says which they are."""


_WIDEST = 1000


def add_lineage_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `lineage` and `describe`."""
    text = "list the systems that have a config, with what was published and measured"
    lineage_verb = add_verb(verbs, "lineage", lineage, text)
    lineage_verb.add_argument(
        "text", nargs="*", metavar="TEXT", help="only those that all of it is in"
    )
    lineage_verb.add_argument("--since", type=int, metavar="YEAR")
    lineage_verb.add_argument("--until", type=int, metavar="YEAR")
    verified_help = "only figures that were read in their source"
    lineage_verb.add_argument("--verified", action="store_true", help=verified_help)
    lineage_verb.add_argument("--measured", action="store_true", help="only what a run has trained")
    describe_verb = add_verb(verbs, "describe", describe, "print all that is known of a system")
    describe_verb.add_argument("name", metavar="NAME", help="as after model=")
    for verb in (lineage_verb, describe_verb):
        add_runs_dir(verb)
        verb.add_argument("--json", action="store_true", help="for programs")


def lineage(options: argparse.Namespace) -> int:
    """Print the shelf."""
    from rich.console import Console
    from rich.measure import Measurement

    from orchestrator.run.rundir import RunError
    from orchestrator.tracking.records.catalog import table

    chosen = [one for one in _shelf(options) if _is_wanted(one, options)]
    if options.json:
        print(strict_json([one.to_dict() for one in chosen]))
        return 0
    if not chosen:
        raise RunError(
            f"none of the {len(_shelf(options))} systems is meant: each listed one has all of the "
            f"words ({', '.join(options.text) or 'none'}) in its name or description, and passes "
            "all of the options. Give fewer of them."
        )
    console, shown = Console(soft_wrap=True, highlight=False), table(chosen)
    # No column may be lost where the terminal is narrow: its lines are wrapped instead.
    whole = Measurement.get(console, console.options.update(max_width=_WIDEST), shown).maximum
    console.width = max(console.width, whole)
    console.print(shown)
    print(_LEGEND)
    return 0


def describe(options: argparse.Namespace) -> int:
    """Print one system."""
    from orchestrator.tracking.records.catalog import describe, find_entry

    one = find_entry(options.name, _shelf(options))
    print(strict_json(one.to_dict()) if options.json else describe(one))
    return 0


def _shelf(options: argparse.Namespace) -> "list[CatalogEntry]":
    from orchestrator.tracking.records.catalog import load_catalog
    from orchestrator.tracking.records.record_index import all_records

    return load_catalog(all_records(options.runs.absolute()))


def _is_wanted(one: "CatalogEntry", options: argparse.Namespace) -> bool:
    year, text = one.published["year"], f"{one.name} {one.about}".lower()
    return (
        all(word.lower() in text for word in options.text)
        and (options.since is None or year >= options.since)
        and (options.until is None or year <= options.until)
        and (one.published["verified"] or not options.verified)
        and (one.measured is not None or not options.measured)
    )
