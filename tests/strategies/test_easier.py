"""EASIER by hand: zeros count as on, the mean is over all neurons, the lowest goes."""

import dataclasses

import pytest
import torch

from layercollapse.entropy.layer import LayerEntropy
from layercollapse.entropy.report import EntropyReport
from layercollapse.strategies.easier import Easier
from situations import network, situation


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # Negative, zero, positive of one neuron of each site, 16 values: entropies of p = positive or zero.
        ({"1": (8, 0, 8), "4": (1, 0, 15), "7": (4, 0, 12)}, "4"),  # 1, 0.337, 0.811 bits
        ({"1": (8, 0, 8), "4": (4, 0, 12), "7": (8, 7, 1)}, "4"),  # 1, 0.811, and 1, not 0.503 without the zeros
        ({"1": (8, 0, 8), "4": (8, 0, 8), "7": (8, 0, 8)}, "1"),  # the first of equals
    ],
)
def test_the_site_of_lowest_entropy(counts, expected):
    found = situation(network(), torch.randn(16, 4))
    layers = []
    for layer in found.report:
        row = torch.tensor([*counts[layer.name], 0])
        layers.append(LayerEntropy(layer.name, "relu", row.repeat(layer.neurons, 1)))
    found = dataclasses.replace(found, report=EntropyReport(layers))
    assert Easier().propose(found).linear == {expected: "identity"}


def test_a_neuron_without_entropy_counts_in_the_mean():
    found = situation(network(), torch.randn(16, 4))
    half, none = torch.tensor([8, 0, 8, 0]), torch.tensor([0, 0, 16, 0])
    rows = {"1": [half] * 3 + [none] * 3, "4": [half] * 3 + [none] * 2, "7": [half] * 5}
    report = EntropyReport([LayerEntropy(name, "relu", torch.stack(row)) for name, row in rows.items()])
    found = dataclasses.replace(found, report=report)
    assert Easier().propose(found).linear == {"1": "identity"}  # 3/6 against 3/5 and 1 bit
