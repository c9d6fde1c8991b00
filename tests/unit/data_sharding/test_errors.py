"""Errors with fields: a problem, the value that is wrong, a hint."""

import pickle

import pytest

from data_sharding.errors import DataError, UnavailableShardError, UserError
from slurm.errors import SlurmError


@pytest.mark.parametrize("kind", [DataError, UnavailableShardError, SlurmError])
def test_an_error_has_fields_and_prints_the_problem_and_the_hint(kind: type[UserError]) -> None:
    error = kind("no shard is there", value="s3://b/train", hint="Index it again.")

    assert (error.problem, error.value, error.hint) == (
        "no shard is there",
        "s3://b/train",
        "Index it again.",
    )
    assert str(error) == "no shard is there. Index it again."
    assert str(kind("no shard is there")) == "no shard is there"


def test_fields_come_through_a_process_pool() -> None:
    error = pickle.loads(pickle.dumps(DataError("p", value=3, hint="H.")))

    assert (type(error), error.problem, error.value, error.hint) == (DataError, "p", 3, "H.")
