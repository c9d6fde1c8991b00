"""Hydra sweepers for tests, put where Hydra looks for plugins."""

from pathlib import Path

_BASE = """
import json
from hydra.plugins.sweeper import Sweeper

class {name}(Sweeper):
    def __init__(self, **options):
        pass

    def setup(self, *, hydra_context, task_function, config):
        from hydra.core.plugins import Plugins
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config)
{sweep}
"""


def install_sweeper(directory: Path, name: str, sweep: str) -> str:
    """Write a sweeper with this `sweep` method; return the override that chooses it.

    Args:
        directory: one that modules are imported from.
    """
    module = directory / "hydra_plugins" / f"{name.lower()}.py"
    module.parent.mkdir()
    module.write_text(_BASE.format(name=name, sweep=sweep))
    return f"+hydra.sweeper={{_target_: hydra_plugins.{name.lower()}.{name}}}"
