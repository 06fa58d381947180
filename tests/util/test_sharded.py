import pytest
import torch
from torch import nn

import layercollapse as lc
import processes
from layercollapse import LayerCollapseError
from layercollapse._util import sharded
from layercollapse._util.modes import evaluating


def test_a_plain_model_is_left_alone():
    model = nn.Linear(3, 2)
    own = dict(model.named_parameters())
    assert not sharded.is_sharded(model.weight)
    assert sharded.whole(model.weight) is sharded.local(model.weight) is model.weight
    assert sharded.plain_type(model) is nn.Linear
    sharded.reshard(model)
    with sharded.plain(model, sharded.hollow):
        assert all(value is own[name] for name, value in model.named_parameters())


def hollow(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    value = torch.zeros(4, 3, dtype=torch.bfloat16)
    like = distribute_tensor(value, init_device_mesh("cpu", (1,)), [Shard(0)])
    empty = sharded.hollow(like)
    assert (empty.shape, empty.dtype, empty.stride()) == (like.shape, like.dtype, like.stride())
    assert empty.untyped_storage().size() == 0
    assert sharded.hollow(value) is value


def plain(rank):
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = nn.Parameter(model[2].weight.data)
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append(1))
    x = torch.randn(5, 3)
    expected = model(x)
    fully_shard(model[0])
    fully_shard(model)
    assert sharded.plain_type(model) is nn.Sequential
    assert torch.equal(model(x), expected)  # leaves the outer parameters gathered
    with torch.no_grad():
        model(x)
    hooks = [dict(module._forward_pre_hooks) for module in model.modules()]
    with sharded.plain(model, lambda p: nn.Parameter(p.full_tensor())):
        assert [type(module) for module in model.modules()] == [nn.Sequential, nn.Linear, nn.ReLU, nn.Linear]
        assert not any(map(sharded.is_sharded, model.parameters()))
        before = len(seen)
        assert torch.equal(model(x), expected)
        assert len(seen) == before + 1
    assert all(map(sharded.is_sharded, model.parameters()))
    assert [dict(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert torch.equal(model(x), expected)
    sharded.reshard(model)
    weight = model.get_parameter("2.weight")
    part = sharded.local(weight.detach())
    assert torch.equal(sharded.whole(weight), part)
    copy = sharded.local_like(weight, part * 2)
    assert copy.placements == weight.placements
    assert torch.equal(copy.full_tensor(), 2 * part)


def hooked(rank):
    from torch.distributed.fsdp import fully_shard

    model = nn.Linear(3, 4)
    first, last = (lambda *_: None), (lambda *_: None)
    model.register_forward_pre_hook(last)
    assert not sharded.gathers_before(model, last)
    fully_shard(model)
    model.register_forward_pre_hook(first, prepend=True)
    assert not sharded.gathers_before(model, first)
    assert sharded.gathers_before(model, last)


def failed(rank):
    from torch.distributed.fsdp import fully_shard

    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    fully_shard(model)
    outputs = model(x)
    with pytest.raises(RuntimeError):
        model(x[:, :2])
    sharded.settle(model)
    assert all(map(sharded.is_sharded, model.parameters()))
    with evaluating(model):
        assert torch.equal(model(x), outputs)
    assert all(map(sharded.is_sharded, model.parameters()))
    assert torch.equal(model(x), outputs)


def flat(rank):
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert sharded.flattened(model) is None
    model[0] = FullyShardedDataParallel(model[0], device_id=torch.device("cpu"))
    assert sharded.flattened(model) == "0"
    with pytest.raises(
        LayerCollapseError, match=r"sharded by fully_shard .* FullyShardedDataParallel has flattened at 0"
    ):
        lc.capture(model, torch.randn(5, 3))


@pytest.mark.long
@pytest.mark.parametrize(
    "work",
    [hollow, plain, hooked, failed, flat],
    ids=["no memory", "plain for a while", "hooks in front of that of fully_shard", "after an error", "of FSDP1"],
)
def test_of_one_process(work):  # of its own: gloo may wait for ever where another test drops its groups
    processes.run(1, work)
