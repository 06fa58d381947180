"""Containers of outputs in a file: by name among those that are permitted, and nothing else."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

import layercollapse as lc
from layercollapse.compiler.backend.containers import describe, is_plain, plain, rebuild


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Both:
    a: Any
    b: Any = None
    c: Any = None


pytree.register_dataclass(Both)

VALUES: dict[str, tuple[Any, bool, Any]] = {
    "plain": ((1, [2, {"a": 3, (1, None): 4}], {}), True, (1, [2, {"a": 3, "(1, None)": 4}], {})),
    "ordered": (OrderedDict(b=1, a=2), False, {"b": 1, "a": 2}),
    "default": (defaultdict(list, a=1), False, {"a": 1}),
    "named tuple": ([Pair(1, (2,))], False, [(1, (2,))]),
    "dataclass": (Both(1, None, Pair(2, 3)), False, {"a": 1, "c": (2, 3)}),
    "class of torch": (torch.return_types.max((1, 2)), False, (1, 2)),
}


def identity(x: Any) -> Any:
    return x


@pytest.mark.parametrize("name", VALUES)
def test_there_and_back(name: str) -> None:
    value, simple, without_classes = VALUES[name]
    leaves, spec = pytree.tree_flatten(value)
    assert is_plain(spec) == simple
    assert plain(spec, leaves) == without_classes
    again = rebuild(json.loads(json.dumps(describe(spec, str))), identity, [Pair, Both])
    made = pytree.tree_unflatten(leaves, again)
    assert type(made) is type(value)
    assert repr(made) == (repr(value) if name != "plain" else repr(without_classes))


def test_a_class_that_is_not_at_hand_is_plain_and_says_so() -> None:
    for value, expected in ((Pair(1, 2), (1, 2)), (Both(1, None, 3), {"a": 1, "c": 3})):
        leaves, spec = pytree.tree_flatten(value)
        with pytest.warns(UserWarning, match=rf"{type(value).__qualname__}, which is not at hand: they are a plain"):
            again = rebuild(describe(spec, str), identity, [])
        assert pytree.tree_unflatten(leaves, again) == expected


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "transformers.pipelines.pipeline",
        "transformers.utils.ModelOutput",
        "transformers.models.bert.modeling_bert.BertModel",
        "transformers.modeling_outputs.torch",
        "transformers.modeling_outputs...os.Output",
        "antigravity.Output",
    ],
)
def test_a_file_cannot_name_anything_else(name: str) -> None:
    for described in ({name: {"args": "leaf"}, "as": "dict"}, {name: {"0": "leaf"}, "as": "tuple"}):
        with pytest.warns(UserWarning, match="not at hand"):
            assert pytree.tree_unflatten([1], rebuild(described, identity, [])) in ({"args": 1}, (1,))
    with pytest.raises(KeyError):
        rebuild({name: ["leaf"]}, identity, [])


@pytest.mark.parametrize("name", ["pytree_register_structseq", "__builtins__", "__name__", "__loader__", "inspect"])
def test_what_torch_has_beside_its_classes_of_outputs_is_not_called(name: str) -> None:
    with pytest.raises((lc.LayerCollapseError, KeyError)):
        rebuild({f"torch.return_types.{name}": ["leaf"]}, identity, [])


def test_without_transformers_its_classes_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "transformers.modeling_outputs.SequenceClassifierOutput"
    described = {name: {"logits": "leaf"}, "as": "dict"}
    for module in ("transformers", "transformers.modeling_outputs", "transformers.utils"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.warns(UserWarning, match=f"{name}, which is not at hand: they are a plain dict"):
        spec = rebuild(described, identity, [])
    assert pytree.tree_unflatten([1], spec) == {"logits": 1}


def test_with_transformers_its_classes_are_its_own() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    described = {"transformers.modeling_outputs.SequenceClassifierOutput": {"logits": "leaf"}, "as": "dict"}
    made = pytree.tree_unflatten([torch.ones(1)], rebuild(described, identity, []))
    assert type(made) is outputs.SequenceClassifierOutput
    assert list(made) == ["logits"]


def test_a_constructor_that_moves_its_parts_is_refused() -> None:
    class Swapped(Pair):
        def __new__(cls, first: Any, second: Any) -> Swapped:
            return super().__new__(cls, second, first)

    name = f"{Swapped.__module__}.{Swapped.__qualname__}"
    with pytest.raises(lc.LayerCollapseError, match="in order"):
        rebuild({name: {"first": "leaf", "second": "leaf"}, "as": "tuple"}, identity, [Swapped])


class Gives(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.make = nn.Linear(4, 4), make

    def forward(self, x):
        return self.make(self.layer(x).relu())


def test_a_model_of_classes_in_a_folder_with_a_dot(tmp_path: Path) -> None:
    model, x = Gives(lambda y: Both(a=Pair(y, [2 * y]), c={3: y})).eval(), torch.randn(3, 4)
    result = lc.collapse(model, x, None, cost="macs")
    folder = tmp_path / "small.v2"
    result.save(folder)
    for other in (result.model, lc.load(folder, classes=[Both, Pair]), lc.load(folder / "model.json", [Pair, Both])):
        got, expected = other(x), model(x)
        assert type(got) is Both
        assert type(got.a) is Pair
        torch.testing.assert_close(got.a.second[0], expected.a.second[0])
        torch.testing.assert_close(got.c[3], expected.c[3])
    with pytest.warns(UserWarning, match=r"Both, which is not at hand"):
        got = lc.load(folder)(x)
    assert list(got) == ["a", "c"]
    exported = torch.export.load(folder / "model.pt2").module()(x)
    torch.testing.assert_close(exported["a"][1][0], model(x).a.second[0])
    with pytest.raises(lc.LayerCollapseError, match="classes: expected a list of classes"):
        lc.load(folder, classes=Both)  # type: ignore[arg-type]


def test_a_container_that_no_call_makes_is_refused_by_the_file_alone(tmp_path: Path) -> None:
    class Odd:
        def __init__(self, x: Any) -> None:
            self.x = x

    pytree.register_pytree_node(Odd, lambda odd: ([odd.x], None), lambda leaves, _: Odd(leaves[0]))
    try:
        model, x = Gives(Odd).eval(), torch.randn(3, 4)
        result = lc.collapse(model, x, None, cost="macs")
        torch.testing.assert_close(result.model(x).x, model(x).x)
        with pytest.raises(lc.LayerCollapseError, match=r"containers that a file may name .* got .*Odd"):
            result.save(tmp_path / "new")
        assert not (tmp_path / "new").exists()
    finally:
        pytree._deregister_pytree_node(Odd)
