"""Hydra's launcher of sweeps whose points are jobs: `hydra/launcher=slurm`.

Hydra takes a launcher only from the package `hydra_plugins`, where installed plugins put
themselves. A second top-level package for one class would say nothing to a reader, so the module is
made when it is needed.
https://hydra.cc/docs/1.3/advanced/plugins/develop/
"""

import sys
from collections.abc import Callable, Sequence
from enum import Enum
from types import ModuleType
from typing import Any, cast

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from orchestrator.config.parse import ConfigError

# Takes the points of a batch, and whether to wait; returns what each was worth, or why nothing.
LaunchBatch = Callable[[Sequence[Any], bool], Sequence[float | Exception | None]]

_MODULE = "hydra_plugins.tahoe"
_BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
# How sweepers are told to maximise, which none does unless it is told: Optuna, Nevergrad, Ax.
_MAXIMISES = {
    "direction": "maximize",
    "optim.maximize": True,
    "ax_config.experiment.minimize": False,
    "ax_config.early_stop.minimize": False,
}


def reject_adaptive_sweeper(hydra: DictConfig | HydraConf) -> None:
    """Refuse a sweeper that must be told what its points were worth, where nobody tells it.

    Raises:
        ConfigError: it is such a one.
    """
    sweeper = hydra.sweeper._target_
    if sweeper != _BASIC_SWEEPER:
        raise ConfigError(
            f"hydra/sweeper: {sweeper} chooses points by what earlier ones were worth, which is "
            "known only when those have ended. Nothing was started. Use `tahoe submit -m` with "
            "hydra.launcher.wait=true."
        )


def refuse_minimising(hydra: DictConfig | HydraConf) -> None:
    """Refuse a sweeper that would look for the points that are worth least.

    Raises:
        ConfigError: it is such a one.
    """
    for key, wanted in _MAXIMISES.items():
        found = OmegaConf.select(cast(DictConfig, hydra.sweeper), key, default=wanted)
        found = found.name if isinstance(found, Enum) else found
        if found != wanted:
            raise ConfigError(
                f"hydra.sweeper.{key}={found}: the search would end with the worst points, since a "
                "point is worth its best val/top1, one figure. Nothing was submitted. Say "
                f"hydra.sweeper.{key}={str(wanted).lower()}."
            )


def register(launch: LaunchBatch) -> None:
    """Make `hydra/launcher=slurm` a choice that hands the points of each batch to a function."""

    class SlurmLauncher(BasicLauncher):
        """Composes the points of a batch as Hydra's own launcher does, then has them launched.

        Args:
            wait: until all have ended, so that a sweeper learns what they were worth.
        """

        def __init__(self, wait: bool) -> None:
            super().__init__()
            self.wait = wait

        def launch(
            self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
        ) -> Sequence[JobReturn]:
            assert self.config is not None
            if self.wait:
                refuse_minimising(self.config.hydra)
            else:
                reject_adaptive_sweeper(self.config.hydra)
            returns = super().launch(job_overrides, initial_job_idx)
            points = [one.return_value for one in returns]
            for point in points:
                if isinstance(point, Exception):
                    raise point
            for one, worth in zip(returns, launch(points, self.wait), strict=True):
                one.return_value = worth
                if isinstance(worth, Exception):
                    one.status = JobStatus.FAILED
            return returns

    SlurmLauncher.__module__, SlurmLauncher.__qualname__ = _MODULE, "SlurmLauncher"
    plugins = Plugins.instance()  # which looks for the installed ones first
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
