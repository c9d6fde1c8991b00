"""The product's prose: docstrings, help and config comments in the words of the field."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("conf", "data_sharding", "models", "orchestrator", "slurm")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
PAGES = sorted([ROOT / "README.md", *ROOT.glob("*/README.md"), *(ROOT / "conf").rglob("*.yaml")])
PRIVATE = re.compile(r"\b(verdict|hurt|mend|its kin|told|anew|wish)\b", re.IGNORECASE)
# A question is no summary: name what is returned, or computed.
VAGUE = re.compile(
    r"(Return|Yield|Tell|Say) (what|whether|how|where|which|who)\b"
    r"|(What|Of|How|Whether|Which|Who)\b"
)
NO_VERB = re.compile(
    r"(The|A|An|This|Whether|How|Where|Which|Who|Its?|No|If|For|In)\b|\w+(?<!s)s\b"
)


def docstrings(path: Path) -> Iterator[tuple[ast.AST, str]]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield node, text


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_plain_summary(path: Path) -> None:
    for _, text in docstrings(path):
        first = text.splitlines()[0]
        assert not VAGUE.match(first), first
        assert first[0].isupper() or not first[0].isalpha(), first


def is_property(node: ast.AST) -> bool:
    decorators = getattr(node, "decorator_list", [])
    return any(isinstance(name, ast.Name) and "property" in name.id for name in decorators)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_of_functions_begin_with_a_verb(path: Path) -> None:
    for node, text in docstrings(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_property(node):
            assert not NO_VERB.match(text), text.splitlines()[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arguments_are_described_by_noun_phrases(path: Path) -> None:
    for node, text in docstrings(path):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        _, _, section = text.partition("Args:\n")
        for entry in re.findall(r"^    (\w+: .*)$", section.split("\n\n")[0], flags=re.MULTILINE):
            assert not re.match(r"\w+: (of|what|that|whose|which|how)\b", entry), entry


@pytest.mark.parametrize("path", [*MODULES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_word_is_used(path: Path) -> None:
    found = PRIVATE.findall(path.read_text())
    assert found == [], path
