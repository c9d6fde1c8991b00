"""The errors of data sets, shards, samples and labels."""


class UserError(Exception):
    """Report a problem that a user can fix: programs print it without a traceback.

    Args:
        problem: the fault, its place and its consequence, without a full stop at the end.
        value: the value, path or URL that is wrong, for programs and tests.
        hint: the remedy, in sentences. Names of parameters stand in backticks.
    """

    def __init__(self, problem: str, *, value: object = None, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.value = value
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem}. {self.hint}" if self.hint else self.problem


class DataError(UserError):
    """A data set cannot be used or written as requested."""


class MissingManifestError(DataError):
    """A data set, or a split of it, has no manifest."""


class UnavailableError(DataError):
    """Data are refused, out of reach or without space now; a later attempt may succeed."""


class ShardError(DataError):
    """A shard is missing, damaged, or not what its manifest says; no sample of it can be used."""


class UnavailableShardError(ShardError, UnavailableError):
    """A shard cannot be read now, by no known fault of its own."""


class BadSample(Exception):  # noqa: N818  a fact about the data, not about the program
    """One sample cannot be used; the others can.

    Args:
        message: the reason.
        labels: its labels, if they at least are known.
    """

    def __init__(self, message: str, labels: tuple[int, ...] | None = None) -> None:
        super().__init__(message)
        self.labels = labels


class BadLabelError(Exception):
    """A label breaks the label rule; the message quotes it."""
