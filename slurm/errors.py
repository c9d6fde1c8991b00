"""The error of Slurm's commands and of the local cluster."""


class SlurmError(Exception):
    """Report that Slurm refused a request or cannot be reached.

    Args:
        problem: the fault and its consequence, without a full stop at the end.
        value: the value that is wrong, for programs and tests.
        hint: the remedy, in sentences.
    """

    def __init__(self, problem: str, *, value: object = None, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.value = value
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem}. {self.hint}" if self.hint else self.problem
