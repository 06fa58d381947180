"""The modules of an emitted model that are none of torch's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layercollapse.compiler.backend.modules import ChannelAffine, ConstantMap


def test_a_constant_map_follows_its_parameters() -> None:
    torch.manual_seed(0)
    module = ConstantMap(2, [[[3, 3], [1, 1], [1, 1], [1, 1]]])
    for change in (lambda: None, module.weight.data.normal_, lambda: module.bias.data.add_(1), module.double):
        change()
        for size in ((5, 6), (4, 4), (5, 6)):
            x = torch.zeros(3, 7, *size, dtype=module.bias.dtype)
            expected = F.conv2d(torch.ones(1, 1, *size).to(x), module.weight, module.bias, padding=1).expand(
                3, -1, -1, -1
            )
            for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
                with mode():
                    assert torch.equal(module(x), expected)
    assert module(x).requires_grad
    assert copy.deepcopy(module)._last is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 4, 5), (2, 3, 1, 1)])
def test_a_channel_affine_is_the_same_in_every_layout(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = ChannelAffine(3).to(dtype)
    nn.init.normal_(module.scale)
    nn.init.normal_(module.shift)
    x = torch.randn(shape).to(dtype)
    layouts = [x, x.movedim(1, -1).contiguous().movedim(-1, 1)]
    sizes = (-1, *[1] * (len(shape) - 2))
    expected = torch.addcmul(module.shift.view(sizes), x, module.scale.view(sizes))
    for values in layouts:
        y = module(values)
        assert torch.equal(y, expected)
        module.zero_grad()
        y.sum().backward()
        assert torch.allclose(module.shift.grad.float(), torch.full((3,), x.numel() / 3.0))
