"""Batch norms put behind convolutions, and folded again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.pipeline.norms import has_norms, with_norms, without_norms


def collapsed(dims: int = 2) -> tuple[nn.Module, list[torch.Tensor]]:
    """A network of convolutions with a residual path, whose names have the suffix that norms get, too."""
    torch.manual_seed(0)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.a_norm = conv(2, 6, 3, padding=1), conv(6, 6, 3, padding=1, bias=False)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            x = torch.relu(self.a(x))
            x = torch.relu(x + self.a_norm(x))
            return self.head(x.flatten(2).mean(2))

    batches = [3 + torch.randn(5, 2, *(6,) * dims) for _ in range(3)]
    return lc.collapse(Net().eval(), batches[0], cost="macs").model, batches


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_norms_change_nothing_until_they_train_and_folded_they_are_the_trained_model(dims: int) -> None:
    model, data = collapsed(dims)
    assert not has_norms(model)
    normed = with_norms(model, data)
    assert has_norms(normed)
    norms = [m for m in normed.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))]
    assert len(norms) == 2
    torch.testing.assert_close(normed.eval()(data[0]), model(data[0]), rtol=1e-4, atol=1e-4)
    before = model(data[0])
    x = torch.cat([model.a(b) for b in data]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(norms[0].running_mean, x.mean(1).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norms[0].running_var, x.var(1, correction=0).detach(), rtol=1e-4, atol=1e-5)
    normed.train()
    optimizer = torch.optim.SGD(normed.parameters(), lr=0.1)
    for batch in data:
        normed(batch).square().sum().backward()
        optimizer.step()
    folded = without_norms(normed)
    assert not has_norms(folded)
    assert normed.training
    assert not folded.training
    assert type(folded).__name__ == type(normed).__name__ == "Collapsed"
    expected = normed.eval()(data[0])
    torch.testing.assert_close(folded(data[0]), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(model(data[0]), before)  # it stays as it was
    assert all(type(module).__module__.startswith("torch.nn") for name, module in folded.named_modules() if name)


def test_a_folded_model_is_saved_and_loaded(tmp_path) -> None:
    from dataclasses import replace

    model, data = collapsed()
    result = lc.collapse(model, data[0], cost="macs")
    folded = replace(result, model=without_norms(with_norms(result.model, data)))
    folded.save(tmp_path)
    torch.testing.assert_close(lc.load(tmp_path)(data[0]), folded.model(data[0]))
