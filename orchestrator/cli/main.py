"""`tahoe`: the command line. A verb is imported when it is used, so help is instant."""

import os
import select
import signal
import sys
from collections.abc import Sequence

import click

from orchestrator.cli.shared.commands import LazyGroup
from orchestrator.gc_frozen import freeze_gc_at_exit

freeze_gc_at_exit()

_VERBS = "orchestrator.cli.verbs"
tahoe = LazyGroup(
    "tahoe",
    {
        "train": f"{_VERBS}.train:train",
        "resume": f"{_VERBS}.train:resume",
        "create": f"{_VERBS}.train:create",
        "submit": f"{_VERBS}.jobs:submit",
        "status": f"{_VERBS}.jobs:status",
        "list": f"{_VERBS}.jobs:list_runs",
        "logs": f"{_VERBS}.jobs:logs",
        "cancel": f"{_VERBS}.jobs:cancel",
        "doctor": f"{_VERBS}.jobs:doctor",
        "evaluate": f"{_VERBS}.evaluate:evaluate",
        "models": f"{_VERBS}.models:models",
        "compare": f"{_VERBS}.compare:compare",
        "report": f"{_VERBS}.report:report",
        "register": f"{_VERBS}.tracking:register",
        "import": f"{_VERBS}.tracking:import_results",
        "sync": f"{_VERBS}.tracking:sync",
        "ui": f"{_VERBS}.tracking:ui",
        "ckpt": f"{_VERBS}.checkpoints:ckpt",
        "shard": "orchestrator.cli.dataset.group:shard",
        "drill": f"{_VERBS}.drill:drill",
        "local-cluster": f"{_VERBS}.local_cluster:local_cluster",
    },
    help="Train image classifiers on a cluster; resume exactly; compare runs in MLflow.",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 100,
    },
)
click.version_option(package_name="tahoe-orchestrator", message="%(version)s")(tahoe)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code; end silently if the output is closed (`| head`)."""
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else list(arguments))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_output_closed():
            raise
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # Python flushes them once more at its end
            os.dup2(null, stream.fileno())
        return 128 + signal.SIGPIPE  # as a shell reports programs that the signal ends


def _is_output_closed() -> bool:
    """Check whether stdout or stderr is a pipe without a reader."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)  # errors are reported always
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["-sc"] and "query=" in arguments[-1]:
        return _complete_for_hydra()
    if instruction := os.environ.get("_TAHOE_COMPLETE"):
        from click.shell_completion import shell_complete

        return shell_complete(tahoe, {}, "tahoe", "_TAHOE_COMPLETE", instruction)
    try:
        with tahoe.make_context("tahoe", arguments) as context:
            exit_code: int = tahoe.invoke(context)
            return exit_code
    except click.exceptions.Exit as end:  # --help, --version
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code


def _complete_for_hydra() -> int:
    """Answer the completion script that `tahoe train -sc install=bash` prints: overrides, verbs."""
    from click.shell_completion import ShellComplete

    line = os.environ.get("COMP_LINE", "")
    *words, incomplete = line.split()[1:] + [""] * line.endswith(" ") or [""]
    completer = ShellComplete(tahoe, {}, "tahoe", "_TAHOE_COMPLETE")
    for item in completer.get_completions(words, incomplete):
        if item.type == "plain":  # bash completes files by itself
            print(item.value)
    return 0


if __name__ == "__main__":
    sys.exit(main())
