"""What accelerate wraps: optimizers, models, and its checkpoints."""

import pytest
import torch
from torch import nn

import layercollapse as lc

accelerate = pytest.importorskip("accelerate")

pytestmark = pytest.mark.usefixtures("seeded")


def test_zeros_are_kept_and_masks_are_in_its_checkpoints(tmp_path):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    pruner = lc.Pruner(model, x)
    accelerator.register_for_checkpointing(pruner)
    with lc.EntropyProbe(model) as probe:
        model(x)
    pruner.step(probe.report(), amount=0.5, rule="uniform")
    weight = model[0].weight
    zeros = weight == 0
    assert int(zeros.sum()) == 24

    def train():
        for _ in range(3):
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()

    with pruner.attach(optimizer):
        before = weight.detach().clone()
        train()
        assert not torch.equal(weight, before)
        assert torch.equal(weight == 0, zeros)
    accelerator.save_state(tmp_path)
    train()
    assert not bool((weight[zeros] == 0).any())
    pruner.step(probe.report(), amount=0.5, rule="uniform")
    accelerator.load_state(tmp_path)
    assert torch.equal(weight == 0, zeros)
    assert pruner.density == 0.5
