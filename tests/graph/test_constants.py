"""Values that a model's Python reads from its own tensors while it is captured."""

import pytest
import torch
from torch import nn

import layercollapse as lc


class Reads(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.first, self.last, self.how = nn.Linear(6, 8), nn.Linear(4, 3), how
        self.register_buffer("shape", torch.tensor([-1, 2, 4]))
        self.register_buffer("scale", torch.tensor(3))
        self.plain = torch.tensor([2, 4])

    def forward(self, x):
        return self.last(self.how(self, self.first(x).relu()).reshape(-1, 2, 4))


def conditional(model, y):
    return y * 2 if model.scale > 2 else y


def counting(model, y):
    model.scale += 1
    return y * int(model.scale)


def counting_afterwards(model, y):
    y = y * int(model.scale)
    model.scale += 1
    return y


def counting_in_a_view(model, y):
    model.shape[1:].add_(1)
    return y * int(model.shape[1])


CONSTANT = {
    "list": lambda model, y: y.reshape(tuple(model.shape.tolist())),
    "elements": lambda model, y: y.reshape([-1, *(int(size) for size in model.plain)]),
    "array": lambda model, y: y.reshape(tuple(model.shape.numpy())),
    "number": lambda model, y: y * model.scale.item(),
    "arithmetic": lambda model, y: y * int(model.shape[1:].prod() + model.scale),
    "condition": conditional,
    "slices": lambda model, y: y[:, : int(model.shape[2])].repeat(1, 2),
}
OTHER = {
    "data": lambda model, y: y * 2 if y.sum() > 0 else y,
    "counting": counting,
    "counting afterwards": counting_afterwards,
    "counting in a view": counting_in_a_view,
    "random": lambda model, y: y * float(torch.rand_like(model.plain.float()).sum()),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_constants_are_read(name):
    torch.manual_seed(0)
    model = Reads(CONSTANT[name]).double()
    x = torch.randn(5, 6).double()
    result = lc.collapse(model, x, cost="macs")
    assert result.max_abs_error < 1e-12
    x = torch.randn(9, 6).double()
    torch.testing.assert_close(result.model(x), model(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OTHER)
def test_what_is_no_constant_is_refused(name):
    torch.manual_seed(0)
    model = Reads(OTHER[name])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(lc.LayerCollapseError, match=r"^model: "):
        lc.collapse(model, torch.randn(5, 6), cost="macs")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
