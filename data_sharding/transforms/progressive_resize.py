"""Progressive resizing: small images first, the size a function of the step.

Leclerc et al., FFCV: Accelerating Training by Removing Data Bottlenecks, CVPR 2023; their sizes
grow linearly between two epochs (get_resolution in github.com/libffcv/ffcv-imagenet).
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate


@dataclass(frozen=True)
class ImageSizeSchedule:
    """The side of the training images in pixels: `first`, growing to `last` between two steps.

    Args:
        multiple_of: the number to whose multiples sizes in between are rounded.
    """

    last: int
    first: int = 0
    from_step: int = 0
    to_step: int = 0
    multiple_of: int = 1

    def __call__(self, step: int) -> int:
        """Return the side of a step's images."""
        if step >= self.to_step:
            return self.last
        progress = max(step - self.from_step, 0) / (self.to_step - self.from_step)
        size = self.first + progress * (self.last - self.first)
        rounded = round(size / self.multiple_of) * self.multiple_of
        return min(max(rounded, min(self.first, self.last)), self.largest)

    def num_of_last(self, num_steps: int) -> float:
        """Return the total area of an image of each step, in images of the last size."""
        num_grown = min(max(num_steps - self.from_step, 0), self.to_step - self.from_step)
        area = min(num_steps, self.from_step) * self(0) ** 2 + self._areas[num_grown]
        return area / self.last**2 + max(num_steps - self.to_step, 0)

    @cached_property
    def _areas(self) -> list[int]:
        """The cumulative area of one image per step, from the step on at which they grow."""
        growing = range(self.from_step, self.to_step)
        return [*accumulate((self(step) ** 2 for step in growing), initial=0)]

    @property
    def is_growing(self) -> bool:
        """True if the size depends on the step."""
        return self.to_step > 0

    @property
    def largest(self) -> int:
        return max(self.first, self.last)
