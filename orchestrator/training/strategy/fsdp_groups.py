"""Modules whose parameters FSDP gathers together."""

from collections.abc import Iterator, Sequence

from torch import nn


def vectors_of(block: nn.Module) -> list[nn.Module]:
    """List the layers of a block whose own parameters are vectors only, such as norms."""
    return [module for module in block.modules() if _has_vectors_only(module)]


def tied_across(model: nn.Module, blocks: Sequence[nn.Module]) -> Iterator[str]:
    """Yield the names of parameters that a block shares with the rest of a model."""
    owners = {module: block for block in blocks for module in block.modules()}
    seen: dict[nn.Parameter, nn.Module | None] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        owner = owners.get(module)
        for name, parameter in module.named_parameters(recurse=False):
            if seen.setdefault(parameter, owner) is not owner:
                yield f"{path}.{name}"


def _has_vectors_only(module: nn.Module) -> bool:
    dims = [parameter.dim() for parameter in module.parameters(recurse=False)]
    return bool(dims) and max(dims) <= 1
