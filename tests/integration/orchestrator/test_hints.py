"""Errors name flags, config keys and verbs as the user of the running command types them."""

import pytest

from data_sharding.errors import DataError
from data_sharding.tools import find_shards
from orchestrator.cli.dataset.inspect import index
from orchestrator.cli.dataset.write import folder
from orchestrator.cli.main import main
from orchestrator.cli.shared.hints import translate
from orchestrator.cli.verbs.train import train


@pytest.mark.parametrize(
    ("command", "text", "expected"),
    [
        (folder, "raise `max_bad_fraction`", "raise --max-bad-fraction"),
        (train, "raise `max_bad_fraction`", "raise data.max_bad_fraction"),
        (train, "sample without `class_balanced`", "sample without recipe.class_balanced"),
        (train, "use `stat` (`class_index`)", "use `tahoe shard stat` (--class-index)"),
        (index, "give `split`", "give --split"),
        (train, "give `split`", "give `tahoe shard split`"),
        (train, "`tahoe list`, `name`, `nothing`", "`tahoe list`, `name`, `nothing`"),
    ],
)
def test_names_are_those_of_the_command(command, text, expected):
    assert translate(text, command) == expected


def test_a_printed_error_has_the_flag(monkeypatch, capsys):
    def fail(*_):
        raise DataError("no shards", value="url", hint="Choose them with `tars`.")

    monkeypatch.setattr(find_shards, "find_shards", fail)
    assert main(["shard", "index", "url"]) == 1
    assert capsys.readouterr().err == "error: no shards. Choose them with --tars.\n"
