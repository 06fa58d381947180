"""Exported programs: they train on, and a file that would run code when read is refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from layercollapse.entropy.probe import EntropyProbe
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.capture import capture
from layercollapse.zoo.models import exported
from layercollapse.zoo.models.wanted import Wanted

WANTED = Wanted(3, (1, 4, 4))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    model = nn.Sequential(*layers).eval()
    program = torch.export.export(
        model, (torch.randn(2, 1, 4, 4),), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
    )
    path = tmp_path_factory.mktemp("programs") / "net.pt2"
    torch.export.save(program, path)
    return path


def test_a_program_trains_on(file: Path) -> None:
    built = exported.build(str(file), WANTED)
    model, x = built.model, torch.randn(5, 1, 4, 4)
    assert built.pretrained
    before = model(x)
    model.train()
    assert torch.equal(model(x), before)  # batch norm as it was exported
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(before, torch.zeros(5, dtype=torch.int64)).backward()
    optimizer.step()
    assert not torch.equal(model(x), before)
    assert not model.eval().training


def test_sites_have_one_name_wherever_they_are_seen(file: Path) -> None:
    model, x = exported.build(str(file), WANTED).model, torch.randn(5, 1, 4, 4)
    with EntropyProbe(model) as probe:
        model(x)
    names = [layer.name for layer in probe.report()]
    assert names == [site.name for site in capture(model, (x,)).sites]
    assert len(names) == 1


def changed(file: Path, other: Path, edit: object) -> Path:
    """A copy of a file with its JSON changed."""
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            raw = source.read(name)
            target.writestr(name, json.dumps(edit(json.loads(raw))) if name.endswith(".json") else raw)
    return other


@pytest.mark.parametrize("expression", ["__import__('os').system('true')", "eval('1')", "open('x')", "s0.evalf", "[1]"])
def test_expressions_that_are_none_of_sizes(file: Path, tmp_path: Path, expression: str) -> None:
    text = changed(file, tmp_path / "evil.pt2", lambda value: {**value, "more": {"expr_str": expression}})
    with pytest.raises(LayerCollapseError, match=r"model: expected expressions of sizes in .*evil.pt2"):
        exported.build(str(text), WANTED)
    assert exported._harmless("Max(1, s0//2 + Mod(s1, 3)) + Symbol('s31', positive=True, integer=True)")


def test_pickles_are_refused(file: Path, tmp_path: Path) -> None:
    text = changed(
        file, tmp_path / "evil.pt2", lambda value: {**value, "more": [{"use_pickle": True, "path_name": "w"}]}
    )
    with pytest.raises(LayerCollapseError, match="model: expected a file without pickled tensors, got w"):
        exported.build(str(text), WANTED)
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(tmp_path / "more.pt2", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
        target.writestr("net/data/constants/custom_obj_0", b"")
    with pytest.raises(LayerCollapseError, match="model: expected a file without pickled objects"):
        exported.build(str(tmp_path / "more.pt2"), WANTED)
    (tmp_path / "none.pt2").write_text("no archive")
    with pytest.raises(LayerCollapseError, match=r"model: expected a program of torch.export in .*none.pt2, got: "):
        exported.build(str(tmp_path / "none.pt2"), WANTED)


def test_the_example_that_a_program_keeps(file: Path) -> None:
    (kept,) = exported.example_inputs(exported.read(str(file)))
    assert kept.shape == (2, 1, 4, 4)


def test_inputs_of_a_program_without_an_example() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor, *, ids: torch.Tensor, times: int = 2) -> torch.Tensor:
            return times * x.mean() + ids.sum()

    auto = torch.export.Dim.AUTO
    sizes = {"x": {0: auto, 2: auto, 3: auto}, "ids": {0: auto}, "times": None}
    values = {"ids": torch.zeros(3, 5, dtype=torch.long), "times": 3}
    program = torch.export.export(Net(), (torch.randn(3, 1, 8, 8),), values, dynamic_shapes=sizes)
    program.example_inputs = None
    with pytest.raises(LayerCollapseError, match="input: expected the size of an image"):
        exported.example_inputs(program)
    example = exported.example_inputs(program, (1, 4, 6))
    assert list(example) == ["x", "ids", "times"]
    assert (example["x"].shape, example["ids"].shape, example["ids"].dtype) == ((2, 1, 4, 6), (2, 5), torch.int64)
