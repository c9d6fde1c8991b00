"""A linear probe: only the head is trained, the rest stays as `init_from` left it.

It measures what a frozen network has learned (e.g. Chen et al., iGPT, 2020; DINOv2, 2023). Batch
norms stay in evaluation mode, since their statistics are part of what was learned.
"""

from typing import Any, cast

from torch import nn

from orchestrator.config.parse import ConfigError


def freeze_backbone(network: nn.Module, num_classes: int) -> None:
    """Freeze all of a network but its head."""
    name = head_name(network, num_classes)
    network.requires_grad_(False)
    network.get_submodule(name).requires_grad_(True)
    # A class, and not a method put on the object: copies of the network must have their own.
    bases = (_Probed, type(network))
    network.__class__ = type(f"Probed{type(network).__name__}", bases, {"head_name": name})
    network.train()


class _Probed(nn.Module):
    head_name: str

    def train(self, mode: bool = True) -> Any:
        """Set the mode of the head alone."""
        super().train(False)
        self.get_submodule(self.head_name).train(mode)
        return self


def head_name(network: nn.Module, num_classes: int) -> str:
    """Return the name of the layer whose outputs are the classes.

    Raises:
        ConfigError: no layer can be taken for it.
    """
    names = {module: name for name, module in network.named_modules()}
    if hasattr(network, "get_classifier"):  # timm's
        head = cast("Any", network).get_classifier()
        if isinstance(head, nn.Module) and head in names:
            return str(names[head])
    for module, name in reversed(names.items()):
        if isinstance(module, nn.Linear) and module.out_features == num_classes:
            return str(name)
    raise ConfigError(
        f"recipe.linear_probe: {type(network).__name__} does not end in a linear layer for "
        f"{num_classes} classes, so there is no head to train",
        value=type(network).__name__,
        hint="Take another network, or recipe.linear_probe=false.",
    )
