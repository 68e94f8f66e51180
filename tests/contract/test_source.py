"""A digest is of a definition, whatever stands around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_ppsd.contract.source import digests

SOURCE = """
import x

@decorated(
    1,
)
def function():
    return 1

if x:
    LIMIT = 3

class Thing(Base):
    size: int = 2

    def __init__(self):
        width = 1
        self.width = width
        if width:
            self.width: int = 2

    @property
    def area(self): return 3

    @area.setter
    def area(self, value): pass
"""


def digest(folder: Path, text: str, name: str) -> str | None:
    (folder / "pack").mkdir(exist_ok=True)
    (folder / "pack/module.py").write_text(text)
    return digests(folder, [f"pack.module:{name}"])[f"pack.module:{name}"]


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("function", ("1,", "return 1"), ("LIMIT = 3", "return 3")),
        ("LIMIT", ("LIMIT = 3",), ("return 1",)),
        ("Thing", ("int = 2", "return 3"), ("LIMIT = 3",)),
        ("Thing.size", ("size: int = 2",), ("self.width: int = 2",)),
        ("Thing.width", ("self.width = width", "self.width: int = 2"), ("        width = 1",)),
        ("Thing.area", ("return 3", "@area.setter", "value): pass"), ("size: int = 2",)),
    ],
)
def test_every_part_of_a_definition_counts_and_nothing_else(
    tmp_path: Path, name: str, inside: tuple[str, ...], outside: tuple[str, ...]
):
    before = digest(tmp_path, SOURCE, name)
    assert before is not None
    for text in inside + outside:
        changed = SOURCE.replace(text, f"{text} ")
        assert changed != SOURCE
        assert (digest(tmp_path, changed, name) != before) == (text in inside)


def test_indentation_does_not_count(tmp_path: Path):
    inside = digest(tmp_path, "class A:\n    def f(self):\n        pass\n", "A.f")
    assert digest(tmp_path, "def f(self):\n    pass\n", "f") == inside


def test_what_is_not_there_has_no_digest(tmp_path: Path):
    assert digest(tmp_path, SOURCE, "Thing.gone") is None
    assert digest(tmp_path, SOURCE, "gone.area") is None
    assert digests(tmp_path, ["pack.gone:f"]) == {"pack.gone:f": None}
