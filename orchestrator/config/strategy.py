"""The schema of `strategy`: how model and gradients are spread over the ranks."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from orchestrator.config.recipe import schema_dataclass

# Hooks whose step depends on earlier ones. PowerSGD adds to a gradient what a rank did not send of
# the last one, and begins with the last approximation. No checkpoint has these, so a resumed run
# has other bits than one that was left alone.
INEXACT_HOOKS = ("powersgd",)


@schema_dataclass
class Strategy:
    """A strategy, and how its ranks send each other gradients.

    Args:
        bucket_cap_mb: size of a message in MiB; None is torch's choice.
        comm_hook: the compression of gradients between ranks, as it is called in
            torch.distributed.algorithms.ddp_comm_hooks.
        matrix_approximation_rank: the rank of PowerSGD's approximation of a matrix.
        start_powersgd_step: the number of steps before PowerSGD starts.
    """

    name: Literal["ddp", "ddp_zero1", "fsdp2"] = "ddp"
    bucket_cap_mb: PositiveInt | None = None
    comm_hook: Literal["bf16_compress", "powersgd"] | None = None
    matrix_approximation_rank: PositiveInt = 1
    start_powersgd_step: NonNegativeInt = 1000

    def __post_init__(self) -> None:
        if self.comm_hook and self.name == "fsdp2":
            raise ValueError(
                f"comm_hook={self.comm_hook} compresses the gradients of DDP, and fsdp2 sends "
                "slices of them by itself. Give strategy=ddp or ddp_zero1, or comm_hook=null"
            )

    @property
    def is_exact(self) -> bool:
        """True if a resumed run has the bits of one that was left alone."""
        return self.comm_hook not in INEXACT_HOOKS
