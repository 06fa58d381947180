"""Functions of the user's: found in the current folder, called with what they take, and named where they fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo import factory

CODE = """
def make(num_classes, *, width=3):
    return num_classes, width

def everything(**kwargs):
    return kwargs

def fails(num_classes):
    return num_classes + missing

class Namespace:
    @staticmethod
    def inner():
        return 1

number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"mine_{tmp_path.name.replace('-', '_')}"  # modules stay imported
    (tmp_path / f"{name}.py").write_text(CODE)
    (tmp_path / f"{name}_broken.py").write_text("import nowhere_at_all\n")
    return tmp_path / name


def test_a_function_gets_what_it_takes(here: Path) -> None:
    make = factory.find(f"{here.name}:make", "model")
    assert factory.call(make, {"num_classes": 4, "in_channels": 1, "width": None}, {}, "model") == (4, 3)
    assert factory.call(make, {"num_classes": 4}, {"width": 5}, "model") == (4, 5)
    assert factory.find(f"{here.name}:Namespace.inner", "model")() == 1
    everything = factory.find(f"{here.name}:everything", "model")
    assert factory.call(everything, {"num_classes": 4}, {"width": 5}, "model") == {"width": 5}


def test_what_is_wrong_is_named(here: Path) -> None:
    with pytest.raises(
        LayerCollapseError, match="data: expected a module to import in 'nowhere_at_all:f', got no 'nowh"
    ):
        factory.find("nowhere_at_all:f", "data")
    with pytest.raises(LayerCollapseError, match=r"importing \w+_broken stopped with `import nowhere_at_all` .*:1\)"):
        factory.find(f"{here.name}_broken:f", "data")
    for name in ("absent", "number"):
        with pytest.raises(LayerCollapseError, match=rf"function or class '{name}' in .*, got Namespace, everything, "):
            factory.find(f"{here.name}:{name}", "model")
    with pytest.raises(
        LayerCollapseError, match=r"depth: expected an argument of make, which takes num_classes, width"
    ):
        factory.call(factory.find(f"{here.name}:make", "model"), {}, {"depth": 3}, "model")
    with pytest.raises(
        LayerCollapseError, match=r"model: fails stopped with `return num_classes \+ missing`.*NameError"
    ):
        factory.call(factory.find(f"{here.name}:fails", "model"), {"num_classes": 4}, {}, "model")
