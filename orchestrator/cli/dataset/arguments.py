"""Arguments and options that several commands of `tahoe shard` share."""

import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from orchestrator.cli.shared.arguments import PATH, POSITIVE, Call, flag
from orchestrator.cli.shared.commands import complete_overrides

if TYPE_CHECKING:
    from data_sharding.format.location import Location
    from data_sharding.format.sample_rule import SampleRule
    from orchestrator.config.schema import Data

URL_HELP = "data set: a path or any fsspec URL"

location_argument = click.argument(
    "where",
    nargs=-1,
    required=True,
    type=click.UNPROCESSED,
    metavar="URL|OVERRIDES...",
    help="data set: a path, any fsspec URL, or the overrides of data that train takes",
    shell_complete=complete_overrides,
)
scratch_option = click.option("--scratch", metavar="DIR", help="directory for remote shards")


def num_workers_option(most: int | None = None) -> Callable[[Call], Call]:
    """Add the number of worker processes: one a core by default."""
    num_cores = len(os.sched_getaffinity(0))
    default = f"one a core, at most {most}" if most else "one a core"
    return click.option(
        "--num-workers",
        type=POSITIVE,
        metavar="N",
        default=min(num_cores, most or num_cores),
        show_default=default,
        help="number of worker processes",
    )


def locate(where: Sequence[str]) -> "Location":
    """Return the place of a data set, given by its URL or by overrides of the config."""
    from data_sharding.format.location import Location

    data = compose_data(where)
    if data is None:
        return Location(where[0])
    if data.mix:
        raise click.UsageError("A mixture is several data sets: give the overrides of one.")
    return data.location


def compose_data(where: Sequence[str]) -> "Data | None":
    """Compose the config of a data set from overrides; None if its URL is given."""
    from orchestrator.config.parse import ConfigError
    from orchestrator.launch.compose import compose

    if len(where) == 1 and not re.match(r"data(\.\w+)?=", where[0]):
        return None
    if not all("=" in override for override in where):
        raise click.UsageError("Give the URL of one data set, or overrides of the config.")
    is_chosen = any(re.match(r"\+*(data|experiment)=", override) for override in where)
    points = compose(where if is_chosen else ["data=shards", *where])
    if len(points) != 1:
        raise ConfigError(
            f"these overrides name {len(points)} data sets, and one is needed",
            value=len(points),
            hint="Give the overrides of a single run.",
        )
    return points[0].config.data


slurm_options = (
    click.option(
        "--on", multiple=True, metavar="OVERRIDE", help="write by jobs: slurm=NAME, slurm.KEY=VALUE"
    ),
    click.option(
        "--num-parts", type=POSITIVE, default=16, help="with --on: number of jobs, at most"
    ),
    flag("--wait", help="with --on: show the progress of the jobs until they end"),
)


def sample_options(call: Call) -> Call:
    """Add the members and the classes of the samples of foreign shards."""
    options = (
        click.option("--classes", type=PATH, metavar="FILE", help="names of classes, one a line"),
        flag("--multi-label", help="samples with several labels"),
        click.option(
            "--label",
            metavar="EXT[:FIELD]",
            show_default="cls",
            help="member that holds the label: cls, txt, json:FIELD or none",
        ),
        click.option(
            "--class-map",
            metavar="FILE",
            help="classes to keep, one a line, or rows OLD,NEW (.csv, .tsv, .json)",
        ),
        click.option(
            "--image",
            metavar="EXT[;EXT]",
            help="member that is the image: jpg;png or input.jpg (default: any image)",
        ),
    )
    for option in options:
        call = option(call)
    return call


def sample_rule(image: str | None, label: str | None, *, multi_label: bool) -> "SampleRule":
    """Build the sample rule of `sample_options`."""
    from data_sharding.errors import DataError
    from data_sharding.format.sample_rule import make_rule

    try:
        return make_rule(image, label, multi_label=multi_label)
    except ValueError as error:
        raise DataError(
            f"{error}; nothing was written",
            value=label if str(error).startswith("label") else image,
            hint="`label` is cls, txt, json:FIELD or none; `image` jpg, jpg;png or input.jpg.",
        ) from None


def num_bytes(text: str) -> int:
    """Parse a size such as 256MB."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise click.BadParameter(f"{text!r} is not a size such as 256MB.") from None
