"""Labels are parsed as webdataset decodes them; invalid ones are errors, never guessed."""

import json
from typing import Any

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_sharding.errors import BadLabelError
from data_sharding.format.labels import INTEGERS, TEXTS, LabelRule
from data_sharding.format.sample_rule import SampleRule

NUMBERS = {"cat": 0, "çäß 犬": 1, "two words": 2}


def decoded(extension: str, data: bytes) -> Any:
    """Return what webdataset makes of a member."""
    return webdataset.autodecode.basichandlers(extension, data)


@given(st.integers(0, 2), st.sampled_from(sorted(INTEGERS)), st.sampled_from(["", " ", "\n", "\t"]))
def test_integers_are_those_of_webdataset(label: int, extension: str, blank: str) -> None:
    data = f"{blank}{label}{blank}".encode()
    rule = LabelRule(extension=extension)
    assert rule.values(data) == [decoded(extension, data)] == [label]
    assert SampleRule(rule).parse(data, NUMBERS) == (label,)


@given(st.sampled_from(sorted(NUMBERS)), st.sampled_from(sorted(TEXTS)))
def test_texts_are_those_of_webdataset_stripped(name: str, extension: str) -> None:
    data = f"{name}\n".encode()
    rule = LabelRule(extension=extension)
    assert rule.values(data) == [decoded(extension, data).strip()] == [name]
    assert SampleRule(rule).parse(data, NUMBERS) == (NUMBERS[name],)


@given(st.recursive(st.integers() | st.text(), lambda x: st.dictionaries(st.just("a"), x)))
def test_json_is_that_of_webdataset(found: Any) -> None:
    data, depth = json.dumps(found).encode(), 0
    while isinstance(found, dict) and found:
        found, depth = found["a"], depth + 1
    rule = LabelRule(extension="json", field=".".join("a" * depth) or None)
    if isinstance(found, dict):
        with pytest.raises(BadLabelError):
            rule.values(data)
    else:
        assert rule.values(data) == [found]


@pytest.mark.parametrize(
    ("rule", "data", "labels"),
    [
        (LabelRule(), b" 2\n", (2,)),
        (LabelRule(extension="meta.id"), b"1", (1,)),
        (LabelRule(extension="json"), b'"two words"', (2,)),
        (LabelRule(extension="json", field="a.b"), b'{"a": {"b": 1, "c": 2}}', (1,)),
        (LabelRule("multi"), b"0 2\n1", (0, 2, 1)),
        (LabelRule("multi"), b"", ()),
        (LabelRule("multi", "txt"), "cat\r\nçäß 犬\n".encode(), (0, 1)),
        (LabelRule("multi", "txt"), b"\n", ()),
        (LabelRule("multi", "json"), b'[0, "two words"]', (0, 2)),
        (LabelRule("multi", "json"), b"[]", ()),
        (LabelRule("none"), b"", ()),
        (LabelRule("none"), b"what?", ()),
    ],
)
def test_labels(rule: LabelRule, data: bytes, labels: tuple[int, ...]) -> None:
    assert SampleRule(rule).parse(data, NUMBERS) == labels


@pytest.mark.parametrize(
    ("rule", "data"),
    [
        (LabelRule(), b""),
        (LabelRule(), b"cat"),
        (LabelRule(), b"1.0"),
        (LabelRule(), b"1 2"),
        (LabelRule(), b"9" * 5000),
        (LabelRule(extension="txt"), b"\xff"),
        (LabelRule(extension="json"), b"1.0"),
        (LabelRule(extension="json"), b"true"),
        (LabelRule(extension="json"), b"null"),
        (LabelRule(extension="json"), b"[1]"),
        (LabelRule(extension="json"), b"{"),
        (LabelRule(extension="json"), b"[" * 100_000),
        (LabelRule(extension="json", field="a"), b"{}"),
        (LabelRule(extension="json", field="a"), b"[1]"),
        (LabelRule(extension="json", field="a"), b'"a"'),
        (LabelRule(extension="json", field="a.b"), b'{"a": 1}'),
        (LabelRule("multi", "json"), b"1"),
        (LabelRule("multi", "json"), b"[1, 2.5]"),
        (LabelRule("multi", "json"), b'{"1": 2}'),
    ],
)
def test_invalid_labels_are_refused(rule: LabelRule, data: bytes) -> None:
    with pytest.raises(BadLabelError, match=r"has the label b'.{0,40}'(...)?, which is not "):
        SampleRule(rule).parse(data, NUMBERS)


@pytest.mark.parametrize(
    ("rule", "data", "shown"),
    [
        (LabelRule(), b"3", "3"),
        (LabelRule(), b"-1", "-1"),
        (LabelRule(extension="txt"), b"dog", "'dog'"),
        (LabelRule(extension="txt"), b"1", "'1'"),
        (LabelRule(extension="txt"), b"", "''"),
        (LabelRule("multi", "json"), b'["cat", 3]', "3"),
    ],
)
def test_labels_without_a_class_are_refused(rule: LabelRule, data: bytes, shown: str) -> None:
    with pytest.raises(BadLabelError, match=f"has the label {shown}, and there are 3 classes"):
        SampleRule(rule).parse(data, NUMBERS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "both"}, "'single', 'multi' or 'none'"),
        ({"extension": "pkl"}, "'pkl' holds no labels: cls, "),
        ({"extension": "jpg"}, "'jpg' holds no labels"),
        ({"extension": "../cls"}, "String should match pattern"),
        ({"extension": "CLS"}, "String should match pattern"),
        ({"field": "a"}, "field 'a' needs JSON, and the extension is cls"),
        ({"surprise": 1}, "Unexpected keyword argument"),
    ],
)
def test_inconsistent_rules_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LabelRule(**settings)


def test_rules_as_text() -> None:
    rules = LabelRule(), LabelRule("multi", "json", "a.b"), LabelRule("none")
    assert [str(rule) for rule in rules] == ["single cls", "multi json under 'a.b'", "none"]
