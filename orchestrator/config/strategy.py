"""The schema of `strategy`: how model and gradients are spread over the ranks."""

from typing import Literal

from pydantic import PositiveInt

from orchestrator.config.recipe import schema_dataclass


@schema_dataclass
class Strategy:
    """A strategy, and how its ranks send each other gradients.

    Args:
        bucket_cap_mb: size of a message in MiB; None is torch's choice.
    """

    name: Literal["ddp", "ddp_zero1", "fsdp2"] = "ddp"
    bucket_cap_mb: PositiveInt | None = None
