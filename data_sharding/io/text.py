"""Numbers and names in sentences: `1 image`, `1,000 images`, `a, b and 3 more`."""

from collections.abc import Sequence


def pluralize(number: int, noun: str) -> str:
    """Format a number with its noun.

    >>> pluralize(1, "run"), pluralize(1438, "image"), pluralize(2, "class")
    ('1 run', '1,438 images', '2 classes')
    """
    plural = "" if number == 1 else "es" if noun.endswith(("s", "x", "ch")) else "s"
    return f"{number:,} {noun}{plural}"


def truncated_list(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """Join the first `most` names, and say how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return separator.join(names[:most]) + more
