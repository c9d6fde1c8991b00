"""The command line -> composed configs. Hydra is met here and nowhere else.

Hydra's own application is used, so that its flags (`--cfg`, `--info`, `-m`, `--config-dir`, tab
completion) work as its users know them. It runs once, on the machine of the command; what comes out
is frozen into the run directory, and workers read that.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from orchestrator.config import DURATIONS, Config, ConfigError, explain_unknown, parse


@dataclass(frozen=True)
class Composed:
    """A config and the overrides that led to it."""

    config: Config
    overrides: tuple[str, ...]


def compose(arguments: Sequence[str]) -> list[Composed]:
    """Return a config for each point that the arguments describe: one, or several with -m.

    Where Hydra answers the arguments itself (`--cfg`, `--info`, `--help`, completion), the answer
    is printed and nothing is returned.

    Raises:
        ConfigError: a composed config is invalid.
    """
    points: list[tuple[DictConfig, list[str]]] = []

    def collect(config: DictConfig) -> None:
        points.append((config, list(HydraConfig.get().overrides.task)))

    _register_named_models(arguments)
    with TemporaryDirectory(prefix="tahoe-sweep-") as sweep_dir, _argv([*arguments]) as argv:
        if {"-m", "--multirun"} & set(arguments):
            argv.append(f"hydra.sweep.dir={sweep_dir}")  # Hydra leaves a multirun.yaml there
        try:
            hydra.main(version_base="1.3", config_path="pkg://conf", config_name="train")(collect)()
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explain(error)) from error
    return [Composed(parse(_resolve(*point)), tuple(point[1])) for point in points]


def merge(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a frozen config's values with `key=value` overrides on top.

    Raises:
        ConfigError: an override is not of that form.
    """
    for override in overrides:
        if not re.match(r"[\w.]+=", override):
            raise ConfigError(
                f"'{override}' is not an override of a frozen config. Write section.key=value; "
                "groups cannot be chosen again."
            )
    try:
        merged = OmegaConf.merge(OmegaConf.create(values), OmegaConf.from_dotlist([*overrides]))
        assert isinstance(merged, DictConfig)
        return _resolve(merged, overrides)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{' '.join(overrides)}: {error}") from None


def _resolve(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Return plain values, with the named duration alone and with paths that hold anywhere."""
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    assert isinstance(values, dict)
    plain = {str(key): value for key, value in values.items()}
    _refuse_missing(plain)
    recipe = plain["recipe"]
    named = {d for d in DURATIONS for o in overrides if o.lstrip("+").startswith(f"recipe.{d}=")}
    if len(named) == 1 and recipe[next(iter(named))] is not None:
        recipe.update({name: None for name in DURATIONS if name not in named})
    for section, key in ((plain, "runs_dir"), (plain, "run_dir"), (plain["data"], "url")):
        section[key] = absolute(section[key])
    plain["checkpoint"]["url"] = absolute(plain["checkpoint"]["url"])
    plain["tracking"]["uri"] = absolute(plain["tracking"]["uri"])
    return plain


def absolute(url: str | None) -> str | None:
    """Return a URL that means the same from any directory: paths and SQLite files made absolute."""
    if url is None or re.match(r"(?!sqlite:)[\w+.\-]+://|sqlite:////", url):
        return url
    prefix = "sqlite:///" if url.startswith("sqlite:///") else ""
    return prefix + str(Path(url.removeprefix(prefix)).expanduser().absolute())


def _explain(error: Exception) -> str:
    """Return Hydra's message; where a key is unknown, with the keys that are."""
    key = getattr(error.__cause__ or error, "full_key", None)
    if isinstance(error.__cause__ or error, ConfigKeyError | ConfigAttributeError) and key:
        return explain_unknown(key.split("."))
    return str(error)


def _refuse_missing(values: dict[str, Any], prefix: str = "") -> None:
    for key, value in values.items():
        if value == "???":
            raise ConfigError(
                f"{prefix}{key} has no default and was not given. Add {prefix}{key}=VALUE to the "
                "command."
            )
        if isinstance(value, dict):
            _refuse_missing(value, f"{prefix}{key}.")


def _register_named_models(arguments: Sequence[str]) -> None:
    """Make `model=timm/resnet18` a choice, though no file has that name.

    Each such name on the command line, in a sweep's list too, becomes an entry of Hydra's store
    that means `model=timm model.name=timm/resnet18`.
    """
    for argument in arguments:
        key, _, choices = argument.partition("=")
        for choice in choices.split(",") if key == "model" else ():
            named = re.fullmatch(r"(?:(timm|torchvision)/[\w.\-]+|[\w.]+:\w+)", choice.strip())
            if named:
                path, base = PurePosixPath("model", choice.strip()), named[1] or "custom"
                ConfigStore.instance().store(
                    group=str(path.parent),
                    name=path.name,
                    package="model",
                    node={"defaults": [f"/model/{base}@_here_", "_self_"], "name": choice.strip()},
                )


@contextmanager
def _argv(arguments: list[str]) -> Iterator[list[str]]:
    """Show Hydra a command line without Tahoe's verb, to its completer as well."""
    argv, environ = sys.argv, dict(os.environ)
    sys.argv = [argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of printing them
    if "COMP_LINE" in environ:
        os.environ["COMP_LINE"] = re.sub(r"^(\s*\S+)\s+train\b", r"\1", environ["COMP_LINE"])
    try:
        yield sys.argv
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environ)
