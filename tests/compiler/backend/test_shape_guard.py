"""Inputs of other sizes than the example's: right, or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import layercollapse as lc
from layercollapse.zoo import models

OTHERS = ((8, 11), (11, 8), (16, 16), (17, 17), (13, 9), (10, 10), (7, 5))
MESSAGE = r"x: this collapsed model was made for sizes of \(N, 3, 8, 8\), got \(3, 3, \d+, \d+\); collapse it again"


class Reads(nn.Module):
    """A convolution, what a function makes of its maps, and a layer on the channels."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.function, self.head = nn.Conv2d(3, 4, 3, padding=1), function, nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.function(torch.relu(self.conv(x))))


class Calls(nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function, self.head = function, nn.Linear(4, 2)

    def forward(self, x):
        return torch.relu(self.head(self.function(x)))


def in_place(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x.view(x.shape[0], x.shape[1], x.shape[2] * x.shape[3]).relu_()
    return x.mean((2, 3))


FOLLOWED = {
    "mean": lambda x: F.avg_pool2d(x, x.shape[2:]).flatten(1),
    "mean of rows": lambda x: F.avg_pool2d(x, (x.shape[2], 1)).amax((2, 3)),
    "maximum": lambda x: F.max_pool2d(x, kernel_size=x.shape[2:]).flatten(1),
}
REFUSED = {
    "maximum of squares": lambda x: F.max_pool2d(x, x.shape[-1]).amax((2, 3)),
    "rows of any number": lambda x: F.adaptive_max_pool2d(x, (None, 1)).mean((2, 3)),
    "half": lambda x: F.avg_pool2d(x, (x.shape[2] // 2, x.shape[3] // 2)).amax((2, 3)),
    "scale": lambda x: (x / x.shape[-1]).sum((2, 3)),
    "ratio": lambda x: x.mean((2, 3)) * (x.shape[2] / x.shape[3]),
    "padding to eights": lambda x: F.pad(x, (0, -x.shape[3] % 8, 0, -x.shape[2] % 8)).mean((2, 3)),
    "in place": in_place,
}
OPEN = {
    "mean": lambda x: x.mean((2, 3)),
    "pooling": lambda x: F.adaptive_avg_pool2d(F.max_pool2d(x, 2), 1).flatten(1),
    "kernel of the example's size": lambda x: F.avg_pool2d(F.pad(x, (4, 4, 4, 4)), 8).amax((2, 3)),
}


def saved(result: lc.CollapseResult, folder: Path) -> tuple[nn.Module, nn.Module]:
    """The model loaded, by this package and by torch."""
    result.save(folder)
    return lc.load(folder), torch.export.load(folder / "model.pt2").module()


@pytest.mark.parametrize("example", [torch.randn, torch.zeros])
@pytest.mark.parametrize("name", [*FOLLOWED, *(f"open {name}" for name in OPEN)])
def test_all_sizes_are_right(name: str, example: Callable[..., torch.Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Reads(FOLLOWED.get(name) or OPEN[name.removeprefix("open ")]).eval()
    result = lc.collapse(model, example(2, 3, 8, 8))
    assert result.fixed_sizes == {}
    assert "sizes" not in result.explain()
    for other in (result.model, *saved(result, tmp_path)):
        for size in OTHERS:
            x = torch.randn(3, 3, *size)
            torch.testing.assert_close(other(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("example", [torch.randn, torch.zeros])
@pytest.mark.parametrize("name", REFUSED)
def test_other_sizes_are_refused(name: str, example: Callable[..., torch.Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Reads(REFUSED[name]).eval()
    result = lc.collapse(model, example(2, 3, 8, 8))
    assert result.fixed_sizes == {"x": (None, 3, 8, 8)}
    assert "input sizes fixed: x (N, 3, 8, 8)" in result.explain()
    loaded, exported = saved(result, tmp_path)
    same = torch.randn(3, 3, 8, 8)
    for other in (result.model, loaded, exported):
        torch.testing.assert_close(other(same), model(same), rtol=1e-5, atol=1e-6)
    again = lc.collapse(loaded, same)
    assert again.fixed_sizes == result.fixed_sizes
    for size in OTHERS:
        x = torch.randn(3, 3, *size)
        for other in (result.model, loaded, again.model):
            with pytest.raises(lc.LayerCollapseError, match=MESSAGE):
                other(x)
        with pytest.raises((AssertionError, RuntimeError), match=r"Guard failed|Expected"):
            exported(x)


@pytest.mark.parametrize(
    ("function", "shape", "fixed"),
    [
        (lambda x: x.flatten(1, 2).unflatten(1, (x.shape[1], x.shape[2])).sum(1) / x.shape[1], (2, 5, 3, 4), True),
        (lambda x: F.avg_pool1d(x.transpose(1, 2), x.shape[1]).squeeze(2), (2, 6, 4), False),
        (lambda x: x.sum(1) / x.shape[1], (2, 6, 4), False),  # sizes of sequences are symbols in the graph
        (lambda x: F.max_pool3d(x, (x.shape[2], 1, 1)).mean((2, 3, 4)), (2, 4, 4, 3, 3), False),
    ],
)
def test_sequences_and_volumes(function: Callable[..., Any], shape: tuple[int, ...], fixed: bool) -> None:
    torch.manual_seed(0)
    model = Calls(function).eval()
    result = lc.collapse(model, torch.randn(shape))
    assert bool(result.fixed_sizes) == fixed
    for more in (1, 3, 7):
        channels = 1 if len(shape) == 5 else -1
        x = torch.randn([n if i == 0 or i == channels % len(shape) else n + more for i, n in enumerate(shape)])
        if fixed:
            with pytest.raises(lc.LayerCollapseError, match="was made for sizes"):
                result.model(x)
        else:
            torch.testing.assert_close(result.model(x), model(x), rtol=1e-5, atol=1e-6)


def convolutional(end: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return Ends(end).eval()


class Ends(nn.Module):
    """A convolutional network whose maps keep their size, and what a function makes of them."""

    def __init__(self, end: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.end = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 1), end
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x):
        return self.end(self.norm(self.head(torch.relu(self.conv(x)))))


ENDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda x: x.softmax(1),
    "log of a sigmoid": lambda x: x.sigmoid().clamp(0.01).log(),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "upsampling": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "skip over a pooling": lambda x: torch.cat([x, F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)], 1),
    "reflection": lambda x: F.pad(x, (1, 1, 2, 2), mode="reflect").tanh(),
    "gate": lambda x: x * F.hardsigmoid(x.mean((2, 3), keepdim=True)),
    "halves": lambda x: F.glu(x, 1) / x.norm(dim=1, keepdim=True),
    "best": lambda x: x.max(1).values.exp(),
    "two": lambda x: torch.stack(x.chunk(2, 1), 2).flatten(1, 2),
}


@pytest.mark.parametrize("name", ENDS)
def test_exports_keep_sizes_open(name: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    model = convolutional(ENDS[name])
    result = lc.collapse(model, torch.randn(2, 3, 8, 8), None, cost="macs")
    assert result.fixed_sizes == {}
    loaded, exported = saved(result, tmp_path)
    assert [str(warning.message) for warning in recwarn if "sizes" in str(warning.message)] == []
    for size in ((8, 8), (16, 16), (10, 14), (6, 12)):
        x = torch.randn(3, 3, *size)
        for other in (result.model, loaded, exported):
            torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["softmax", "pixel shuffle"])
def test_onnx_takes_every_size(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = convolutional(ENDS[name])
    lc.collapse(model, torch.randn(2, 3, 8, 8), None, cost="macs").save(tmp_path, onnx=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for size in ((8, 8), (10, 14)):
        x = torch.randn(3, 3, *size)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), model(x), rtol=1e-4, atol=1e-5)


def test_a_save_says_which_files_have_the_sizes_of_the_example(tmp_path: Path) -> None:
    """torch cannot write the floor of a size into a file."""
    model = Calls(lambda x: x * math.floor(x.shape[1] / 2)).eval()
    result = lc.collapse(model, torch.randn(2, 5, 4), None, cost="macs")
    assert result.fixed_sizes == {}
    with pytest.warns(UserWarning, match=r"model\.pt2 in .* may refuse inputs of other sizes than the example's"):
        result.save(tmp_path)
    x = torch.randn(3, 9, 4)
    torch.testing.assert_close(lc.load(tmp_path)(x), model(x))
    exported, x = torch.export.load(tmp_path / "model.pt2").module(), torch.randn(3, 5, 4)
    torch.testing.assert_close(exported(x), model(x))


def test_onnx_refuses_what_the_model_refuses(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    lc.collapse(Reads(REFUSED["scale"]).eval(), torch.randn(2, 3, 8, 8)).save(tmp_path, onnx=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    name = session.get_inputs()[0].name
    assert session.run(None, {name: torch.randn(3, 3, 8, 8).numpy()})[0].shape == (3, 2)
    with pytest.raises(Exception, match="invalid dimensions"):
        session.run(None, {name: torch.randn(3, 3, 9, 9).numpy()})


@pytest.mark.long
def test_a_residual_network_takes_every_size(tmp_path: Path) -> None:
    """Its last maps have one pixel in the example."""
    torch.manual_seed(0)
    model = models.build("resnet18", image_size=16, width=4).eval()
    result = lc.collapse(model, torch.randn(2, 1, 16, 16))
    assert result.fixed_sizes == {}
    exported = saved(result, tmp_path)[1]
    for size in ((16, 16), (31, 20), (40, 40), (9, 12)):
        x = torch.randn(2, 1, *size)
        for other in (result.model, exported):
            torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-5)


def test_tokens_take_every_length_and_two_inputs_change_together() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 60}
    config = transformers.BertConfig(**text, intermediate_size=32, max_position_embeddings=12)
    model = transformers.BertForSequenceClassification(config).eval()
    for length in (8, 12):  # of which the second is the longest that the model takes
        ids = torch.arange(2 * length).reshape(2, length)
        result = lc.collapse(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        assert result.fixed_sizes == {}
        for other in (3, 8, 11, 12):
            inputs = {"input_ids": torch.randint(60, (3, other)), "attention_mask": torch.ones(3, other).long()}
            torch.testing.assert_close(result.model(**inputs)["logits"], model(**inputs).logits, rtol=1e-5, atol=1e-5)


class Two(nn.Module):
    """Takes images, and a mask of their pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x, mask):
        return torch.relu(self.conv(x) * mask.unsqueeze(1)).sum((2, 3)) / x.shape[2]


def test_the_message_names_the_input() -> None:
    result = lc.collapse(Two().eval(), {"x": torch.randn(2, 3, 6, 5), "mask": torch.ones(2, 6, 5)})
    assert result.fixed_sizes == {"x": (None, 3, 6, 5), "mask": (None, 6, 5)}
    with pytest.raises(lc.LayerCollapseError, match=r"mask: .*sizes of \(N, 6, 5\), got \(4, 7, 5\)"):
        result.model(x=torch.randn(4, 3, 6, 5), mask=torch.ones(4, 7, 5))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x, factor, more, kind="relu"):
        y = getattr(F, kind)(self.linear(x)) * factor
        return y if more is None else y + more


@pytest.mark.parametrize("factor", [3, 0.5, float("inf"), True])
def test_inputs_that_are_no_tensors_are_those_of_the_example(factor: float, tmp_path: Path) -> None:
    model, x = Scaled().eval(), torch.randn(2, 4)
    result = lc.collapse(model, (x, factor, None, "relu"))
    loaded, exported = saved(result, tmp_path)
    x = torch.randn(5, 4)
    for other in (result.model, loaded, exported, lc.collapse(loaded, (x, factor, None, "relu")).model):
        torch.testing.assert_close(other(x, factor, None, "relu"), model(x, factor, None), equal_nan=True)
    for other in (result.model, loaded):
        with pytest.raises(lc.LayerCollapseError, match=r"factor: .*was made for .*, got 4"):
            other(x, 4, None, "relu")
        with pytest.raises(lc.LayerCollapseError, match=r"more: .*was made for None, got a tensor"):
            other(x, factor, x[:, :3], "relu")
        with pytest.raises(lc.LayerCollapseError, match=r"kind: .*was made for 'relu', got 'silu'"):
            other(x, factor, None, "silu")


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return F.avg_pool2d(torch.relu(self.conv(x)), x.shape[2:]) + 0 * torch.rand(1)


def test_the_comparison_leaves_no_trace() -> None:
    from layercollapse.compiler.backend import shape_guard as sizes

    model, x = Draws().eval(), torch.randn(2, 3, 8, 8)
    emitted = lc.collapse(Reads(OPEN["mean"]).eval(), x).model
    state = torch.get_rng_state()
    sizes.settle(model, emitted, x, True, lambda: emitted)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.calls == 0


def test_an_approximation_leaves_the_sizes_open() -> None:
    """Neurons that were off on the data are on elsewhere: that is no matter of sizes."""
    torch.manual_seed(0)
    model = Reads(OPEN["mean"]).eval()
    nn.init.constant_(model.conv.bias, -0.3)
    x = torch.rand(4, 3, 8, 8)
    with lc.EntropyProbe(model) as probe:
        model(0.1 * x)
    result = lc.collapse(model, x, probe.report(), tolerance=float("inf"))
    assert result.max_abs_error > 1e-3
    assert result.fixed_sizes == {}


def test_sizes_in_a_file_are_checked(tmp_path: Path) -> None:
    lc.collapse(Reads(REFUSED["scale"]).eval(), torch.randn(2, 3, 8, 8)).save(tmp_path)
    described = json.loads((tmp_path / "model.json").read_text())
    for bad in ("many", [[1]], {"a": 1}, 5):
        described["modules"]["sizes_of_x"]["sizes"] = bad
        (tmp_path / "model.json").write_text(json.dumps(described))
        with pytest.raises(lc.LayerCollapseError, match="path: "):
            lc.load(tmp_path)


class Single(nn.Module):
    """A dead layer and a mean that meet, in the example over one position."""

    def __init__(self, layer: type[nn.Module], dim: int, meet: Callable, resize: bool = False) -> None:
        super().__init__()
        settings = () if layer is nn.Linear else (1,)
        self.dead, self.head, self.meet = layer(3, 3, *settings), layer(3, 2, *settings), meet
        self.dim, self.resize = dim, resize
        nn.init.zeros_(self.dead.weight)

    def forward(self, x):
        mean = x.mean(self.dim, keepdim=True)
        return self.head(self.meet(self.dead(F.interpolate(mean, size=x.shape[2:]) if self.resize else x), mean))


@pytest.mark.parametrize("meet", [torch.add, torch.mul])
@pytest.mark.parametrize(
    ("layer", "dim", "resize", "one", "many"),
    [
        (nn.Linear, 1, False, (2, 1, 3), (2, 4, 3)),
        (nn.Conv1d, 2, False, (2, 3, 1), (2, 3, 4)),
        (nn.Conv1d, 2, True, (2, 3, 1), (2, 3, 4)),
        (nn.Conv2d, 2, False, (2, 3, 1, 6), (2, 3, 4, 6)),
        (nn.Conv2d, 3, False, (2, 3, 6, 1), (2, 3, 6, 4)),
    ],
)
def test_one_position_in_the_example_may_become_many(
    layer: type[nn.Module], dim: int, resize: bool, one: tuple[int, ...], many: tuple[int, ...], meet: Callable
) -> None:
    model = Single(layer, dim, meet, resize).double()
    result = lc.collapse(model, torch.rand(one).double(), None, cost="macs")
    x = torch.rand(many).double()
    if result.fixed_sizes:
        assert resize  # its size is in the graph
        with pytest.raises(lc.LayerCollapseError, match="was made for sizes of"):
            result.model(x)
    else:
        torch.testing.assert_close(result.model(x), model(x), rtol=0, atol=1e-12)
