"""The ranks that share a micro-batch, where there are more ranks than micro-batches.

Each computes an equal part of its rows. What is not linear in the rows is computed by all of them
together (`shared_batch_norm`, mixup), so the micro-batch is the same as on one rank.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Self

import torch
import torch.distributed as dist

from data_sharding.sampling.sample_order import Part
from orchestrator.run.plan import Plan
from orchestrator.training.distributed.world import World


@dataclass(frozen=True)
class MicroBatchGroup:
    """This rank's part of its micro-batches; collectives over the ranks that share them.

    Args:
        group: the ranks that have the other parts; None if there are none.
    """

    part: Part = field(default_factory=Part)
    group: dist.ProcessGroup | None = None

    @classmethod
    def create(cls, plan: Plan, world: World, timeout_s: float) -> Self:
        """Create the groups of all micro-batches; return this rank's. All ranks must call this."""
        part = plan.part_of(world.rank)
        if part.count == 1:
            return cls(part)
        if part.count == world.size:  # the group of gradients: one communicator is enough
            return cls(part, dist.group.WORLD)
        timeout = timedelta(seconds=timeout_s)
        group, _ = dist.new_subgroups(part.count, timeout=timeout)  # of consecutive ranks
        return cls(part, group)

    @property
    def is_shared(self) -> bool:
        """True if other ranks compute the rest of this rank's micro-batch."""
        return self.group is not None

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Stack the tensors that the parts have, in their order: (parts, *shape)."""
        parts = [torch.empty_like(tensor) for _ in range(self.part.count)]
        dist.all_gather(parts, tensor, group=self.group)
        return torch.stack(parts)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over the parts, in place."""
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def row_before(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the row of the micro-batch before the first of this part; before row 0 the last.

        Args:
            rows: those of this part, (n, ...).

        Returns:
            (1, ...), in the memory format of the rows.
        """
        last_rows = self.gather(rows[-1].contiguous())
        row = torch.empty_like(rows[:1])  # keeps the memory format
        return row.copy_(last_rows[self.part.index - 1])
