"""The classes of `tahoe` and its commands: lazy imports, errors in one line, hints in flags."""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import click

INTERRUPTED = 130  # as a shell reports Ctrl-C
INVALID_CONFIG = 93  # as a rank reports what no restart can fix


class Command(click.Command):
    """A command that prints an error that the user can fix without a traceback."""

    def invoke(self, ctx: click.Context) -> int:
        """Run the command and return the exit code."""
        from data_sharding.errors import UserError
        from slurm.errors import SlurmError

        try:
            return super().invoke(ctx) or 0
        except (UserError, SlurmError) as error:
            return self._report(error)
        except PermissionError as error:
            hint = "Ask its owner for access, or use a directory of your own."
            print(f"error: {error.filename}: {error.strerror}. {hint}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED

    def _report(self, error: Any) -> int:
        from orchestrator.cli.shared.hints import translate
        from orchestrator.config.parse import ConfigError

        print(f"error: {translate(str(error), self)}", file=sys.stderr)
        return INVALID_CONFIG if isinstance(error, ConfigError) else 1


class Group(click.Group):
    """A group of commands, listed in the order of their definition."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return [*self.commands]


class LazyGroup(click.Group):
    """A group that imports the module of a command when the command is used.

    Args:
        modules: the "module:attribute" of each command, by its name.
    """

    def __init__(self, name: str, modules: Mapping[str, str], **settings: Any) -> None:
        super().__init__(name, **settings)
        self.modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return [*self.modules]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; suggest similar names where there is none."""
        if cmd_name in self.modules:
            module, _, attribute = self.modules[cmd_name].partition(":")
            command: click.Command = getattr(import_module(module), attribute)
            return command
        if not ctx.resilient_parsing and not cmd_name.startswith("-"):
            raise click.exceptions.NoSuchCommand(cmd_name, possibilities=self.modules, ctx=ctx)
        return None


def complete_overrides(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> Sequence[str]:
    """Complete a Hydra override as Hydra does."""
    import os
    from contextlib import redirect_stdout
    from io import StringIO

    from orchestrator.launch.compose import compose

    os.environ["COMP_LINE"] = " ".join(["tahoe", *context.params.get("overrides", ()), incomplete])
    with redirect_stdout(StringIO()) as completions:
        compose(["-sc", "query=bash"])
    return completions.getvalue().split()
