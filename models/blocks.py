"""The repeated blocks of a network, found by its structure.

What recomputes, compiles or shards a network does so block by block, and torch does not know which
modules its author calls blocks.
"""

from collections import Counter
from collections.abc import Iterator

from torch import nn

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
Named = tuple[str, nn.Module]


def find_blocks(network: nn.Module) -> list[Named]:
    """Find the blocks of a network, with their names; none is inside another.

    A block has several weights and is an element of a list of modules, or one of several children
    of the network that have the same class. So a convolution with its norm is a layer of a block,
    and a stage that lists blocks is none. A network without such a structure has no blocks.
    """
    return list(_blocks_below(network, ""))


def _blocks_below(module: nn.Module, prefix: str) -> Iterator[Named]:
    candidates = {name: m for name, m in module.named_children() if _is_candidate(m)}
    counts = Counter(type(candidate) for candidate in candidates.values())
    in_list, in_network = isinstance(module, _LISTS), not prefix
    for name, child in module.named_children():
        below = list(_blocks_below(child, f"{prefix}{name}."))
        is_list, num_alike = isinstance(child, _LISTS), counts[type(child)]
        if is_list:  # two sequences of plain layers are features and classifier, as in VGG
            is_block = not below and num_alike > 2 and (in_list or in_network)
        else:
            is_block = not _has_repeated(below) and (in_list or (in_network and num_alike > 1))
        if is_block and name in candidates:
            yield prefix + name, child
        else:
            yield from below


def _is_candidate(module: nn.Module) -> bool:
    """Check whether a module can be called, and has several matrices or kernels."""
    is_callable = type(module).forward is not nn.Module.forward  # a ModuleList is not
    shapes = [[size for size in p.shape if size > 1] for p in module.parameters()]
    return is_callable and sum(len(shape) > 1 for shape in shapes) > 1


def _has_repeated(blocks: list[Named]) -> bool:
    """Check whether these are a stage's, and not one part of a block, as squeeze-excitation is."""
    return max(Counter(type(block) for _, block in blocks).values(), default=0) > 1
