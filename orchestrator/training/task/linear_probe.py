"""A linear probe: all of a network stays as `init_from` left it but its head.

What a frozen network knows is measured so (e.g. Chen et al., iGPT, 2020; DINOv2, 2023). Its batch
norms stay in evaluation, since their statistics are part of what was learnt.
"""

from typing import Any, cast

from torch import nn

from orchestrator.config.parse import ConfigError


def freeze_backbone(network: nn.Module, num_classes: int) -> None:
    """Let only the head learn.

    Raises:
        ConfigError: no layer is seen to be the head.
    """
    name = head_name(network, num_classes)
    network.requires_grad_(False)
    network.get_submodule(name).requires_grad_(True)
    # A class, and not a method put on the object: copies of the network must have their own.
    kind = type(f"Probed{type(network).__name__}", (_Probed, type(network)), {"head_name": name})
    network.__class__ = kind
    network.train()


class _Probed(nn.Module):
    head_name: str

    def train(self, mode: bool = True) -> Any:
        """Set the mode of the head alone."""
        super().train(False)
        self.get_submodule(self.head_name).train(mode)
        return self


def head_name(network: nn.Module, num_classes: int) -> str:
    """Return the name of the layer that tells the classes.

    Raises:
        ConfigError: no layer is seen to be the head.
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
        f"recipe.linear_probe: {type(network).__name__} has no linear layer for {num_classes} "
        "classes at its end, so there is no head to train. Take another network, or probe=false."
    )
