"""Verbs, and arguments that several of them take."""

import argparse
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn


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
