"""Compose the command line into configs, with Hydra.

Hydra's own application runs, so its flags (`--cfg`, `--info`, `-m`, `--config-dir`, tab completion)
work as its users know them. It runs once, on the machine of the command; the config is then frozen
into the run directory, and workers read that.
"""

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

import conf
from data_sharding.format.class_map import pin
from orchestrator.config.parse import (
    ConfigError,
    did_you_mean,
    flatten,
    parse,
    refuse_password,
    unknown_key_message,
)
from orchestrator.config.recipe import DURATIONS
from orchestrator.config.schema import Config
from orchestrator.launch import hydra_plugin
from orchestrator.launch.checks.data_choice import DataGroupError, check_default_data
from orchestrator.launch.shard_patterns import quote_patterns, refuse_expanded, resolve_patterns

_PATHS = (
    *("runs_dir", "run_dir", "data.url", "data.manifest", "data.class_map"),
    *("checkpoint.url", "tracking.uri"),
)
# Variables whose value differs between machines or jobs.
_NODE_VARIABLE = re.compile(
    r"\$\{oc\.env:\s*(TMPDIR|TMP|TEMP|HOSTNAME|SLURM_JOB_ID|SLURM_TMPDIR|SLURMD_NODENAME)\b"
)
_OVERRIDE = re.compile(r"~|\+{0,2}\w[\w./@:\-]*=")
_NAMED_MODEL = re.compile(r"\b(?:(timm|torchvision)/[\w.\-]+|[\w.]+:\w+)")
_SWITCH = re.compile(r"^profile=(?=true|false)", re.IGNORECASE)
_ERRORS = (ConfigError, HydraException, OmegaConfBaseException, YAMLError, ValueError)
_NAMED_MODELS = ("timm/NAME", "torchvision/NAME", "PACKAGE.MODULE:FUNCTION")


@dataclass(frozen=True)
class ComposedConfig:
    """A config and its overrides."""

    config: Config
    overrides: tuple[str, ...]


def compose(
    arguments: Sequence[str],
    launch: hydra_plugin.LaunchBatch | None = None,
    keep: Callable[[Path], None] | None = None,
    prepare: Callable[[Config], None] | None = None,
) -> list[ComposedConfig]:
    """Compose the config of each point: one, or several with -m; none if Hydra prints a reply.

    Args:
        launch: a function for the batches of a sweep, of whose points none is returned. Without it,
            a sweeper must know all points beforehand.
        keep: a function for the directory that a sweeper has written to, before it is removed.
        prepare: a function for the config of the first of several points, while the others are
            composed.

    Where no group of `data` is chosen and the data set is not the default one, the group follows
    the set, which is said in a line.
    """
    refuse_expanded(arguments)
    arguments = _with_keys(arguments)
    jobs = _Jobs(launch, prepare)
    if launch:
        hydra_plugin.register(jobs.on_batch)
    _register_named_models([*arguments, *os.environ.get("COMP_LINE", "").split()])
    with _hydra_argv(arguments) as directory, hydra_plugin.composing_once():
        try:
            main = hydra.main(version_base="1.3", config_path="pkg://conf", config_name="train")
            main(jobs.on_job)()
            if keep:
                keep(directory)
        except _ERRORS as error:
            jobs.errors.append(error)
    if not jobs.errors:
        return jobs.points
    first = jobs.errors[0]
    if not isinstance(first, DataGroupError):
        raise _config_error(first) from None
    if len(jobs.choices) > 1:
        raise _different_choices(jobs.choices)
    print(f"note: {first.problem}", file=sys.stderr)
    return compose([*first.overrides, *arguments], launch, keep, prepare)


class _Jobs:
    """The jobs of a command: what Hydra has composed, or the errors; arguments as of `compose`."""

    def __init__(
        self, launch: hydra_plugin.LaunchBatch | None, prepare: Callable[[Config], None] | None
    ) -> None:
        self.points: list[ComposedConfig] = []
        self.errors: list[Exception] = []
        self.choices: dict[tuple[str, ...], str] = {}  # what the points need: the data set of one
        self._launch, self._prepare = launch, prepare

    def on_job(self, config: DictConfig) -> ComposedConfig | Exception:
        """Add the point that a config is of, or its error."""
        given = OmegaConf.to_container(HydraConfig.get().overrides.task)  # with ${...} unresolved
        overrides = tuple(cast("list[str]", given))
        is_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        try:  # resolve here, where ${hydra:...} refers to this point
            if self._launch is None and is_sweep:
                hydra_plugin.reject_adaptive_sweeper(HydraConfig.get())
            composed = ComposedConfig(parse(_resolve(config, overrides)), overrides)
            check_default_data(composed.config, overrides)
            self.choices[()] = str(composed.config.data.location)
            self.points.append(composed)
            if self._prepare and len(self.points) == 1 and is_sweep:
                self._prepare(composed.config)
        except (ConfigError, OmegaConfBaseException) as error:
            if isinstance(error, DataGroupError):
                self.choices[error.overrides] = str(error.value)
            self.errors.append(error)
            return error
        return composed

    def on_batch(
        self, batch: Sequence[ComposedConfig], wait: bool
    ) -> Sequence[float | Exception | None]:
        """Launch a batch of a sweep, whose points are not returned."""
        assert self._launch is not None
        self.points.clear()
        return self._launch(batch, wait)


def _with_keys(overrides: Sequence[str]) -> list[str]:
    """Write `profile=true` as what it stands for, since the section has other keys too."""
    return [_SWITCH.sub("profile.enabled=", override, count=1) for override in overrides]


def _different_choices(choices: Mapping[tuple[str, ...], str]) -> ConfigError:
    """Construct the error of a sweep over data sets that no choice fits all of."""
    needs = (f"{where} needs {' '.join(c) or 'the default'}" for c, where in choices.items())
    return ConfigError(
        f"the command chooses no data, and the sets of its points need different settings: "
        f"{'; '.join(needs)}",
        value=[*choices.values()],
        hint="Sweep each of them in a command of its own, or choose `data` and `model` for all.",
    )


def merge(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `key=value` overrides to the values of a frozen config."""
    overrides = _with_keys(overrides)
    for override in overrides:
        key = re.match(r"([\w.]+)=", override)
        group = values.get(key[1]) if key else None
        if not key or isinstance(group, dict):
            named = f"{key[1]}.name" if key and group and "name" in group else "section.key"
            raise ConfigError(
                f"'{override}' is not an override of a frozen config; nothing was changed",
                value=override,
                hint=f"Write {named}=value; a group cannot be chosen again.",
            )
    try:
        merged = OmegaConf.merge(OmegaConf.create(values), OmegaConf.from_dotlist([*overrides]))
        assert isinstance(merged, DictConfig)
        return _resolve(merged, overrides)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{' '.join(overrides)}: {_config_error(error)}") from None


def _resolve(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Return plain values, with one duration and with absolute paths."""
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    values = cast("dict[str, Any]", resolved)
    resolve_patterns(values, overrides, absolute)
    _reject_missing(values)
    _reject_node_variables(config)
    _keep_given_duration(values, overrides)
    for key in _PATHS:
        section, _, name = key.rpartition(".")
        holder = values.get(section) if section else values
        if isinstance(holder, dict) and isinstance(holder.get(name), str):
            holder[name] = absolute(holder[name])
    data = values.get("data")
    if isinstance(data, dict) and isinstance(data.get("class_map"), str):
        refuse_password("data.class_map", data["class_map"])
        data["class_map"] = pin(data["class_map"])
    return values


def _reject_missing(values: dict[str, Any]) -> None:
    missing = [key for key, value in flatten(values).items() if value == "???"]
    if missing:
        raise ConfigError(
            f"no value for {', '.join(missing)}, which must be given",
            value=missing,
            hint=f"Add {' '.join(f'{key}=VALUE' for key in missing)} to the command.",
        )


def _reject_node_variables(config: DictConfig) -> None:
    """Refuse to freeze a variable's value on this machine for the nodes, where it may differ."""
    if OmegaConf.select(config, "launcher.name") != "slurm":
        return
    unresolved = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False))
    for key, value in flatten(unresolved).items():
        if variable := _NODE_VARIABLE.search(str(value)):
            remedy = "a path that all nodes see"
            if key == "data.cache.dir":
                remedy = f"${variable[1]}, which each node resolves by itself, or null"
            raise ConfigError(
                f"{key}={value}: {variable[1]} would be this machine's on every node, where it may "
                "not exist",
                value=value,
                hint=f"Nothing was submitted. Write {remedy}.",
            )


def _keep_given_duration(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Let one duration on the command line replace the recipe's."""
    recipe = values.get("recipe")
    given = {d for d in DURATIONS for o in overrides if o.lstrip("+").startswith(f"recipe.{d}=")}
    if isinstance(recipe, dict) and len(given) == 1 and recipe.get(*given) is not None:
        recipe.update({name: None for name in DURATIONS if name not in given})


def absolute(url: str) -> str:
    """Make a path, or the path of an SQLite file, absolute; other URLs stay as they are."""
    if re.match(r"(?!sqlite:)[\w+.\-:]+://|sqlite:////", url):
        return url
    prefix = "sqlite:///" if url.startswith("sqlite:///") else ""
    return prefix + str(Path(url.removeprefix(prefix)).expanduser().absolute())


def _config_error(error: Exception) -> ConfigError:
    """Convert an error of Hydra; that of an unknown key or choice lists the valid ones."""
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        path = re.fullmatch(r"(model|.+)/(.+)", error.missing_cfg_file)
        group, name = path.groups() if path else ("config", error.missing_cfg_file)
        valid = (*error.options, *(_NAMED_MODELS if group == "model" else ()))
        message = f"{group}={name}: there is no such choice; {did_you_mean(name, valid)}"
        return ConfigError(message, value=name)
    if isinstance(error, OverrideParseException):
        return _parse_error(error.override)
    cause = error.__cause__ or error
    key = getattr(cause, "full_key", None)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and key:
        return ConfigError(unknown_key_message(key.split(".")), value=key)
    return ConfigError(f"{key}: {str(error).splitlines()[0]}" if key else str(error), value=key)


def _parse_error(override: str) -> ConfigError:
    """Explain an argument that Hydra cannot parse, and how to quote its value."""
    key, equals, value = override.partition("=")
    if not equals:
        problem = f"'{override}' is no override"
        return ConfigError(problem, value=override, hint="Write KEY=VALUE, or GROUP=NAME")
    quoted = f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    is_plain = not set('"$`!\\') & set(quoted)
    argument = f'"{quoted}"' if is_plain else shlex.quote(quoted)
    return ConfigError(
        f"{key}: Hydra cannot read the value {value}",
        value=value,
        hint=f"Quote it for Hydra, and all of it for the shell: {argument}",
    )


def _register_named_models(arguments: Sequence[str]) -> None:
    """Make `model=timm/resnet18` a choice, though no file has that name.

    Each such name on the command line, also in a sweep's list, becomes an entry of Hydra's store
    that stands for `model=timm model.name=timm/resnet18`.
    """
    for argument in arguments:
        key, _, choices = argument.partition("=")
        for named in _NAMED_MODEL.finditer(choices) if key == "model" else ():
            path, base = PurePosixPath("model", named[0]), named[1] or "custom"
            ConfigStore.instance().store(
                group=str(path.parent),
                name=path.name,
                package="model",
                node={"defaults": [f"/model/{base}@_here_", "_self_"], "name": named[0]},
            )


def _user_config_dir(options: Sequence[str]) -> list[str]:
    """Return the option by which Hydra also searches conf/ of the working directory."""
    user, shipped = Path("conf"), Path(conf.__file__).resolve().parent
    is_given = any(re.match("-cd|--config-dir", option) for option in options)
    if is_given or not user.is_dir() or user.resolve() == shipped:
        return []
    for file in sorted(user.rglob("*.yaml")):
        hidden_by = shipped / file.relative_to(user)
        if hidden_by.is_file() and hidden_by.read_bytes() != file.read_bytes():
            warning = f"warning: {file} is not used: Tahoe has one of that name. Rename yours."
            print(warning, file=sys.stderr)
    return ["--config-dir", str(user)]


@contextmanager
def _hydra_argv(arguments: Sequence[str]) -> Iterator[Path]:
    """Set sys.argv for Hydra, and the line for its completer, without Tahoe's verb.

    The overrides come first, since Hydra does not find those after an option. Yields the temporary
    directory that a sweeper writes to.
    """
    argv, environ = sys.argv, dict(os.environ)
    overrides = [*quote_patterns(argument for argument in arguments if _OVERRIDE.match(argument))]
    options = [argument for argument in arguments if not _OVERRIDE.match(argument)]
    options += _user_config_dir(options)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of printing them
    if "COMP_LINE" in environ:
        line = re.sub(r"^(\s*\S+)\s+train\b", r"\1", environ["COMP_LINE"])
        os.environ["COMP_LINE"] = re.sub(r"\s(-m|--multirun)(?=\s)", "", line)
    try:
        with TemporaryDirectory(prefix="tahoe-sweep-") as directory:  # for -m's multirun.yaml
            sys.argv = [argv[0], *overrides, f"hydra.sweep.dir='{directory}'", *options]
            yield Path(directory)
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environ)
