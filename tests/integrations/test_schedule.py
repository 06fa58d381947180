"""What the callbacks of trainers share."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import processes
from layercollapse.errors import LayerCollapseError
from layercollapse.integrations.schedule import PruningSchedule

pytestmark = pytest.mark.usefixtures("seeded")


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def loader():
    return DataLoader(TensorDataset(torch.randn(24, 4), torch.zeros(24)), batch_size=8, shuffle=True)


@pytest.mark.parametrize(
    ("settings", "total", "due"),
    [
        ({}, 4, [1, 2, 3]),
        ({"every": 2}, 6, [2, 4]),
        ({"every": 2}, 5, [2]),
        ({"steps": 2}, 9, [1, 2]),
        ({"steps": 0}, 9, []),
        ({}, None, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_when_it_prunes(settings, total, due):
    schedule = PruningSchedule(2, rule="uniform", **settings)
    model = network().train()
    schedule.begin(model, loader())
    done = [epoch for epoch in range(1, 10) if epoch <= (total or 9) and schedule.epoch_ends(epoch, total) is not None]
    assert done == due
    assert len(schedule.pruned) == len(schedule.reports) == len(due)
    assert model.training


def test_data_are_the_trainers_in_order_and_its_random_state_stays():
    model, data = network(), loader()
    state = torch.get_rng_state()
    schedule = PruningSchedule(0.5, rule="uniform", batches=2)
    schedule.begin(model, data)
    assert torch.equal(torch.get_rng_state(), state)
    schedule.epoch_ends(1, None)
    assert schedule.reports[0].layers[0].counts.sum(1).tolist() == [16] * 8
    assert torch.equal(torch.cat(schedule._inputs), data.dataset.tensors[0][:16])


def test_zeros_of_a_checkpoint_count_as_pruned():
    model = network()
    with torch.no_grad():
        model[0].weight[:4] = 0
    assert PruningSchedule().begin(model, loader()).density == 1
    assert PruningSchedule().begin(model, loader(), zeros=True).density == 1 - 16 / 96


def test_the_end(tmp_path):
    model = network()
    schedule = PruningSchedule(0.5, out=tmp_path / "small", collapse={"cost": "macs"})
    schedule.begin(model, loader())
    schedule.epoch_ends(1, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)  # a step that nothing has taken back
    schedule.end(main=False)  # of a process that does not write
    assert schedule.result is None
    assert not model._forward_pre_hooks
    schedule.begin(model, loader(), zeros=True)
    schedule.end()
    result = schedule.result
    assert result.samples == 24
    assert (tmp_path / "small" / "model.pt2").is_file()
    x = torch.randn(3, 4)
    torch.testing.assert_close(result.model(x), model(x))
    assert float((model[0].weight == 0).float().mean()) > 0


@pytest.mark.parametrize("settings", [{"every": 0}, {"every": 1.5}, {"steps": -1}, {"steps": True}])
def test_bad_settings(settings):
    with pytest.raises(LayerCollapseError, match=rf"{next(iter(settings))}: expected a number"):
        PruningSchedule(**settings)
    with pytest.raises(LayerCollapseError, match="data: expected batches"):
        PruningSchedule().begin(network(), None)


def trained_by_two(rank):
    torch.manual_seed(0)
    model = network()
    parallel = nn.parallel.DistributedDataParallel(model)
    schedule, optimizer = PruningSchedule(0.5, collapse={"cost": "macs"}), torch.optim.SGD(model.parameters(), 0.1)
    schedule.begin(parallel, loader())
    for epoch in range(2):
        for x, _ in loader():
            optimizer.zero_grad()
            parallel(x[rank::2]).square().mean().backward()
            optimizer.step()
        schedule.epoch_ends(epoch + 1, 2)
    schedule.end(main=rank == 0)
    return schedule.result is None, schedule.pruner.density, model.state_dict()


@pytest.mark.long
def test_two_processes_prune_alike_and_one_collapses():
    (first, density, state), (second, same, other) = processes.run(2, trained_by_two)
    assert (first, second) == (False, True)
    assert density == same == 0.5
    assert all(torch.equal(state[name], other[name]) for name in state)
