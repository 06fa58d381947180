"""Pruning under FSDP2 and DistributedDataParallel in real processes: what one process does, on any number of them."""

import weakref

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import layercollapse as lc
import processes
from layercollapse import LayerCollapseError


class Network(nn.Module):
    """A convolution with a batch norm, a skip, a tied weight, and layers of uneven sizes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU())
        self.first, self.second = nn.Linear(80, 7), nn.Linear(7, 7)
        self.third = nn.Linear(7, 7)
        self.third.weight = self.second.weight
        self.last = nn.Linear(7, 3)

    def forward(self, x):
        x = F.relu(self.first(self.stem(x).flatten(1)))
        x = F.relu(self.second(x)) + x
        return self.last(F.relu(self.third(x)))


def network():
    torch.manual_seed(0)
    return Network()


def images(count=4, seed=1):
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def measured(model, x, group=None):
    with torch.no_grad(), lc.EntropyProbe(model, group=group) as probe:
        model(x)
    return probe.report()


def itself():
    """The process group of this process alone, whose counts are not added to those of others."""
    return dist.new_subgroups(1)[0] if dist.is_initialized() else None


STEPS = [("nepenthe", 0.3), ("global", 0.3), ("egp", 40), ("uniform", 0.5)]


def pruned(model, steps=STEPS, **options):
    """The masks, and what each step says, of a model before and after a little training."""
    x, results = images(), []
    report, pruner = measured(model, x), lc.Pruner(model, x, **options)
    for number, (rule, amount) in enumerate(steps):
        step = pruner.step(report, amount, rule)
        results.append((step.removed_by_weight, step.floors, step.density))
        if number == 0:
            optimizer = torch.optim.Adam(model.parameters(), 0.1, weight_decay=0.1)
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            with pruner.attach(optimizer):
                for _ in range(3):
                    model(x).square().mean().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                assert pruner.density == step.density
                model(x)
            assert pruner.density == step.density
            with torch.no_grad():  # gradients of several ranks are sums in another order
                for name, p in model.named_parameters():
                    p.copy_(before[name])
            pruner.apply()
    return results, pruner.state_dict(), pruner


def sharded(size, way="by module"):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import Shard

    options = {
        "by module": {},
        "gathered until the backward pass": {"reshard_after_forward": False},
        "in bfloat16": {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)},
        "by the last dimension": {"shard_placement_fn": lambda p: Shard(p.ndim - 1) if p.shape[-1] == 80 else None},
    }
    if way == "replicas of shards":
        options[way] = {"mesh": init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("replicas", "shards"))}
    model = network()
    fully_shard(model.stem, **options[way])
    fully_shard(model, **options[way])
    return model


def on_ranks(rank, size, way):
    results, state, pruner = pruned(sharded(size, way))
    masks = {name: mask.full_tensor() for name, mask in pruner.masks().items()}
    return results, state, masks


WAYS = [(1, "by module"), (2, "by module"), (3, "by module"), (4, "by module"), (4, "replicas of shards")]
WAYS += [(2, "gathered until the backward pass"), (2, "by the last dimension")]


@pytest.mark.long
@pytest.mark.parametrize(("size", "way"), WAYS)
def test_fsdp_prunes_what_one_process_does(size, way):
    expected, state, pruner = pruned(network())
    for got, its_state, masks in processes.run(size, on_ranks, size, way):
        assert got == expected
        assert its_state.keys() == state.keys()
        assert all(torch.equal(its_state[name], state[name]) for name in state)
        assert all(torch.equal(masks[name], mask) for name, mask in pruner.masks().items())


def loading(rank, size, state):
    pruner = lc.Pruner(sharded(size), images(), keep_zeros=True)
    pruner.load_state_dict(state)
    weights = {name: pruner.model.get_parameter(name).full_tensor() for name in pruner.masks()}
    restored = pruner.state_dict()
    wrong = dict(state) if rank else state | {"first.weight": torch.zeros(3, dtype=torch.uint8)}
    other = state if rank == size - 1 else state | {"first.weight": torch.zeros_like(state["first.weight"])}
    errors = []
    for bad in (wrong, other):
        with pytest.raises(LayerCollapseError) as raised:
            pruner.load_state_dict(bad)
        errors.append(str(raised.value))
    unchanged = pruner.state_dict()
    return weights, restored, errors, all(torch.equal(unchanged[name], state[name]) for name in state), pruner.density


@pytest.mark.long
def test_a_state_fits_any_number_of_ranks():
    _, state, pruner = pruned(network(), STEPS[:1])
    for size in (2, 4):
        for rank, (weights, restored, errors, unchanged, density) in enumerate(
            processes.run(size, loading, size, state)
        ):
            assert all(torch.equal(restored[name], state[name]) for name in state)
            assert all(torch.equal(weights[name] != 0, mask) for name, mask in pruner.masks().items())
            assert ("" if rank == 0 else "rank 0: ") + "mask of 'first.weight': expected uint8 (70,)" in errors[0]
            assert "masks in state: expected the same on all ranks" in errors[1]
            assert errors[1].endswith("for first.weight")
            assert unchanged
            assert density == pruner.density
        state = restored  # from 2 ranks to 4, and back to one
    alone = lc.Pruner(network(), images(), keep_zeros=True)
    alone.load_state_dict(state)
    assert all(torch.equal(alone.masks()[name], mask) for name, mask in pruner.masks().items())


def differing(rank, size):
    x, errors = images(), []

    def refused(pruner, report, *arguments):
        before = pruner.state_dict()
        with pytest.raises(LayerCollapseError) as raised:
            pruner.step(report, *arguments)
        assert all(torch.equal(mask, before[name]) for name, mask in pruner.state_dict().items())
        errors.append(str(raised.value))

    model = nn.parallel.DistributedDataParallel(network())
    report, pruner = measured(model, x), lc.Pruner(model, x)
    refused(pruner, measured(model, images(seed=rank), itself()))
    refused(pruner, report, 0.5 if rank else 0.4)
    refused(pruner, report if rank else None)
    refused(pruner, report, 0.5, lambda layers, amount: {layer.name: 1 + rank for layer in layers})
    with torch.no_grad():  # as large a sum, other weights
        weight = model.module.first.weight
        weight.copy_(weight.flip(1) if rank else weight)
    refused(pruner, report, 0.5, "uniform")
    with torch.no_grad():
        model.module.first.weight[0, 0] = rank
    refused(lc.Pruner(model, x), report)
    same = lc.Pruner(nn.parallel.DistributedDataParallel(network()), x)
    same.step(report)
    alone = lc.Pruner(network(), x, group=itself())
    alone.step(report, 0.4 if rank else 0.5)
    return errors, same.density, alone.density


@pytest.mark.long
def test_ranks_that_differ_are_an_error_on_all_of_them():
    (errors, density, first), (other, *_) = processes.run(2, differing, 2)
    for number, what in ((0, "step"), (1, "step"), (3, "weights to remove"), (4, "masks"), (5, "masks")):
        assert errors[number] == other[number]
        expected = f"{what}: expected the same on all ranks, got others on rank 1 than on rank 0 for "
        assert errors[number].startswith(expected)
    names = [error.rpartition(" ")[2] for error in errors]
    assert (names[0], names[1], names[3], names[4], names[5]) == (
        "stem.2",
        "amount",
        "stem.2",
        "first.weight",
        "first.weight",
    )
    assert "report: expected an EntropyReport, got NoneType" in errors[2]
    assert other[2] == f"rank 0: {errors[2]}"
    assert density == first == pruned(network(), [("nepenthe", 0.5)])[2].density


def later(rank, size):
    model, x = network(), images()
    report, captured, pruner = measured(model, x), lc.capture(model, x), lc.Pruner(model, x)
    pruner.step(report, 0.3)
    if size > 1:
        from torch.distributed.fsdp import fully_shard

        early = pruner.attach()
        fully_shard(model)
        with pytest.raises(LayerCollapseError, match="attach: expected it to be called after fully_shard"):
            model(x)
        early.remove()
    first = lc.Pruner(model, x, captured=captured).state_dict()
    pruner.step(report, 0.4)
    return first, pruner.state_dict()


@pytest.mark.long
def test_a_model_may_be_sharded_after_its_pruner_and_its_capture_are_made():
    expected = later(0, 1)
    for got in processes.run(2, later, 2):
        for mine, one in zip(got, expected, strict=True):
            assert all(torch.equal(mine[name], one[name]) for name in one)


def gathering(rank, size):
    """The sizes of what is gathered in a step, and how many weights of it are there at a time."""
    from torch.distributed.tensor import DTensor

    model, x = sharded(size), images()
    report, pruner = measured(model, x), lc.Pruner(model, x)
    alive, most, gather = [], [], DTensor.full_tensor

    def watched(tensor, **options):
        full = gather(tensor, **options)
        if full.ndim > 1:
            alive.append((weakref.ref(full.untyped_storage()), full.nbytes))
            most.append(sum(nbytes for storage, nbytes in alive if storage() is not None))
        return full

    with pytest.raises(RuntimeError), pruner.attach():  # FSDP2 thinks that it is still running
        model(x[:, :2])
    DTensor.full_tensor = watched
    pruner.step(report, 0.5)
    pruner.state_dict()
    return max(most), sum(nbytes for _, nbytes in alive)


@pytest.mark.long
def test_no_rank_gathers_more_than_one_weight_at_a_time():
    for most, everything in processes.run(2, gathering, 2):
        assert most == 80 * 7  # bools of the largest
        assert everything > 2 * most


def collapsing(rank, size, state):
    x = images()
    model = sharded(size).eval() if size > 1 else network().eval()
    pruner = lc.Pruner(model, x, keep_zeros=True)
    pruner.load_state_dict(state)
    kept = dict(model.named_parameters()) | {"hooks": len(model._forward_pre_hooks)}
    report = measured(model, x, itself())
    result = lc.collapse(model, x, report, data=[(x,)], cost="macs", captured=pruner.capture)
    assert kept == dict(model.named_parameters()) | {"hooks": len(model._forward_pre_hooks)}
    outputs = model(x).detach()  # as before
    try:
        lc.collapse(model, x, data=[(x[:, :, :3],)], cost="macs")
    except LayerCollapseError as error:
        message = str(error)
    if rank:
        return result, outputs, message
    return result.model.state_dict(), result.model(x), result.explain(), outputs, message


@pytest.mark.long
def test_collapse_gives_the_first_rank_the_network_of_one_process():
    model, x = network().eval(), images()
    pruner = lc.Pruner(model, x)
    pruner.step(measured(model, x), 0.8)
    state, outputs, said, _, message = collapsing(0, 1, pruner.state_dict())
    first, *others = processes.run(3, collapsing, 3, pruner.state_dict())
    its_state, its_outputs, it_said, of_model, its_message = first
    assert its_state.keys() == state.keys()
    assert all(torch.equal(its_state[name], state[name]) for name in state)
    assert torch.equal(its_outputs, outputs)
    assert (it_said, its_message) == (said, message)
    assert torch.allclose(its_outputs, of_model, atol=1e-4)
    for result, outputs_there, message_there in others:
        assert result is None
        assert torch.equal(outputs_there, of_model)
        assert message_there == f"rank 0: {message}"


def perceptron(hidden=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 5), nn.ReLU(), nn.Linear(5, 2))


def vectors():
    return torch.randn(10, 6, generator=torch.Generator().manual_seed(3))


def tensor_parallel(rank, hidden, local):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model, mesh = perceptron(hidden), init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(use_local_output=local), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["data"])
    try:
        report, pruner = measured(model, vectors(), itself()), lc.Pruner(model, vectors())
        pruner.step(report, 0.4)
        pruner.step(report, 0.4, "global")
    except LayerCollapseError as error:
        return str(error)
    return {layer.name: layer.counts for layer in report}, pruner.state_dict()


@pytest.mark.long
def test_tensor_parallel_weights_that_are_sharded_again():
    model = perceptron()
    report, pruner = measured(model, vectors()), lc.Pruner(model, vectors())
    pruner.step(report, 0.4)
    pruner.step(report, 0.4, "global")
    for counts, state in processes.run(4, tensor_parallel, 8, False):
        assert all(torch.equal(counts[layer.name], layer.counts) for layer in report)
        assert state.keys() == pruner.state_dict().keys()
        assert all(torch.equal(state[name], mask) for name, mask in pruner.state_dict().items())
    for error in processes.run(4, tensor_parallel, 8, True):
        assert "'1' is relu with 8 neurons in it, relu with 4 neurons in the report" in error
    for error in processes.run(4, tensor_parallel, 10, False):
        assert "weight '0.weight': expected one whose ranks hold a block each, got (10, 6) with the placements" in error
        assert "_StridedShard(dim=0, sf=2), Shard(dim=0)" in error
