"""Numbers and names in sentences: `1 image`, `1,000 images`, `a, b and 3 more`."""

from collections.abc import Sequence


def counted(num: int, one: str, many: str = "") -> str:
    """Return a number with its noun, in the plural where that is due.

    Args:
        many: the plural, where it is not `one` with an s.
    """
    return f"{num:,} {one if num == 1 else many or one + 's'}"


def shortened(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return separator.join(names[:most]) + more
