"""Pruned weights are zero wherever they are read, with the optimizers that people use."""

import contextlib
import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import layercollapse as lc

optimizers = pytest.importorskip("pytorch_optimizer")

pytestmark = pytest.mark.usefixtures("seeded", "one_thread")


def network():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def batch():
    return torch.randn(16, 6), torch.randint(3, (16,))


class Trained:
    """A network, pruned by half after two steps of an optimizer, and what is not zero whenever its weights are read."""

    def __init__(self, make=lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1), train=None):
        self.model = network()
        self.pruner = lc.Pruner(self.model, torch.randn(2, 6))
        self.optimizer = make(self.model.parameters())
        self.train = train or simple
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()
        self.train(self.model, self.optimizer)
        self.train(self.model, self.optimizer)
        with contextlib.ExitStack() as stack:
            if hasattr(self.optimizer, "eval"):
                self.optimizer.eval()
                stack.callback(self.optimizer.train)
            with lc.EntropyProbe(self.model) as probe:
                self.model(torch.randn(32, 6))
            self.pruner.step(probe.report(), amount=0.5, rule="uniform")
        self.masks = self.pruner.masks()
        self.seen = []
        self.model[0].register_forward_pre_hook(lambda *_: self.seen.append(self.revived()))

    def revived(self, model=None):
        parameters = dict((model or self.model).named_parameters())
        return sum(int((parameters[name][~mask] != 0).sum()) for name, mask in self.masks.items())


def simple(model, optimizer):
    x, y = batch()
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def with_closure(model, optimizer):
    x, y = batch()

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)


def sam(model, optimizer):
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    optimizer.first_step(zero_grad=True)
    F.cross_entropy(model(x), y).backward()
    optimizer.second_step(zero_grad=True)


def scaled(model, optimizer):
    scaler = torch.amp.GradScaler("cpu")
    x, y = batch()
    optimizer.zero_grad()
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    scaler.step(optimizer)
    scaler.update()


def accumulated(model, optimizer):
    optimizer.zero_grad()
    # Two forward passes before the backward pass of both: it would refuse weights that were written in between.
    loss = sum(F.cross_entropy(model(x), y) for x, y in (batch(), batch()))
    loss.backward()
    optimizer.step()


CASES = {
    "sgd": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1), simple),
    "foreach": (lambda p: torch.optim.AdamW(p, 0.1, foreach=True), simple),
    "fused": (lambda p: torch.optim.AdamW(p, 0.1, fused=True), simple),
    "lbfgs": (lambda p: torch.optim.LBFGS(p, 0.1, max_iter=4, line_search_fn="strong_wolfe"), with_closure),
    "scaler": (lambda p: torch.optim.AdamW(p, 0.1), scaled),
    "accumulation": (lambda p: torch.optim.AdamW(p, 0.1), accumulated),
    "lookahead": (lambda p: optimizers.Lookahead(torch.optim.AdamW(p, 0.1), k=2), simple),
    "sam": (lambda p: optimizers.SAM(p, torch.optim.SGD, lr=0.1, momentum=0.9, rho=0.5), sam),
    "schedule-free": (lambda p: optimizers.ScheduleFreeAdamW(p, lr=0.1), simple),
    "schedule-free wrapper": (
        lambda p: optimizers.ScheduleFreeWrapper(torch.optim.SGD(p, lr=0.1), momentum=0.9),
        simple,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_zeros_where_weights_are_read(name):
    trained = Trained(*CASES[name])
    before = copy.deepcopy(trained.model.state_dict())
    with trained.pruner.attach(trained.optimizer):
        for _ in range(4):
            trained.train(trained.model, trained.optimizer)
        if hasattr(trained.optimizer, "eval"):
            trained.optimizer.eval()
            trained.model(torch.randn(2, 6))
    assert len(trained.seen) >= 4
    assert not any(trained.seen)
    assert trained.revived() == 0
    assert trained.pruner.density == 0.5
    assert not any(torch.equal(before[name], value) for name, value in trained.model.state_dict().items())


def test_without_it_weights_come_back_and_the_density_says_so():
    trained = Trained()
    assert trained.pruner.density == 0.5
    trained.train(trained.model, trained.optimizer)
    assert trained.pruner.density > 0.5
    total = sum(mask.numel() for mask in trained.masks.values())
    assert trained.pruner.density == pytest.approx(0.5 + trained.revived() / total)
    trained.pruner.apply()
    assert trained.pruner.density == 0.5


def test_averages_of_weights():
    trained = Trained()
    total = sum(mask.numel() for mask in trained.masks.values())
    with trained.pruner.attach():
        average = AveragedModel(trained.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        average.update_parameters(trained.model)
        before = {name: mask.clone() for name, mask in trained.pruner.masks().items()}
        with lc.EntropyProbe(trained.model) as probe:
            trained.model(torch.randn(32, 6))
        trained.pruner.step(probe.report(), amount=0.5, rule="uniform")
        trained.masks = trained.pruner.masks()
        assert (
            sum(int(mask.sum()) for mask in trained.masks.values())
            == total // 4
            < sum(int(mask.sum()) for mask in before.values())
        )
        trained.train(trained.model, trained.optimizer)
        average.update_parameters(trained.model)
        assert trained.revived(average.module) > 0  # what the average has of weights that were pruned since
        average(torch.randn(2, 6))
        assert trained.revived(average.module) == 0
    average.update_parameters(network())
    average(torch.randn(2, 6))
    assert trained.revived(average.module) > 0  # the hook of a copy has ended with that of the model
    trained.pruner.apply(average)
    assert trained.revived(average.module) == 0
    with pytest.raises(lc.LayerCollapseError, match=r"model: expected a copy of .* without the weights 0\.weight"):
        trained.pruner.apply(nn.ReLU())
    with pytest.raises(lc.LayerCollapseError, match=r"weight '0\.weight': expected the size"):
        trained.pruner.apply(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)))


def test_zero_redundancy(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'init'}", rank=0, world_size=1)
    try:
        trained = Trained(lambda p: ZeroRedundancyOptimizer(p, optimizer_class=torch.optim.AdamW, lr=0.1))
        model = nn.parallel.DistributedDataParallel(trained.model)
        with trained.pruner.attach(trained.optimizer):
            for _ in range(3):
                simple(model, trained.optimizer)
        assert trained.seen == [0, 0, 0]
        assert trained.revived() == 0
    finally:
        dist.destroy_process_group()


def test_it_ends_once_and_with_zeros():
    trained = Trained()
    handle = trained.pruner.attach(trained.optimizer)
    with torch.no_grad():
        trained.model[0].weight.fill_(1)
    handle.remove()
    assert trained.revived() == 0
    with torch.no_grad():
        trained.model[0].weight.fill_(1)
    handle.remove()
    assert trained.revived() > 0
    trained.model(torch.randn(2, 6))
    assert trained.revived() > 0


def test_a_handle_that_is_dropped_ends_with_the_model():
    trained = Trained()
    trained.pruner.attach(trained.optimizer)
    gc.collect()
    simple(trained.model, trained.optimizer)
    assert trained.revived() == 0
    model = weakref.ref(trained.model)
    del trained
    gc.collect()
    assert model() is None


def test_copies_and_pickles_of_the_model():
    trained = Trained()
    with trained.pruner.attach():
        twin = copy.deepcopy(trained.model)
        read = pickle.loads(pickle.dumps(network_with_hooks_of(trained.model)))
        assert torch.equal(read(torch.ones(1, 6)), trained.model(torch.ones(1, 6)))
        for model in (twin, trained.model):
            with torch.no_grad():
                model[0].weight.fill_(1)
            model(torch.randn(2, 6))
            assert trained.revived(model) == 0


def network_with_hooks_of(model):
    """A copy without the hook of the test, which cannot be pickled."""
    model = copy.deepcopy(model)
    model[0]._forward_pre_hooks.clear()
    return model


def test_compiled_exported_and_functional_calls():
    trained = Trained()
    model, x = trained.model, torch.randn(2, 6)
    model[0]._forward_pre_hooks.clear()
    expected = model(x)
    with trained.pruner.attach(trained.optimizer):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), expected)
        assert torch.equal(torch.export.export(model, (x,)).module()(x), expected)
        weights = {name: value.detach().clone() for name, value in model.named_parameters()}
        assert torch.equal(torch.func.functional_call(model, weights, (x,)), expected)
        stacked = {name: torch.stack([value, 2 * value]) for name, value in weights.items()}
        both = torch.func.vmap(lambda w: torch.func.functional_call(model, w, (x,)))(stacked)
        torch.testing.assert_close(both[0], expected)
        collapsed = lc.collapse(model.eval(), x, cost="macs").model
        torch.testing.assert_close(collapsed(x), expected)
        for _ in range(2):
            simple(compiled, trained.optimizer)
            assert trained.revived() == 0


def test_entropies_are_the_same_while_it_is_attached():
    trained = Trained()
    x = torch.randn(64, 6)

    def report():
        with lc.EntropyProbe(trained.model) as probe:
            trained.model(x)
            trained.model(x)
        return probe.report().to_json()

    before = report()
    with trained.pruner.attach():
        assert report() == before


@pytest.mark.parametrize("wrong", [[], 3, nn.ReLU()])
def test_what_is_no_optimizer(wrong):
    trained = Trained()
    with pytest.raises(lc.LayerCollapseError, match="optimizer: expected one with a step method"):
        trained.pruner.attach(wrong)
    assert not trained.model._forward_pre_hooks


def test_a_weight_that_has_become_computed_is_left_alone():
    trained = Trained()
    trained.model[0]._forward_pre_hooks.clear()
    handle = trained.pruner.attach(trained.optimizer)
    nn.utils.parametrizations.weight_norm(trained.model[0])
    simple(trained.model, torch.optim.SGD(trained.model.parameters(), 0.1))
    nn.utils.parametrize.remove_parametrizations(trained.model[0], "weight")
    handle.remove()
    assert trained.revived() == 0
