"""Arguments that several verbs on data sets take."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.shared.arguments import positive

if TYPE_CHECKING:
    from data_sharding.format.labels import LabelRule

URL_HELP = "data set: a path or fsspec URL"


def add_label_options(verb: argparse.ArgumentParser) -> None:
    """Add the options that describe the labels of existing shards; see `label_rule`."""
    label_help = "member with the label: cls, txt, json:FIELD or none (default cls)"
    verb.add_argument("--label", default="cls", metavar="EXT[:FIELD]", help=label_help)
    verb.add_argument("--multi-label", action="store_true", help="samples with several labels")
    classes_help = "file with the names of the classes, one a line, class 0 first"
    verb.add_argument("--classes", type=Path, metavar="FILE", help=classes_help)


def label_rule(options: argparse.Namespace) -> "LabelRule":
    """Construct the label rule from the options of `add_label_options`."""
    from pydantic import ValidationError

    from data_sharding.errors import DataError
    from data_sharding.format.labels import LabelRule

    if options.label == "none":
        return LabelRule(kind="none")
    extension, _, field = options.label.partition(":")
    try:
        return LabelRule("multi" if options.multi_label else "single", extension, field or None)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise DataError(
            f"--label {options.label} cannot be used: {reason}; nothing was written",
            value=options.label,
            hint="Use cls, txt, json:FIELD or none.",
        ) from None


def add_num_workers(verb: argparse.ArgumentParser, most: int | None = None) -> None:
    """Add the number of processes, one for each core by default."""
    num_cores = len(os.sched_getaffinity(0))
    limit = f", at most {most}" if most else ""
    workers_help = f"number of processes (default: one for each core{limit})"
    default = min(num_cores, most or num_cores)
    verb.add_argument("--num-workers", type=positive, default=default, help=workers_help)


def add_scratch(verb: argparse.ArgumentParser) -> None:
    """Add the directory for copies of remote shards."""
    verb.add_argument("--scratch", metavar="DIR", help="directory for copies of remote shards")


def num_bytes(text: str) -> int:
    """Parse a size like 256MB, as the type of an argument."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 256MB") from None
