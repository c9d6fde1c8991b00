"""Progressive resizing: small images first, the size a function of the step.

Leclerc et al., FFCV: Accelerating Training by Removing Data Bottlenecks, CVPR 2023. Theirs grow
linearly between two epochs: get_resolution in github.com/libffcv/ffcv-imagenet.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageSizes:
    """The side of the training images in pixels: `first`, growing to `last` between two steps.

    Args:
        multiple_of: sizes on the way are rounded to multiples of it, never beyond the ends.
    """

    last: int
    first: int = 0
    from_step: int = 0
    to_step: int = 0
    multiple_of: int = 1

    def __call__(self, step: int) -> int:
        """Return the size of a step's images."""
        if step >= self.to_step:
            return self.last
        done = max(step - self.from_step, 0) / (self.to_step - self.from_step)
        size = self.first + done * (self.last - self.first)
        rounded = round(size / self.multiple_of) * self.multiple_of
        return min(max(rounded, min(self.first, self.last)), self.largest)

    @property
    def largest(self) -> int:
        return max(self.first, self.last)
