"""Checks of models and optimizers that FSDP2 cannot train, before the first step."""

from torch import nn
from torch.optim import Optimizer

from orchestrator.config.parse import ConfigError
from orchestrator.training.strategy.fsdp_groups import tied_across

# By class. Most update each number by itself; Lamb and Lars take norms, which torch computes over
# slices of all ranks. Adafactor keeps sums over rows, Muon multiplies matrices, and torch cannot
# compute the masks of cautious optimizers and the projections of AdamP on slices.
_KNOWN = frozenset(
    (
        *("AdaBelief", "Adadelta", "Adagrad", "Adam", "AdamW", "AdamWLegacy", "Adamax", "Adan"),
        *("Adopt", "CaffeSGD", "Lamb", "LaProp", "Lars", "Lion", "MADGRAD", "NAdam", "NAdamLegacy"),
        *("NAdamW", "RAdam", "RAdamLegacy", "RMSprop", "RMSpropTF", "SGD", "SGDW"),
    )
)


def check_model(model: nn.Module) -> None:
    """Refuse a model whose weights cannot be sliced.

    Raises:
        ConfigError: it changes its weights itself, shares them between blocks, or has scalar ones.
    """
    if hasattr(model, "after_step") or hasattr(model, "enter"):
        raise _refused("changes its weights itself between steps, and would find slices", model)
    if tied := list(tied_across(model)):
        raise _refused(f"shares weights between blocks ({tied[0]}), which are freed apart", model)
    if scalars := [name for name, weight in model.named_parameters() if weight.dim() == 0]:
        raise _refused(f"has a weight without dimensions ({scalars[0]}) that it could slice", model)


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose update of a slice might not be a slice of its update.

    Raises:
        ConfigError: it is not known to be one that works.
    """
    name = type(optimizer).__name__
    if name not in _KNOWN or any(group.get("caution") for group in optimizer.param_groups):
        raise ConfigError(
            f"strategy=fsdp2: {name} with these options is not known to update a slice of a "
            "parameter as it would update the whole",
            value="fsdp2",
            hint="Set strategy=ddp or ddp_zero1, or take another optimizer, such as adamw or sgd.",
        )


def _refused(reason: str, model: nn.Module) -> ConfigError:
    return ConfigError(
        f"strategy=fsdp2: {type(model).__name__} {reason}",
        value="fsdp2",
        hint="Set strategy=ddp, or ddp_zero1.",
    )
