"""Where channels lie behind moves: the probe and the captured graph agree."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import layercollapse as lc
from layercollapse.entropy.probe import EntropyProbe
from layercollapse.graph.capture import capture
from probed import brute, same_names

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Pooled(torch.nn.Module):
    """A 3-D tensor whose length changes between the convolution and the rectifier."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv1d(2, 3, 3), nn.MaxPool1d(2)

    def forward(self, x):
        x = self.pool(self.conv(x))
        return torch.relu(torch.cat([x, x[:, :1]], dim=1))


def test_channels_after_pooling_and_cat():
    same_names(Pooled(), torch.randn(2, 2, 12))
    assert capture(Pooled(), torch.randn(2, 2, 12)).sites[0].channels == 4


class Moved(nn.Module):
    """A rectifier behind a convolution to 5 channels of maps 6 x 7, or a linear layer, and a move of these."""

    def __init__(self, move, tokens):
        super().__init__()
        self.layer, self.move = nn.Linear(3, 5) if tokens else nn.Conv2d(3, 5, 1), move

    def forward(self, x):
        return F.relu(self.move(self.layer(x)))


# Name -> the move and the dimension where the channels lie then.
MOVES = {
    "mean of rows": (lambda x: x.mean(2), 1),
    "mean by name": (lambda x: torch.mean(x, dim=(3,)), 1),
    "kept mean": (lambda x: x.mean(-1, keepdim=True), 1),
    "sum": (lambda x: torch.sum(x, -2), 1),
    "amax": (lambda x: x.amax(2), 1),
    "largest": (lambda x: x.max(3).values, 1),
    "select": (lambda x: x[:, :, 0], 1),
    "select by name": (lambda x: x.select(3, 1), 1),
    "slice": (lambda x: x[:, 1:, ::2], 1),
    "squeeze": (lambda x: x[:, :, :1].squeeze(2), 1),
    "unsqueeze": (lambda x: x.unsqueeze(2)[:, :, 0].mean(2), 1),
    "flatten": (lambda x: x.flatten(2), 1),
    "reshape": (lambda x: x.reshape(x.shape[0], 5, -1), 1),
    "permute": (lambda x: x.permute(0, 2, 3, 1), 3),
    "between": (lambda x: x.permute(0, 2, 1, 3), 2),
    "transpose": (lambda x: x.transpose(1, 2).mean(3), 2),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2), 2),
    "movedim": (lambda x: torch.movedim(x, 1, -1), 3),
    "last two": (lambda x: x.mean(2).mT, 2),
    "chunk": (lambda x: x.chunk(2, dim=2)[1].mean(2), 1),
    "and back": (lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 5).transpose(1, 2), 1),
    "pool": (lambda x: F.adaptive_avg_pool2d(x, (1, None)).squeeze(2), 1),
}


TOKEN_MOVES = {
    "first": (lambda x: x[:, 0], 2),
    "rows": (lambda x: x.mean(2), 2),
    "positions": (lambda x: x.reshape(-1, 7, 5), 2),
    "to maps": (lambda x: x.permute(0, 3, 1, 2), 1),
    "to one row of maps": (lambda x: x[:, 0].transpose(1, 2), 1),
    "square": (lambda x: x[:, :5, 0].transpose(1, 2), 1),
}


@pytest.mark.parametrize(
    ("name", "move", "dim", "tokens"),
    [(name, *move, False) for name, move in MOVES.items()]
    + [(name, *move, True) for name, move in TOKEN_MOVES.items()],
)
def test_channels_that_move(name, move, dim, tokens):
    model, x = Moved(move, tokens), torch.randn(2, 6, 7, 3) if tokens else torch.randn(2, 3, 6, 7)
    with torch.no_grad(), EntropyProbe(model) as probe:
        seen = model.move(model.layer(x))
        model(x)
    assert torch.equal(probe.report()["forward"].counts, brute(seen, dim, 0, None))
    (site,) = capture(model, x).sites
    assert (site.channels, site.channel_dim % seen.ndim) == (seen.shape[dim], dim)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_channels_behind_an_interpolation_are_those_of_the_graph(mode: str, antialias: bool) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(2, 4, 1)

        def forward(self, x):
            smooth = {"antialias": True} if antialias and mode.startswith("bi") else {}
            x = torch.nn.functional.interpolate(self.layer(x), scale_factor=2, mode=mode, **smooth)
            return torch.relu(x.flatten(2))

    model, x = Joined(), torch.randn(3, 2, 5, 6)
    with EntropyProbe(model) as probe:
        model(x)
    site = capture(model, x).sites[0]
    assert (site.channels, site.channel_dim) == (4, 1)
    assert probe.report()[site.name].neurons == 4


def test_channels_stay_where_they_are_behind_a_sum_with_a_map_of_one_pixel():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.shift = nn.Conv1d(3, 5, 2, stride=2), nn.Parameter(torch.zeros(5, 1))

        def forward(self, x):
            return torch.relu(self.conv(x) + self.shift)

    (site,) = lc.capture(Shifted(), torch.randn(4, 3, 3)).sites
    assert (site.channels, site.channel_dim) == (5, 1)
