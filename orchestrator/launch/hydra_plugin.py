"""Hydra's launcher of sweeps whose points are jobs: `hydra/launcher=slurm`.

Hydra accepts launchers from the package `hydra_plugins` alone, where installed plugins are. Instead
of a second top-level package for one class, the module is created when it is needed.
https://hydra.cc/docs/1.3/advanced/plugins/develop/
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from types import ModuleType
from typing import Any, cast

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from orchestrator.config.parse import ConfigError

# Launches a batch of points, and waits for them if requested. Returns their objective values, or
# errors that say why they have none.
LaunchBatch = Callable[[Sequence[Any], bool], Sequence[float | Exception | None]]

_MODULE = "hydra_plugins.tahoe"
_BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
# The keys by which sweepers maximize, which none does by default: Optuna, Nevergrad, Ax.
_MAXIMIZING = {
    "direction": "maximize",
    "optim.maximize": True,
    "ax_config.experiment.minimize": False,
    "ax_config.early_stop.minimize": False,
}


@contextmanager
def composing_once() -> Iterator[None]:
    """Let no sweeper compose its points before a launcher does.

    Hydra's do, to find an error before the first point is started; here all points are composed
    before that.
    """
    validate = Sweeper.validate_batch_is_legal
    Sweeper.validate_batch_is_legal = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Sweeper.validate_batch_is_legal = validate  # type: ignore[method-assign]


def reject_adaptive_sweeper(hydra: DictConfig | HydraConf) -> None:
    """Refuse a sweeper that needs the objective values of its points, which nobody waits for."""
    sweeper = hydra.sweeper._target_
    if sweeper != _BASIC_SWEEPER:
        raise ConfigError(
            f"hydra/sweeper: {sweeper} chooses points by the results of earlier ones, which are "
            "known only when those have ended",
            value=sweeper,
            hint="Nothing was started. Use `tahoe submit -m` with hydra.launcher.wait=true.",
        )


def reject_minimizing_sweeper(hydra: DictConfig | HydraConf) -> None:
    """Refuse a sweeper that would look for the worst points."""
    for key, required in _MAXIMIZING.items():
        value = OmegaConf.select(cast(DictConfig, hydra.sweeper), key, default=required)
        value = value.name if isinstance(value, Enum) else value
        if value != required:
            raise ConfigError(
                f"hydra.sweeper.{key}={value}: the search would end with the worst points, since "
                "the objective is one number, the best val/top1 (val/map of several labels)",
                value=value,
                hint=f"Nothing was submitted. Give hydra.sweeper.{key}={str(required).lower()}.",
            )


def register(launch: LaunchBatch) -> None:
    """Register `hydra/launcher=slurm`, which passes the points of each batch to a function."""

    class SlurmLauncher(BasicLauncher):
        """Compose the points of a batch as Hydra's own launcher does, then launch them.

        Args:
            wait: wait until all points have ended, so that a sweeper learns their values.
        """

        def __init__(self, wait: bool) -> None:
            super().__init__()
            self.wait = wait

        def launch(
            self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
        ) -> Sequence[JobReturn]:
            assert self.config is not None
            if self.wait:
                reject_minimizing_sweeper(self.config.hydra)
            else:
                reject_adaptive_sweeper(self.config.hydra)
            returns = super().launch(job_overrides, initial_job_idx)
            points = [job.return_value for job in returns]
            for point in points:
                if isinstance(point, Exception):
                    raise point
            for job, value in zip(returns, launch(points, self.wait), strict=True):
                job.return_value = value
                if isinstance(value, Exception):
                    job.status = JobStatus.FAILED
            return returns

    SlurmLauncher.__module__, SlurmLauncher.__qualname__ = _MODULE, "SlurmLauncher"
    plugins = Plugins.instance()  # finds the installed plugins first
    package = sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))
    if not hasattr(package, "__path__"):
        package.__path__ = []
    module = ModuleType(_MODULE)
    module.SlurmLauncher = SlurmLauncher  # type: ignore[attr-defined]
    package.tahoe = sys.modules[_MODULE] = module  # type: ignore[attr-defined]
    plugins.register(SlurmLauncher)
    ConfigStore.instance().store(
        group="hydra/launcher",
        name="slurm",
        node={"_target_": f"{_MODULE}.SlurmLauncher", "wait": False},
    )
