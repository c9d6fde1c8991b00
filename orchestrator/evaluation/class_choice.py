"""Match the classes of a data set to those of a network that has others: ImageNet-A, -R, -V2.

Predictions are chosen among the matched classes alone, as `--valid-labels` of timm's validate.py
does: the other outputs are dropped before the softmax. So 200 classes count for ImageNet-A and -R,
and all of them for -V2 and -Sketch.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from data_sharding.format.class_map import ClassMap
from data_sharding.io.text import pluralize, truncated_list
from orchestrator.config.parse import ConfigError
from orchestrator.evaluation.single_label import GroundTruth


class ClassChoice(NamedTuple):
    """The outputs of a network that may be predicted, and the labels that they are for.

    outputs: numbers of the network's classes, ascending, int64 (chosen,).
    names: their names.
    columns: for each label of the data set its place among `outputs`, -1 if it is passed over;
        int64 (labels,).
    num_outputs: number of all classes of the network.
    """

    outputs: Tensor
    names: tuple[str, ...]
    columns: Tensor
    num_outputs: int

    @classmethod
    def of(cls, class_map: ClassMap, own: Sequence[str], other: Sequence[str]) -> Self:
        """Choose by a class map.

        A list names the network's class of each label of the set, or some classes that both have;
        rows `old,new` name pairs.

        Args:
            own: classes of the network.
            other: classes of the data set.

        Raises:
            ConfigError: it does not fit them.
        """
        pairs = _unique(class_map, other, _pairs(class_map, own, other))
        outputs = sorted(set(pairs.values()))
        columns = torch.full((len(other),), -1, dtype=torch.long)
        for label, output in pairs.items():
            columns[label] = outputs.index(output)
        return cls(torch.tensor(outputs), tuple(own[i] for i in outputs), columns, len(own))

    @property
    def suffix(self) -> str:
        """The suffix of the name of a protocol, since its metrics are others."""
        is_part = len(self.names) < self.num_outputs
        return f"-among-{len(self.names)}-classes" if is_part else ""

    def matched(self, log_probs: Tensor, truth: GroundTruth) -> tuple[Tensor, GroundTruth]:
        """Return the images with a label that is matched, which becomes its place in `outputs`."""
        columns = self.columns[truth.labels]
        is_matched = columns >= 0
        if not is_matched.any():
            raise ConfigError(
                "no image of the data has a class that the class map matches",
                value=len(truth.labels),
                hint="Check that its labels are those of this data set.",
            )
        truth = GroundTruth(columns[is_matched], truth.readable[is_matched])
        return log_probs[is_matched], truth


def _pairs(
    class_map: ClassMap, own: Sequence[str], other: Sequence[str]
) -> Iterable[tuple[int, int]]:
    """Yield pairs of a label of the data set and a class of the network."""
    if class_map.names is None:
        texts = [text for texts in class_map.old for text in texts]
        is_common = {*texts} <= {*own} & {*other}
        is_numbered = tuple(other) == tuple(map(str, range(len(other))))
        if len(texts) == len(other) and (is_numbered or not is_common):
            return enumerate(_indices(class_map, texts, own, "the network"))
        if not is_common:
            raise ConfigError(
                f"{class_map.url} has {pluralize(len(texts), 'line')}, and the data set "
                f"{pluralize(len(other), 'class')} that are not all of these names, so its labels "
                "have no classes of the network",
                value=len(texts),
                hint="Give a line for each label of the data set, or rows OLD,NEW (.csv).",
            )
        names = [texts, texts]
    else:
        rows = [
            (old, name)
            for olds, name in zip(class_map.old, class_map.names, strict=True)
            for old in olds
        ]
        names = [[old for old, _ in rows], [new for _, new in rows]]
    return zip(
        _indices(class_map, names[0], other, "the data set"),
        _indices(class_map, names[1], own, "the network"),
        strict=True,
    )


def _unique(
    class_map: ClassMap, other: Sequence[str], pairs: Iterable[tuple[int, int]]
) -> dict[int, int]:
    """Return the class of each label; a label given by name and by number has two."""
    unique = dict[int, int]()
    for label, output in pairs:
        if label in unique:
            raise ConfigError(
                f"{class_map.url} maps the label {label} ({other[label]}) twice",
                value=label,
                hint="A class may be called by its number elsewhere in the file: leave one out.",
            )
        unique[label] = output
    return unique


def _indices(
    class_map: ClassMap, texts: Sequence[str], classes: Sequence[str], whose: str
) -> list[int]:
    """Find classes by name, or else by number."""
    indices = {name: i for i, name in enumerate(classes)}
    numbers = {str(i): i for i in range(len(classes))}
    unknown = [text for text in texts if text not in indices and text not in numbers]
    if unknown:
        raise ConfigError(
            f"{class_map.url} names classes that are none of the "
            f"{pluralize(len(classes), 'class')} of {whose}: {truncated_list(unknown)}",
            value=unknown[0],
            hint=f"They are called {truncated_list(classes)}; their numbers count from 0.",
        )
    return [indices[text] if text in indices else numbers[text] for text in texts]
