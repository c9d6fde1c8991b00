"""`tahoe models`: the catalog of published systems that can be trained by name."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.shared.arguments import flag, json_option, runs_dir_option
from orchestrator.cli.shared.commands import Group
from orchestrator.console import print_json, print_table

if TYPE_CHECKING:
    from orchestrator.tracking.records.catalog import CatalogEntry

_LEGEND = """\
Errors: top-1 and top-5 of a single network, top-5 of the challenge's ensemble (ens.), and top-1 of
your best run. `?` is not verified. Errors under other protocols, or on other data, do not compare:
`tahoe models show NAME` lists them."""


class _Models(Group):
    """A group whose first command is run if none is named: `tahoe models alexnet`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert `list` where no command is named."""
        if not ctx.resilient_parsing and args[:1] not in [["-h"], ["--help"], ["list"], ["show"]]:
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Models)
def models() -> None:
    """List published systems, or show one; TEXT means `list TEXT`."""


@models.command("list")
@click.argument("text", nargs=-1, help="words that the name or the description contains")
@click.option("--since", type=int, metavar="YEAR", help="first year")
@click.option("--until", type=int, metavar="YEAR", help="last year")
@flag("--verified", help="only results that were read in their source")
@flag("--measured", help="only systems that a run has trained")
@runs_dir_option
@json_option
def list_models(
    text: tuple[str, ...],
    since: int | None,
    until: int | None,
    verified: bool,
    measured: bool,
    runs_dir: Path,
    as_json: bool,
) -> None:
    """List systems with their published and measured errors."""
    from orchestrator.run.rundir import RunError
    from orchestrator.tracking.records.catalog import table

    def is_selected(entry: "CatalogEntry") -> bool:
        year, searched = entry.published["year"], f"{entry.name} {entry.about}".lower()
        return (
            all(word.lower() in searched for word in text)
            and (since is None or year >= since)
            and (until is None or year <= until)
            and (entry.published["verified"] or not verified)
            and (entry.measured is not None or not measured)
        )

    catalog = _load(runs_dir)
    entries = [entry for entry in catalog if is_selected(entry)]
    if as_json:
        print_json([entry.to_dict() for entry in entries])
        return
    if not entries:
        raise RunError(
            f"none of the {len(catalog)} systems matches all words ({', '.join(text) or 'none'}) "
            "and options",
            value=text,
            hint="Give fewer of them.",
        )
    print_table(table(entries))
    print(_LEGEND)


@models.command()
@click.argument("name", help="name as after model=")
@runs_dir_option
@json_option
def show(name: str, runs_dir: Path, as_json: bool) -> None:
    """Show a system: its publication, its caveats, its recipe."""
    from orchestrator.tracking.records.catalog import describe, find_entry

    entry = find_entry(name, _load(runs_dir))
    if as_json:
        print_json(entry.to_dict())
    else:
        print(describe(entry))


def _load(runs_dir: Path) -> "list[CatalogEntry]":
    from orchestrator.tracking.records.catalog import load_catalog
    from orchestrator.tracking.records.record_index import all_records

    return load_catalog(all_records(runs_dir.absolute()))
