"""The command line -> composed configs. Hydra is met here and nowhere else.

Hydra's own application is used, so that its flags (`--cfg`, `--info`, `-m`, `--config-dir`, tab
completion) work as its users know them. It runs once, on the machine of the command; what comes out
is frozen into the run directory, and workers read that.
"""

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
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
from orchestrator.config.parse import ConfigError, did_you_mean, flatten, parse, unknown_key_message
from orchestrator.config.recipe import DURATIONS
from orchestrator.config.schema import Config
from orchestrator.launch import hydra_plugin

_PATHS = ("runs_dir", "run_dir", "data.url", "checkpoint.url", "tracking.uri")
# Variables that each machine, or each job, has a value of its own for.
_OF_A_NODE = re.compile(
    r"\$\{oc\.env:\s*(TMPDIR|TMP|TEMP|HOSTNAME|SLURM_JOB_ID|SLURM_TMPDIR|SLURMD_NODENAME)\b"
)
_OVERRIDE = re.compile(r"~|\+{0,2}\w[\w./@:\-]*=")
_NAMED_MODEL = re.compile(r"\b(?:(timm|torchvision)/[\w.\-]+|[\w.]+:\w+)")
_NAMED_MODELS = ("timm/NAME", "torchvision/NAME", "PACKAGE.MODULE:FUNCTION")


@dataclass(frozen=True)
class ComposedConfig:
    """A config and the overrides that led to it."""

    config: Config
    overrides: tuple[str, ...]


def compose(
    arguments: Sequence[str],
    launch: hydra_plugin.LaunchBatch | None = None,
    keep: Callable[[Path], None] | None = None,
) -> list[ComposedConfig]:
    """Return a config for each point that the arguments describe: one, or several with -m.

    Where Hydra answers the arguments itself (`--cfg`, `--info`, completion), the answer is printed
    and nothing is returned.

    Args:
        launch: takes the points of a sweep as Hydra's sweeper comes up with them; none of those is
            returned. Without it, a sweeper must know all its points beforehand.
        keep: is given the directory that a sweeper has written to, before it is removed.

    Raises:
        ConfigError: a composed config is invalid.
    """
    points: list[ComposedConfig] = []
    errors: list[Exception] = []

    def collect(config: DictConfig) -> ComposedConfig | Exception:
        task = OmegaConf.to_container(HydraConfig.get().overrides.task)  # ${...} as it was given
        overrides = tuple(cast("list[str]", task))
        try:  # in here, where ${hydra:...} means this point
            if launch is None and HydraConfig.get().mode == RunMode.MULTIRUN:
                hydra_plugin.reject_adaptive_sweeper(HydraConfig.get())
            points.append(ComposedConfig(parse(_resolve(config, overrides)), overrides))
        except (ConfigError, OmegaConfBaseException) as error:
            errors.append(error)
            return error
        return points[-1]

    def hand_over(
        batch: Sequence[ComposedConfig], wait: bool
    ) -> Sequence[float | Exception | None]:
        assert launch is not None
        points.clear()
        return launch(batch, wait)

    if launch:
        hydra_plugin.register(hand_over)
    _register_named_models([*arguments, *os.environ.get("COMP_LINE", "").split()])
    with _hydra_argv(arguments) as directory:
        try:
            hydra.main(version_base="1.3", config_path="pkg://conf", config_name="train")(collect)()
            if keep:
                keep(directory)
        except (
            ConfigError,
            HydraException,
            OmegaConfBaseException,
            YAMLError,
            ValueError,
        ) as error:
            errors.append(error)
    if errors:
        raise ConfigError(_explain(errors[0])) from errors[0]
    return points


def merge(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a frozen config's values with `key=value` overrides on top.

    Raises:
        ConfigError: an override is not of that form.
    """
    for override in overrides:
        key = re.match(r"([\w.]+)=", override)
        if not key or isinstance(values.get(key[1]), dict):
            raise ConfigError(
                f"'{override}' is not an override of a frozen config; nothing was changed. Write "
                "section.key=value; a group cannot be chosen again."
            )
    try:
        merged = OmegaConf.merge(OmegaConf.create(values), OmegaConf.from_dotlist([*overrides]))
        assert isinstance(merged, DictConfig)
        return _resolve(merged, overrides)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{' '.join(overrides)}: {_explain(error)}") from None


def _resolve(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Return plain values, with the named duration alone and with paths that hold anywhere."""
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    assert isinstance(values, dict)
    plain = {str(key): value for key, value in values.items()}
    _refuse_missing(plain)
    _refuse_of_this_machine(config)
    _keep_named_duration(plain, overrides)
    for key in _PATHS:
        section, _, name = key.rpartition(".")
        holder = plain.get(section) if section else plain
        if isinstance(holder, dict) and isinstance(holder.get(name), str):
            holder[name] = absolute(holder[name])
    return plain


def _refuse_missing(values: dict[str, Any]) -> None:
    missing = [key for key, value in flatten(values).items() if value == "???"]
    if missing:
        raise ConfigError(
            f"no value for {', '.join(missing)}, which must be given. Add "
            f"{' '.join(f'{key}=VALUE' for key in missing)} to the command."
        )


def _refuse_of_this_machine(config: DictConfig) -> None:
    """Refuse to give nodes what a variable is on the machine that submits: each has its own."""
    if OmegaConf.select(config, "launcher.name") != "slurm":
        return
    written = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False))
    for key, value in flatten(written).items():
        if found := _OF_A_NODE.search(str(value)):
            remedy = "a path that all nodes see"
            if key == "data.cache.dir":
                remedy = f"${found[1]}, which each node reads for itself, or null"
            raise ConfigError(
                f"{key}={value}: {found[1]} would be this machine's on every node, where it may "
                f"not be there. Nothing was submitted. Write {remedy}."
            )


def _keep_named_duration(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Let one duration on the command line replace the recipe's."""
    recipe = values.get("recipe")
    named = {d for d in DURATIONS for o in overrides if o.lstrip("+").startswith(f"recipe.{d}=")}
    if isinstance(recipe, dict) and len(named) == 1 and recipe.get(*named) is not None:
        recipe.update({name: None for name in DURATIONS if name not in named})


def absolute(url: str) -> str:
    """Return a URL that means the same from any directory: paths and SQLite files made absolute."""
    if re.match(r"(?!sqlite:)[\w+.\-:]+://|sqlite:////", url):
        return url
    prefix = "sqlite:///" if url.startswith("sqlite:///") else ""
    return prefix + str(Path(url.removeprefix(prefix)).expanduser().absolute())


def _explain(error: Exception) -> str:
    """Return Hydra's message; for a key or choice that is not there, with those that are."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        names = re.fullmatch(r"(model|.+)/(.+)", error.missing_cfg_file)
        group, wrong = names.groups() if names else ("config", error.missing_cfg_file)
        valid = (*error.options, *(_NAMED_MODELS if group == "model" else ()))
        return f"{group}={wrong}: there is no such choice; {did_you_mean(wrong, valid)}"
    if isinstance(error, OverrideParseException):
        return _explain_unreadable(error)
    cause = error.__cause__ or error
    key = getattr(cause, "full_key", None)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and key:
        return unknown_key_message(key.split("."))
    return f"{key}: {str(error).splitlines()[0]}" if key else str(error)


def _explain_unreadable(error: OverrideParseException) -> str:
    """Say which argument Hydra cannot read, and how its value is quoted so that it can."""
    key, equals, value = error.override.partition("=")
    if not equals:
        return f"'{error.override}' is no override. Write KEY=VALUE, or GROUP=NAME"
    override = f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    is_plain = not set('"$`!\\') & set(override)
    shown = f'"{override}"' if is_plain else shlex.quote(override)
    return (
        f"{key}: Hydra cannot read the value {value}. Quote it for Hydra, and all of it for the "
        f"shell: {shown}"
    )


def _register_named_models(arguments: Sequence[str]) -> None:
    """Make `model=timm/resnet18` a choice, though no file has that name.

    Each such name on the command line, in a sweep's list too, becomes an entry of Hydra's store
    that means `model=timm model.name=timm/resnet18`.
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


def _own_configs(options: Sequence[str]) -> list[str]:
    """Return the option by which Hydra finds the groups in conf/ of the working directory too."""
    own, shipped = Path("conf"), Path(conf.__file__).resolve().parent
    is_given = any(re.match("-cd|--config-dir", option) for option in options)
    if is_given or not own.is_dir() or own.resolve() == shipped:
        return []
    for file in sorted(own.rglob("*.yaml")):
        same = shipped / file.relative_to(own)
        if same.is_file() and same.read_bytes() != file.read_bytes():
            print(
                f"warning: {file} is not used: Tahoe has one of that name. Rename yours.",
                file=sys.stderr,
            )
    return ["--config-dir", str(own)]


@contextmanager
def _hydra_argv(arguments: Sequence[str]) -> Iterator[Path]:
    """Show Hydra a command line without Tahoe's verb, to its completer as well.

    The overrides come first, since Hydra does not find those that stand behind an option.

    Yields:
        The directory that a sweeper writes to, for as long as this is entered.
    """
    argv, environ = sys.argv, dict(os.environ)
    overrides = [argument for argument in arguments if _OVERRIDE.match(argument)]
    options = [argument for argument in arguments if not _OVERRIDE.match(argument)]
    options += _own_configs(options)
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
