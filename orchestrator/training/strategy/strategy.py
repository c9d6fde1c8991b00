"""The interface of strategies: all that differs between DDP and ways to share a model's memory.

A checkpoint does not know the strategy: rank 0 writes whole tensors, which are gathered, and
distributed again, one at a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.optim import Optimizer

from orchestrator.config.recipe import Recipe
from orchestrator.training.distributed.world import World
from orchestrator.training.strategy.param_state import ParamState


class Strategy(ABC):
    """Spreads a model, its gradients and its optimizer state over the ranks."""

    def __init__(self, world: World) -> None:
        self.world = world

    # ------------------------------------------------------------ the model

    forward_is_collective = False  # True if all ranks must compute a forward pass together

    @abstractmethod
    def place(self, model: nn.Module, *, with_copy: bool) -> tuple[nn.Module, nn.Module | None]:
        """Move a model to this rank's device, before its optimizer is made.

        Args:
            with_copy: whether to return a copy, too, which takes no gradients.

        Raises:
            ConfigError: it does not work with this strategy.
        """

    @abstractmethod
    def wrap(self, model: nn.Module, *, has_unused: bool = False) -> nn.Module:
        """Wrap a placed model so that a backward pass averages gradients over the ranks.

        Args:
            has_unused: True if some steps do not use every parameter.
        """

    @property
    def needs_warm_up(self) -> bool:
        """True if the first backward passes add gradients in another order than later ones."""
        return False

    def local(self, tensor: Tensor) -> Tensor:
        """Return this rank's part of a weight, buffer or gradient, which shares its memory."""
        return tensor

    def accepting_whole_tensors(self) -> AbstractContextManager[None]:
        """Return a context in which whole tensors may be copied into those of a placed model."""
        return nullcontext()

    # ------------------------------------------------------------ gradients

    def prepare_step(self, step: int) -> None:  # noqa: B027  # most do the same in every step
        """Prepare for the passes of a step (0-based)."""

    @abstractmethod
    def accumulate(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Return the context of the passes of a step before its last."""

    @abstractmethod
    def clip_gradients(self, model: nn.Module, recipe: Recipe) -> Tensor:
        """Clip a model's gradients in place; return their norm before that."""

    # ------------------------------------------------------------ optimizer state

    def attach(self, optimizer: Optimizer) -> None:  # noqa: B027  # nothing to do with whole state
        """Take over an optimizer of a placed model.

        Raises:
            ConfigError: it does not work with this strategy.
        """

    def stepping(self) -> AbstractContextManager[None]:
        """Return the context of an optimizer step."""
        return nullcontext()

    # ------------------------------------------------------------ checkpoints

    @abstractmethod
    def gather(self, tensor: Tensor) -> Tensor:
        """Return the whole of a weight or buffer on rank 0; a collective.

        Other ranks return what they have.
        """

    @abstractmethod
    def scatter(self, tensor: Tensor, whole: Tensor | None) -> None:
        """Set a weight or buffer on every rank; a collective.

        Args:
            whole: its value on rank 0, on any device; None on other ranks.
        """

    @abstractmethod
    def gather_optimizer_state(self, optimizer: Optimizer) -> Iterator[tuple[int, ParamState]]:
        """Yield the state of every parameter, by its index, complete on rank 0.

        A collective: every rank must exhaust the iterator, since it sends its part meanwhile.
        """

    @abstractmethod
    def scatter_param_state(
        self, index: int, meta: ParamState, whole: ParamState | None
    ) -> ParamState | None:
        """Distribute the optimizer's state of a parameter; return what this rank keeps of it.

        Args:
            meta: the state with its large tensors on the meta device.
            whole: the state on rank 0, None on other ranks.
        """
