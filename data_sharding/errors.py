"""The errors of data sets, shards, samples and labels."""


class DataError(Exception):
    """A data set cannot be used or written as asked; the message says what to do instead."""


class UnavailableError(DataError):
    """What is needed is refused, out of reach or without room now: at another time it may come."""


class ShardError(DataError):
    """A shard is missing, damaged, or not what its manifest says; no sample of it can be used."""


class UnavailableShardError(ShardError, UnavailableError):
    """A shard cannot be read now, by no fault of its own that is known."""


class BadSample(Exception):  # noqa: N818  a fact about the data, not about the program
    """One sample cannot be used; the others can.

    Args:
        labels: its labels, if they at least are known.
    """

    def __init__(self, message: str, labels: tuple[int, ...] | None = None) -> None:
        super().__init__(message)
        self.labels = labels


class BadLabelError(Exception):
    """A label is not what the rule says; the message says what it is."""
