"""Requests of sbatch with the options of conf/slurm/default.yaml, for tests of scripts."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

import conf
from slurm.sbatch import SbatchOptions, SbatchRequest

_DEFAULTS = yaml.safe_load((Path(conf.__file__).parent / "slurm" / "default.yaml").read_text())
_OPTIONS = {option.name: _DEFAULTS[option.name] for option in fields(SbatchOptions)}


def sbatch_request(*job: Any, **changes: Any) -> SbatchRequest:
    """Return a request with the default options but for the changes."""
    return SbatchRequest(*job, **(_OPTIONS | changes))
