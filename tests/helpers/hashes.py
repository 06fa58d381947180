"""The hash of a row of signs, in plain Python, and activations with every kind of value."""

import pytest
import torch

from layercollapse.kernels import cuda, triton_backend

SLOW = triton_backend.interpreted()  # each program takes milliseconds: fewer cases, not other ones
SIMULATED = SLOW or cuda.emulated()
on_gpu = pytest.mark.skipif(SIMULATED or not torch.cuda.is_available(), reason="needs a GPU")
INF, NAN = float("inf"), float("nan")
VALUES = [0.0, -0.0, 1.0, -2.0, 1e-40, -1e-40, INF, -INF, NAN, -NAN]
M = 2**64 - 1


def mix(z):
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & M
    z = (z ^ z >> 27) * 0x94D049BB133111EB & M
    return z ^ z >> 31


def hash_of(signs):
    """The definition, of a list of bools; shares no code with the package."""
    words = [sum(bool(on) << b for b, on in enumerate(signs[w : w + 64])) for w in range(0, len(signs), 64)]
    total = sum(mix(mix(word) + (w + 1) * 0x9E3779B97F4A7C15 & M) for w, word in enumerate(words))
    return (total + 2**63) % 2**64 - 2**63


def values(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    special = torch.tensor(VALUES)[torch.randint(len(VALUES), x.shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < 0.3, special, x).to(dtype)
