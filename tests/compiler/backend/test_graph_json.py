"""A graph as JSON: what a file may name, and nothing else from a damaged or hostile one."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import layercollapse as lc


class OfLength(nn.Module):
    """Computes with the length of a sequence."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(4, 4), function

    def forward(self, x):
        return self.linear(x) * self.function(x.shape[1])


OF_LENGTH = {
    "quotient": lambda n: 1 / n,
    "min": lambda n: min(n, 7) / 2,
    "max": lambda n: max(n, 6) / 2,
    "power": lambda n: n**2,
    "root": lambda n: n**-0.5,
    "floor": lambda n: math.floor(n / 2),
    "ceil": lambda n: math.ceil(n / 2),
    "remainder": lambda n: n % 3,
    "sum": lambda n: -n + n // 2,
    "round": lambda n: round(n / 3),
}


UNWRITTEN = ("floor", "ceil", "round")


@pytest.mark.parametrize("name", OF_LENGTH)
def test_functions_of_a_length(name: str, tmp_path: Path) -> None:
    model = OfLength(OF_LENGTH[name]).double().eval()
    result = lc.collapse(model, torch.randn(2, 5, 4).double(), None, cost="macs")
    # torch has no file for three of them but one of the example's length, and then `save` says so.
    says = pytest.warns(UserWarning, match="of other sizes") if name in UNWRITTEN else contextlib.nullcontext()
    with says:
        result.save(tmp_path)
    exported = torch.export.load(tmp_path / "model.pt2").module()
    assert result.fixed_sizes == {}
    for length in (5, 3, 9):
        x = torch.randn(3, length, 4).double()
        for other in (result.model, lc.load(tmp_path), *([exported] if length == 5 or name not in UNWRITTEN else [])):
            torch.testing.assert_close(other(x), model(x), rtol=0, atol=1e-12)


def test_what_no_file_may_name_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    result = lc.collapse(nn.Linear(2, 2).eval(), torch.ones(1, 2))
    output = next(node for node in result.model.graph.nodes if node.op == "output")
    with result.model.graph.inserting_before(output):
        output.args = (result.model.graph.call_function(torch.erf, output.args),)
    result.model.recompile()
    with pytest.raises(lc.LayerCollapseError, match=r"model: expected operations that a file may name, got .*erf"):
        result.save(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), "no layercollapse.model file"),
        (lambda d: d.update(version=99), "version is 99"),
        (lambda d: d["nodes"][-2].update(op="call_function", target="os.system"), "os.system"),
        (lambda d: d["nodes"][-2].update(op="call_function", target="aten.from_file.default"), "aten.from_file"),
        (lambda d: d["nodes"][-2].update(op="call_function", target="aten.relu_.default"), "aten.relu_"),
        (lambda d: d["nodes"][0].update(name="x; import os"), "import os"),
        (lambda d: d["nodes"][0].update(target="x=__import__('os')"), "__import__"),
        (lambda d: d["modules"].update({"a.__class__": {"type": "ReLU"}}), "__class__"),
        (lambda d: d["modules"].update(a={"type": "Sequential"}), "Sequential"),
        (lambda d: d["modules"]["head"].update(in_features=10**9), "head.weight"),
        (lambda d: d["nodes"][-1].update(args={"tuple": [{"node": "nothing"}]}), "nothing"),
        (lambda d: d["nodes"][-1].update(args=[]), "no tuple"),
        (lambda d: d["nodes"][-2].update(args="x"), "no tuple"),
        (lambda d: d["nodes"][-2].update(kwargs=[]), "no tuple and dict"),
        (lambda d: d["nodes"][-2].update(kwargs={"dict": {"x=1)\nimport os\nf(y": 1}}), "argument named"),
        (lambda d: d["nodes"][-2].update(kwargs={"dict": {"if": 1}}), "argument named 'if'"),
        (lambda d: d["nodes"][-2].update(kwargs={"items": [[1, 1]]}), "argument named 1"),
        (lambda d: d["nodes"][-1].update(args={"tuple": [{"items": [[{"node": "x"}, 1]]}]}), "is damaged"),
        (lambda d: d["nodes"][-1].update(args={"tuple": [{"items": [[{"device": "cpu"}, 1]]}]}), "a key device"),
        (lambda d: d["nodes"][-1].update(args={"tuple": [{"items": [[[1], 1]]}]}), "with a key"),
        (lambda d: d["nodes"][-2].update(op="call_function", target="math.__loader__"), "math.__loader__"),
        (lambda d: d["nodes"][-2].update(op="call_function", target="builtins.eval"), "builtins.eval"),
    ],
)
def test_hostile_json(saved: tuple[Path, nn.Module, torch.Tensor], tmp_path: Path, change, message: str) -> None:
    folder, _, _ = saved
    described = json.loads((folder / "model.json").read_text())
    change(described)
    (tmp_path / "model.json").write_text(json.dumps(described))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(lc.LayerCollapseError, match=message):
        lc.load(tmp_path)


def test_fuzzed_json(saved: tuple[Path, nn.Module, torch.Tensor], tmp_path: Path) -> None:
    """Any change of any byte loads, or raises the package's own error."""
    folder, _, _ = saved
    whole = (folder / "model.json").read_bytes()
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, len(whole) - 1), st.binary(min_size=0, max_size=6), st.integers(0, 20))
    def run(position: int, new: bytes, gone: int) -> None:
        (tmp_path / "model.json").write_bytes(whole[:position] + new + whole[position + gone :])
        with contextlib.suppress(lc.LayerCollapseError):
            lc.load(tmp_path)

    run()
