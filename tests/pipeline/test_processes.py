"""What several processes have in common, and what torchrun starts."""

import os

import pytest
import torch
from torch import nn

import processes
from layercollapse import LayerCollapseError
from layercollapse._util.ranks import Ranks
from layercollapse.pipeline.processes import from_first, joined, same_weights


def test_alone_anything_goes():
    marker = object()
    assert from_first(Ranks(), lambda: marker) is marker
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    same_weights(model, Ranks())
    assert torch.equal(model.weight, before)


def test_without_torchrun_nothing_is_joined(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined("cpu"):
        assert not torch.distributed.is_initialized()


def odd_buffers(rank):
    return {
        "short": torch.tensor([rank], dtype=torch.int16),
        "eighth": torch.tensor([float(rank)]).to(torch.float8_e4m3fn),
        "imaginary": torch.tensor([1j + rank]).conj(),
        "expanded": torch.tensor([float(rank)]).expand(3),
        "strided": (torch.arange(6.0).view(2, 3) + rank).t(),
        "one": torch.tensor(rank == 0),
        "none": torch.empty(0),
    }


def on_ranks(rank):
    ranks = Ranks.default()
    told = from_first(ranks, lambda: {"x": torch.tensor([rank, 1.5]), 3: ("a", None)})

    def fails():
        raise LayerCollapseError(f"of {rank}")

    with pytest.raises(LayerCollapseError, match="of 0"):
        from_first(ranks, fails)
    with pytest.raises(LayerCollapseError, match="expected tensors"):
        from_first(ranks, object)
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model[1].num_batches_tracked += rank
    for name, buffer in odd_buffers(rank).items():
        model.register_buffer(name, buffer)
    same_weights(model, ranks)
    assert model.strided.stride() == (1, 3)
    with pytest.raises(LayerCollapseError, match="weights: expected the same"):
        same_weights(nn.Linear(2 + rank, 2), ranks)
    return told, model.state_dict()


def test_two_processes():
    (told, state), (other, same) = processes.run(2, on_ranks)
    for heard in (told, other):
        assert torch.equal(heard.pop("x"), torch.tensor([0, 1.5]))
        assert heard == {3: ("a", None)}
    torch.manual_seed(0)
    wanted = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict() | odd_buffers(0)
    assert wanted.keys() == state.keys() == same.keys()
    assert all(torch.equal(state[name], value) and torch.equal(same[name], value) for name, value in wanted.items())


def joins(rank):
    torch.distributed.destroy_process_group()
    os.environ |= {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    with joined("cpu"):
        assert not torch.distributed.is_initialized()
    torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    os.environ["WORLD_SIZE"] = "2"
    with joined("cpu"):  # a group that is there is left alone
        assert torch.distributed.get_world_size() == 1
    assert torch.distributed.is_initialized()


def test_a_group_that_is_there_is_taken():
    processes.run(1, joins)
