"""A model compiled for training: as a whole, or each of its repeated blocks by itself.

Blocks of one class and shape share what is compiled, so a deep network compiles in the time of one
block; what is between blocks is not compiled.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from models.blocks import find_blocks
from orchestrator.config.recipe import Compile

_MAX_SHAPES = 64  # compiled forms of a block: ResNet-50 has 8, torch's own limit


def compile_model(model: nn.Module, wrapped: nn.Module, compiled: bool | Compile) -> Any:
    """Compile a model as configured; return the callable that computes its outputs in training.

    Args:
        wrapped: the model as the strategy has wrapped it.
    """
    if isinstance(compiled, bool):
        return torch.compile(wrapped) if compiled else wrapped
    options: Any = {
        "mode": compiled.mode,
        "dynamic": compiled.dynamic,
        "backend": compiled.backend,
    }
    if not compiled.regional:
        return torch.compile(wrapped, **options)
    torch._dynamo.config.recompile_limit = _MAX_SHAPES
    for _, block in find_blocks(model):
        block.compile(**options)
    return wrapped


def uncompiled(compiled: bool | Compile) -> AbstractContextManager[object]:
    """Return the context of an evaluation, which never compiles: its batches have other sizes."""
    is_regional = isinstance(compiled, Compile) and compiled.regional
    return torch.compiler.set_stance("force_eager") if is_regional else nullcontext()
