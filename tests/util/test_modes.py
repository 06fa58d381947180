"""Models whose `train` and `eval` do work: they are left bit for bit as they were."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import layercollapse as lc
from layercollapse._util.modes import evaluating
from layercollapse.graph.agreement import compare


class Adapted(nn.Linear):
    """A low-rank adapter that is merged into its weight for evaluation, as in loralib."""

    def __init__(self, inputs, outputs, rank=2):
        super().__init__(inputs, outputs)
        self.a = nn.Parameter(torch.randn(rank, inputs))
        self.b = nn.Parameter(torch.randn(outputs, rank))
        self.merged = False
        self.calls = []

    def train(self, mode=True):
        super().train(mode)
        if self.merged is mode:
            self.calls.append(mode)
            self.weight.data += (self.b @ self.a).data * (-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x):
        y = F.linear(x, self.weight, self.bias)
        return y if self.merged else y + x @ self.a.T @ self.b.T


class Moved(Adapted):
    """The same with new memory for the weight, and factors that do not train while they are merged."""

    def train(self, mode=True):
        nn.Module.train(self, mode)
        if self.merged is mode:
            self.weight.data = self.weight.data + (self.b @ self.a).data * (-1 if mode else 1)
            self.a.requires_grad_(mode)
            self.b.grad = None
            self.merged = not mode
        return self


class Fused(nn.Module):
    """Two branches that become one for good at the first evaluation, as re-parameterizable blocks do."""

    def __init__(self, inputs, outputs, rank=2):
        super().__init__()
        self.one, self.two = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)

    def eval(self):
        if hasattr(self, "one"):
            self.whole = nn.Linear(self.one.in_features, self.one.out_features)
            self.whole.weight.data = self.one.weight.data + self.two.weight.data
            self.whole.bias.data = self.one.bias.data + self.two.bias.data
            del self.one, self.two
        return super().eval()

    def train(self, mode=True):
        return super().train(mode) if mode else self.eval() if hasattr(self, "one") else super().train(mode)

    def forward(self, x):
        return self.whole(x) if hasattr(self, "whole") else self.one(x) + self.two(x)


def build(kind, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(kind(6, 8), nn.BatchNorm1d(8), nn.ReLU(), kind(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[1].bias.fill_(50.0)  # a rectifier that is always on
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
    return model


def state(model):
    """Everything that a model is, bits included."""
    bits = lambda x: x.detach().clone().view(torch.uint8)  # noqa: E731
    return {
        **{name: (id(p), p.data_ptr(), p.requires_grad, id(p.grad)) for name, p in model.named_parameters()},
        "bits": {name: bits(x.reshape(-1)).tolist() for name, x in model.state_dict().items()},
        "modes": [(name, id(module), module.training) for name, module in model.named_modules()],
        "flags": [getattr(module, "merged", None) for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


MODES = {
    "training": lambda model: model.train(),
    "evaluating": lambda model: model.eval(),
    "frozen norm": lambda model: model.train()[1].eval(),
    "frozen adapter": lambda model: model.train()[0].eval(),
    "one layer trains": lambda model: model.eval()[0].train(),
}
KINDS = pytest.mark.parametrize("kind", [Adapted, Moved, Fused])


@KINDS
@pytest.mark.parametrize("mode", MODES)
def test_a_model_is_left_as_it_was(kind, mode):
    if kind is Fused and mode in ("evaluating", "frozen adapter", "one layer trains"):
        pytest.skip("fusing cannot be undone")
    model, x = build(kind).double(), torch.randn(16, 6).double()
    MODES[mode](model)
    before = state(model)
    lc.capture(model, x)
    assert state(model) == before
    result = lc.collapse(model, x, cost="macs")
    assert state(model) == before
    compare(model, result.model, [x])
    assert state(model) == before
    assert result.max_abs_error < 1e-10
    model.eval()
    torch.testing.assert_close(result.model(x), model(x), atol=1e-10, rtol=0)


@KINDS
def test_a_model_is_left_as_it_was_by_a_block_that_fails(kind):
    model = build(kind).train()
    before = state(model)

    def fails():
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert state(model) == before
    with pytest.raises(lc.LayerCollapseError, match="example_inputs"):
        lc.capture(model, torch.randn(4, 5))
    assert state(model) == before


def test_a_model_that_evaluates_is_not_told_to():
    model = build(Adapted).eval()
    told = [list(module.calls) for module in (model[0], model[3])]
    lc.collapse(model, torch.randn(8, 6), cost="macs")
    assert [model[0].calls, model[3].calls] == told == [[False], [False]]


def test_a_module_inside_two_others_keeps_its_mode():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared))
    model.train()
    model[1].training = False
    with evaluating(model):
        pass
    assert [model[0].training, model[1].training, shared.training] == [True, False, True]


def test_what_a_forward_pass_leaves_in_a_module_is_gone():
    class Caches(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.seen, self.table = nn.Linear(4, 4), 0, None

        def forward(self, x):
            self.seen += 1
            if self.table is None:
                self.table = torch.arange(4.0)
            return self.linear(x + self.table).relu()

    model = Caches()
    lc.collapse(model, torch.randn(3, 4), cost="macs")
    assert model.table is None
    assert model.seen == 0


def test_a_negative_zero_stays_one():
    class Unmerges(nn.Linear):
        def train(self, mode=True):
            self.weight.data += 1.0 if not mode else -1.0
            return super().train(mode)

    model = Unmerges(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-0.0, 0.1, 1e-9], [torch.nan, -torch.inf, 3.0]]))
    before = state(model)
    with evaluating(model):
        pass
    assert state(model) == before


def test_pruned_weights_stay_so_when_adapters_are_merged():
    model, x = build(Adapted).train(), torch.randn(16, 6)
    pruner = lc.Pruner(model, x)
    with lc.EntropyProbe(model) as probe:
        model(x)
    pruner.step(probe.report(), amount=0.5, rule="global")
    zeros = {name: model.get_parameter(name).eq(0) for name in ("0.weight", "3.weight")}
    assert sum(int(zero.sum()) for zero in zeros.values()) > 30
    assert all(bool(zero.eq(~pruner.masks()[name]).all()) for name, zero in zeros.items())
    assert not model[0].merged


def test_a_run_saves_and_prunes_weights_without_their_adapters(tmp_path):
    model = build(Adapted).train()
    nn.init.zeros_(model[1].bias)
    batches = [torch.randn(32, 6) for _ in range(2)]
    merged = []

    def train(model):
        merged.append(model[0].merged)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for x in batches:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    def evaluate(model):
        merged.append(getattr(model.get_submodule("0"), "merged", None))
        return 50.0

    result = lc.run(model, train=train, evaluate=evaluate, data=batches, steps=1, rule="uniform", out=tmp_path / "run")
    # A trial on the collapsed model; train; evaluate and test, dense; train again.
    assert merged[:5] == [None, False, True, True, False]
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "run/checkpoints/step-01.safetensors")
    for name in ("0.weight", "3.weight"):
        assert 0.4 < float(saved[name].eq(0).float().mean()) < 0.6
    assert result.collapse.max_abs_error < 1e-4


def test_accuracy_leaves_frozen_norms_frozen():
    from layercollapse.zoo import train
    from layercollapse.zoo.data.split import Split

    model = build(Adapted).train()
    model[1].eval()
    before = state(model)
    train.accuracy(model, Split(torch.randn(5, 6), torch.zeros(5, dtype=torch.int64)))
    assert state(model) == before
