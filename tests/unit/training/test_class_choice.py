"""The classes of other data among the outputs of a network."""

from pathlib import Path

import pytest
import torch

from data_sharding.format.class_map import read_class_map
from orchestrator.config.parse import ConfigError
from orchestrator.evaluation.class_choice import ClassChoice
from orchestrator.evaluation.single_label import GroundTruth

OWN = ("ant", "bee", "cat", "dog", "eel")
NUMBERS = ("0", "1", "2")


def choice(tmp_path: Path, name: str, text: str, other: tuple[str, ...]) -> ClassChoice:
    (tmp_path / name).write_text(text)
    return ClassChoice.of(read_class_map(str(tmp_path / name)), OWN, other)


@pytest.mark.parametrize(
    ("name", "text", "other", "names", "columns"),
    [
        ("a.txt", "4\n0\n2\n", NUMBERS, ("ant", "cat", "eel"), [2, 0, 1]),
        ("a.txt", "eel\nant\ncat\n", NUMBERS, ("ant", "cat", "eel"), [2, 0, 1]),
        ("a.txt", "dog\nbee\n", ("bee", "cat", "dog"), ("bee", "dog"), [0, -1, 1]),
        ("a.txt", "dog\nbee\n", ("dog", "bee"), ("bee", "dog"), [1, 0]),
        ("a.txt", "dog\nbee\n", ("Hund", "Biene"), ("bee", "dog"), [1, 0]),
        (
            "a.csv",
            "Hund,dog\n2,dog\n0,eel\n",
            ("Aal", "Hund", "Welpe"),
            ("dog", "eel"),
            [1, 0, 0],
        ),
        ("a.json", '{"1": 3, "0": 1}', NUMBERS, ("bee", "dog"), [0, 1, -1]),
    ],
)
def test_labels_become_places_among_the_outputs(
    tmp_path: Path,
    name: str,
    text: str,
    other: tuple[str, ...],
    names: tuple[str, ...],
    columns: list[int],
) -> None:
    found = choice(tmp_path, name, text, other)
    assert (found.names, found.columns.tolist()) == (names, columns)
    assert tuple(OWN[i] for i in found.outputs) == names
    assert found.suffix == f"-among-{len(names)}-classes"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("a.txt", "dog\nbee\n", 2),
        ("a.csv", "0,fly\n", "fly"),
        ("a.csv", "7,dog\n", "7"),
        ("a.csv", "two,dog\n2,bee\n", 2),
    ],
)
def test_maps_that_do_not_fit(tmp_path: Path, name: str, text: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        choice(tmp_path, name, text, ("0", "1", "two") if "two" in text else NUMBERS)
    assert caught.value.value == value


def test_images_of_other_classes_do_not_count(tmp_path: Path) -> None:
    found = choice(tmp_path, "a.csv", "2,ant\n0,dog\n", NUMBERS)
    truth = GroundTruth(torch.tensor([0, 1, 2, 2]), torch.tensor([True, True, False, True]))
    log_probs = torch.arange(8).reshape(4, 2).float()
    kept, matched = found.matched(log_probs, truth)
    assert kept.tolist() == log_probs[[0, 2, 3]].tolist()
    assert matched.labels.tolist() == [1, 0, 0]
    assert matched.readable.tolist() == [True, False, True]
    with pytest.raises(ConfigError):
        found.matched(log_probs[:1], GroundTruth(torch.tensor([1]), torch.tensor([True])))
