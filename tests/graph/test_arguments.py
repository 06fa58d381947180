"""The check of a collapsed model's optional arguments."""

import pytest
import torch
from torch import nn

from layercollapse.errors import LayerCollapseError
from layercollapse.graph.arguments import Arguments, needed_and_refused


def test_given_and_defaults_pass_and_nothing_else() -> None:
    check = Arguments(["x"], {"mask": None, "scale": 1.0})
    check([torch.ones(2)], [None, 1])
    with pytest.raises(LayerCollapseError, match=r"x: expected it, .* got None"):
        check([None], [None, 1.0])
    with pytest.raises(LayerCollapseError, match=r"mask: .* without it, for its default None, got a tensor"):
        check([1], [torch.ones(2), 1.0])
    with pytest.raises(LayerCollapseError, match=r"scale: .* default 1.0, got 2; collapse it again"):
        check([1], [None, 2])


def test_only_a_model_with_the_check_has_such_arguments() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    assert needed_and_refused(model) == (set(), set())
    model.append(Arguments(["x"], {"mask": None}))
    assert needed_and_refused(model) == ({"x"}, {"mask"})
