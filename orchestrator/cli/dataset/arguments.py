"""Arguments and options that several commands of `tahoe shard` share."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from orchestrator.cli.shared.arguments import PATH, POSITIVE, Call, flag

if TYPE_CHECKING:
    from data_sharding.format.labels import LabelRule

URL_HELP = "data set: a path or any fsspec URL"

url_argument = click.argument("url", help=URL_HELP)
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


def label_options(call: Call) -> Call:
    """Add the format of the labels of foreign shards."""
    options = (
        click.option("--classes", type=PATH, metavar="FILE", help="names of classes, one a line"),
        flag("--multi-label", help="samples with several labels"),
        click.option(
            "--label",
            default="cls",
            metavar="EXT[:FIELD]",
            help="member that holds the label: cls, txt, json:FIELD or none",
        ),
    )
    for option in options:
        call = option(call)
    return call


def label_rule(label: str, *, multi_label: bool) -> "LabelRule":
    """Build the label rule of `label_options`."""
    from pydantic import ValidationError

    from data_sharding.errors import DataError
    from data_sharding.format.labels import LabelRule

    if label == "none":
        return LabelRule(kind="none")
    extension, _, field = label.partition(":")
    try:
        return LabelRule("multi" if multi_label else "single", extension, field or None)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise DataError(
            f"--label {label}: {reason}; nothing was written",
            value=label,
            hint="Use cls, txt, json:FIELD or none.",
        ) from None


def num_bytes(text: str) -> int:
    """Parse a size such as 256MB."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise click.BadParameter(f"{text!r} is not a size such as 256MB.") from None
