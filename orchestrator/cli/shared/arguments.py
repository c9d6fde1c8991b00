"""Verbs, and arguments that several of them take."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from data_sharding.format.labels import LabelRule

URL_HELP = "a data set: a path or any fsspec URL"


class Parser(argparse.ArgumentParser):
    """A parser that names the verb or choice that was probably meant; so do those of its verbs.

    Words may stand before and after options: `tahoe resume RUN --schedule keep recipe.epochs=9`.
    """

    _is_parsing = False

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Return what was given, and what is left of it."""
        if self._subparsers or self._is_parsing:  # argparse itself cannot with verbs
            return super().parse_known_args(args, namespace)
        self._is_parsing = True  # which calls this again
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_parsing = False

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with 2."""
        wrong = re.search(r"invalid choice: '?([^\s']+)'? \(choose from (.+)\)", message)
        near = get_close_matches(wrong[1], re.findall(r"[\w-]+", wrong[2]), n=1) if wrong else ()
        super().error(message + "".join(f"; did you mean '{name}'?" for name in near))


def add_verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    call: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    """Add a verb that calls a function."""
    verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    verb.set_defaults(call=call)
    return verb


def add_runs(verb: argparse.ArgumentParser) -> None:
    """Add the runs that a verb is about."""
    runs_help = "a run directory, or that of a sweep"
    verb.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=runs_help)


def add_runs_dir(verb: argparse.ArgumentParser) -> None:
    """Add where runs are looked for."""
    runs_help = "where to look for runs (default: %(default)s)"
    verb.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help=runs_help)


def add_from_mlflow(verb: argparse.ArgumentParser) -> None:
    """Add the MLflow store that is asked instead."""
    uri_help = "ask this MLflow store, and no directories"
    verb.add_argument("--from-mlflow", metavar="URI", help=uri_help)


def add_label_options(verb: argparse.ArgumentParser) -> None:
    """Add how the labels of shards made by others are read."""
    label_help = "the member that holds the label: cls, txt, json:FIELD, none (default cls)"
    verb.add_argument("--label", default="cls", metavar="EXT[:FIELD]", help=label_help)
    verb.add_argument("--multi-label", action="store_true", help="a sample has several labels")
    classes_help = "the names of the classes, one a line, class 0 first"
    verb.add_argument("--classes", type=Path, metavar="FILE", help=classes_help)


def label_rule(options: argparse.Namespace) -> "LabelRule":
    """Return what the options of add_label_options say.

    Raises:
        DataError: they make no sense.
    """
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
            f"--label {options.label} cannot be used: {reason}. Nothing was written. Write cls, "
            "txt, json:FIELD or none."
        ) from None


def add_num_workers(verb: argparse.ArgumentParser, most: int | None = None) -> None:
    """Add how many processes work, as many as there are cores if nothing is said."""
    num_cores = len(os.sched_getaffinity(0))
    workers_help = "processes (default: one a core" + (f", at most {most})" if most else ")")
    default = min(num_cores, most or num_cores)
    verb.add_argument("--num-workers", type=positive, default=default, help=workers_help)


def add_scratch(verb: argparse.ArgumentParser) -> None:
    """Add where copies of remote shards go."""
    verb.add_argument("--scratch", metavar="DIR", help="for copies of remote shards")


def positive(text: str) -> int:
    """Read an integer of at least 1, as an argument's type."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def at_least_2(text: str) -> int:
    """Read how many checkpoints stay, as an argument's type: the newest may be damaged."""
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{number} is not at least 2")
    return number


def num_bytes(text: str) -> int:
    """Read a number of bytes like 256MB, as an argument's type."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 256MB") from None
