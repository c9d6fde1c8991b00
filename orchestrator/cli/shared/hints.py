"""Error messages in the words of the command line: flags, config keys, verbs."""

import click


def translate(text: str, command: click.Command) -> str:
    """Replace the names of parameters and operations by the words of a command's user.

    The rooms below name parameters and operations in backticks. `max_bad_fraction` becomes the
    command's option --max-bad-fraction if it has one, else the config key data.max_bad_fraction,
    else the option of another verb of `tahoe shard`; `index` becomes `tahoe shard index`.
    """
    from orchestrator.cli.dataset.group import shard
    from orchestrator.config.key_names import replace_names, unique_keys

    context = click.Context(shard)
    verbs = {name: shard.get_command(context, name) for name in shard.list_commands(context)}
    shard_options = {
        name: flag for verb in verbs.values() if verb for name, flag in _flags(verb).items()
    }
    operations = {name: f"`tahoe shard {name}`" for name in verbs}
    for names in (operations | _flags(command), unique_keys(), shard_options):
        text = replace_names(text, names)
    return text


def _flags(command: click.Command) -> dict[str, str]:
    options = (option for option in command.params if isinstance(option, click.Option))
    return {option.name: max(option.opts, key=len) for option in options if option.name}
