"""Every tensor that a state dict may hold, on disk and back."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline import checkpoint
from layercollapse.prune.pruner import Pruner


class Odd(nn.Module):
    def __init__(self, extra=None):
        super().__init__()
        self.fc, self.head = nn.Linear(4, 6), nn.Linear(6, 4)
        self.tied = nn.Linear(6, 4)
        self.tied.weight = self.head.weight
        self.register_buffer("mask", torch.rand(1, 3).expand(5, 3))
        self.register_buffer("still", torch.rand(1, 3).expand(5, 3), persistent=False)
        self.register_buffer("turned", torch.rand(3, 5).t())
        self.register_buffer("part", torch.rand(9)[2:5])
        self.register_buffer("wave", torch.randn(3, dtype=torch.complex128))
        self.register_buffer("conj", torch.randn(3, dtype=torch.complex64).conj())
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("none", torch.empty(0, 3))
        self.register_buffer("nan", torch.tensor([float("nan"), -0.0]))
        self.extra = extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state

    def forward(self, x):
        return self.head(torch.relu(self.fc(x))) + self.tied(torch.relu(self.fc(x)))


EXTRA = {"scale": 0.5, "history": [1, 2, {"a": None}], "on": True, "name": "é"}


@pytest.mark.parametrize("extra", [EXTRA, None, torch.tensor([1.0, 2.0])], ids=["dict", "none", "tensor"])
@pytest.mark.parametrize("flat", [False, True])
def test_a_state_comes_back_bit_by_bit(tmp_path, extra, flat):
    torch.manual_seed(0)
    model, other = Odd(extra), Odd(None)
    if flat:  # all parameters are views of one vector then
        vector_to_parameters(parameters_to_vector(model.parameters()), model.parameters())
    pruner = Pruner(model, torch.randn(2, 4))
    checkpoint.check(tmp_path / "try", model, pruner)
    checkpoint.save(tmp_path, 3, model, pruner)
    checkpoint.load(tmp_path, 3, other, Pruner(other, torch.randn(2, 4)))
    assert other.mask.stride() == (3, 1)
    assert other.still.stride()[0] == 0
    for name, value in model.state_dict().items():
        got = other.state_dict()[name]
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(got, value, rtol=0, atol=0, equal_nan=True)
        else:
            assert got == value
    assert other.head.weight is other.tied.weight
    assert (extra is EXTRA) <= (other.extra == EXTRA)


def test_a_tied_weight_is_stored_once(tmp_path):
    model = Odd()
    checkpoint.save(tmp_path, 0, model, Pruner(model, torch.randn(2, 4)))
    with checkpoint.safetensors.safe_open(checkpoint.path(tmp_path, 0), framework="pt") as file:
        assert {"head.weight", "tied.weight"} - {*file.keys()} == {"tied.weight"}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"a": (1, 2)}, "got a dict for '_extra_state'"),
        ({1: 2}, "got a dict for '_extra_state'"),
        ({"a": float("nan")}, "got a dict for '_extra_state'"),
        ({"a": torch.zeros(2)}, "got a dict for '_extra_state'"),
        (object(), "got a object for '_extra_state'"),
    ],
    ids=["tuple", "key", "nan", "tensor", "object"],
)
def test_extra_state_that_would_come_back_as_something_else(tmp_path, extra, message):
    model = Odd(extra)
    with pytest.raises(LayerCollapseError, match="model: expected extra state that JSON holds .* " + message):
        checkpoint.check(tmp_path, model, Pruner(model, torch.randn(2, 4)))


def test_a_sparse_buffer_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    pruner = Pruner(model, torch.randn(2, 4))
    model[0].register_buffer("graph", torch.eye(3).to_sparse())
    with pytest.raises(LayerCollapseError, match=r"model: expected dense tensors to save, got .* for '0\.graph'"):
        checkpoint.save("nowhere", 0, model, pruner)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    ],
    ids=["plain", "state_dict", "parallel", "compiled"],
)
def test_weights_of_a_training_script(tmp_path, wrap):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    torch.save(wrap(model.state_dict()), tmp_path / "w.pt")
    checkpoint.load_weights(tmp_path / "w.pt", other)
    assert torch.equal(model.weight, other.weight)


def test_weights_as_safetensors_and_what_is_refused(tmp_path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    checkpoint.safetensors.torch.save_model(model, str(tmp_path / "w.safetensors"))
    checkpoint.load_weights(tmp_path / "w.safetensors", other)
    assert torch.equal(model.weight, other.weight)
    torch.save(model, tmp_path / "pickled.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text").write_text("nothing")
    torch.save(nn.Linear(4, 2).state_dict(), tmp_path / "wide.pt")
    before = other.weight.clone()
    for name in ("pickled.pt", "list.pt", "text", "missing", "wide.pt"):
        with pytest.raises(LayerCollapseError, match=rf"weights: expected safetensors, or a state dict .*{name}'"):
            checkpoint.load_weights(tmp_path / name, other)
    assert torch.equal(other.weight, before)
