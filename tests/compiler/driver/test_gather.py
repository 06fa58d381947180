import pytest
import torch
from torch import nn

import processes
from layercollapse import LayerCollapseError
from layercollapse.compiler.driver.gather import Moved, moved, on_first, sharded


def gathered(rank):
    from torch.distributed.fsdp import fully_shard

    model, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.randn(5, 3)
    assert not sharded(model)
    model[0].bias.requires_grad_(False)
    before, outputs = model[0].weight.detach().clone(), model.eval()(x)
    fully_shard(model)
    model(x)  # leaves the parameters gathered
    assert sharded(model)
    kept = dict(model.named_parameters())

    def work():
        assert type(model) is nn.Sequential
        assert torch.equal(model[0].weight, before)
        assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
        return model(x)

    assert torch.equal(on_first(model, work), outputs)

    def fail():
        raise LayerCollapseError("x: expected this, got that")

    with pytest.raises(LayerCollapseError, match="x: expected this"):
        on_first(model, fail)
    assert all(p is kept[name] for name, p in model.named_parameters())
    assert torch.equal(model(x), outputs)


@pytest.mark.long
def test_a_sharded_model_is_whole_and_on_the_cpu_while_it_works():
    processes.run(1, gathered)


def test_batches_may_be_gone_through_again():
    batches = [(torch.ones(2), 3), {"x": torch.zeros(1), "y": "text"}]
    for given in (batches, iter(batches)):
        again = Moved(given)
        for _ in range(2):
            (ones, number), named = again
            assert torch.equal(ones, torch.ones(2))
            assert (number, named["y"]) == (3, "text")
    assert moved(None) is None
