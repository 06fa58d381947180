"""What is said of a site, once the search is over."""

from __future__ import annotations

import torch
from torch import nn

import layercollapse as lc
from networks import report_on


def test_a_site_before_a_dead_layer_is_gone_and_said_to_be() -> None:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    first[2].weight.data.zero_()
    x = torch.randn(32, 3)
    report = report_on(first, x)
    assert report["1"].mixed
    result = lc.collapse(first, x, report)
    assert [(site.status, site.guarantee) for site in result.sites] == [("collapsed", "exact")] * 2
    assert "nothing that the outputs need reads it" in result.sites[0].reason
