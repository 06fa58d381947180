"""ONNX files in, through onnx2torch, and out again."""

import importlib.util
import logging
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import layercollapse as lc

onnx = pytest.importorskip("onnx")
if importlib.util.find_spec("onnx2torch") is None:
    pytest.skip("needs onnx2torch", allow_module_level=True)  # its own import needs a torchvision, and `load` does not
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")

from layercollapse.integrations.onnx import Reshape, example_inputs, load  # noqa: E402

pytestmark = [pytest.mark.usefixtures("seeded", "one_thread"), pytest.mark.long]


class Net(nn.Module):
    """A branch that is constant, and a reshape to sizes that an exporter computes."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.dead, self.last = nn.Conv2d(3, 4, 3), nn.Linear(64, 5)
        nn.init.zeros_(self.dead.weight)

    def forward(self, x):
        y = self.second(self.norm(self.first(x)).relu()).relu()
        y = y + nn.functional.pad(self.dead(x).relu(), (1, 1, 1, 1))
        return self.last(y.reshape(x.shape[0], -1)).softmax(-1)


@pytest.fixture(scope="module")
def quiet():
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dynamo", [False, True])
def test_in_collapsed_and_out(dynamic, dynamo, quiet, tmp_path):
    model, x = Net().eval(), torch.randn(2, 3, 4, 4)
    file = tmp_path / "model.onnx"
    if dynamo:
        sizes = ({0: torch.export.Dim("batch")},) if dynamic else None
        torch.onnx.export(model, (x,), file, dynamo=True, dynamic_shapes=sizes, verbose=False)
    else:
        axes = {"x": {0: "batch"}} if dynamic else None
        torch.onnx.export(model, (x,), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
    read = load(file)
    (example,) = example_inputs(file)
    assert example.shape == x.shape
    assert len(list(read.parameters())) > 0
    torch.testing.assert_close(read(x), model(x))
    result = lc.collapse(read, example, None, cost="macs")
    assert len(result.collapsed) == 1
    result.save(tmp_path / "small", onnx=True)
    session = runtime.InferenceSession(str(tmp_path / "small" / "model.onnx"))
    for batch in (2, 5, 1) if dynamic else (2,):
        x = torch.randn(batch, 3, 4, 4)
        torch.testing.assert_close(result.model(x), model(x))
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.as_tensor(got), model(x))


def test_the_command_line_with_samples(quiet, tmp_path):
    from click.testing import CliRunner

    from layercollapse.cli.commands import layercollapse

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    nn.init.constant_(model[0].bias, 9.0)  # always on, for the samples
    file, data = tmp_path / "model.onnx", torch.randn(8, 4)
    torch.onnx.export(model, (data[:2],), file, dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},))
    np.save(tmp_path / "data.npy", data.numpy())

    def run(*arguments):
        return CliRunner().invoke(layercollapse, ["collapse", str(file), *map(str, arguments)])

    assert "0 of 1 rectifiers collapsed" in run().output
    assert (tmp_path / "model" / "model.onnx").is_file()
    done = run("--samples", tmp_path / "data.npy", "--out", tmp_path / "small.v2")
    assert "1 of 1 rectifiers collapsed" in done.output
    torch.testing.assert_close(lc.load(tmp_path / "small.v2")(data), model(data))
    np.save(tmp_path / "other.npy", data[:, 1:].numpy())
    for samples, message in (("other.npy", "got (8, 3)"), ("gone.npy", "expected a .npy file")):
        done = run("--samples", tmp_path / samples)
        assert done.exit_code == 2
        assert message in done.output
    done = CliRunner().invoke(layercollapse, ["collapse", str(tmp_path), "--out", "x"])
    assert done.exit_code == 2


def graph(reshape, *nodes, weights=()):
    """One reshape of x (batch, 4, 6)."""
    shaped = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4, 6])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    made = onnx.helper.make_graph([*nodes, reshape], "g", [shaped], [out], list(weights))
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


def numbers(name, *values):
    return onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], values)


def test_a_reshape_to_computed_sizes_is_one_to_the_inputs():
    node = onnx.helper.make_node
    nodes = [
        node("Shape", ["x"], ["all"], start=0, end=1),
        node("Concat", ["all", "rest"], ["shape"], axis=0),
    ]
    model = load(graph(node("Reshape", ["x", "shape"], ["y"]), *nodes, weights=[numbers("rest", 3, -1)]))
    (reshape,) = [module for module in model.modules() if isinstance(module, Reshape)]
    assert reshape.sizes == [0, 3, -1]
    for batch in (1, 4):
        x = torch.randn(batch, 4, 6)
        assert torch.equal(model(x), x.reshape(batch, 3, 8))


def test_what_allowzero_means_nothing_for():
    node = onnx.helper.make_node
    reshape = node("Reshape", ["x", "shape"], ["y"], allowzero=1)
    model, x = load(graph(reshape, weights=[numbers("shape", -1, 24)])), torch.randn(3, 4, 6)
    assert torch.equal(model(x), x.reshape(3, 24))
    with pytest.raises(
        lc.LayerCollapseError, match=r"path: expected operations that onnx2torch reads, got: .*allowzero"
    ):
        load(graph(reshape, weights=[numbers("shape", 0, 24)]))


def test_what_is_wrong_is_named(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    for path in (tmp_path / "model.onnx", tmp_path / "gone.onnx"):
        with pytest.raises(lc.LayerCollapseError, match="path: expected an ONNX file"):
            load(path)
    node = onnx.helper.make_node("Det", ["x"], ["y"])
    with pytest.raises(lc.LayerCollapseError, match=r"path: expected operations that onnx2torch reads, got: .*Det"):
        load(graph(node))
    proto = graph(onnx.helper.make_node("Relu", ["x"], ["y"]))
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "length"
    with pytest.raises(
        lc.LayerCollapseError, match="sizes: expected a size for dimension 'length' of input 'x', got none"
    ):
        example_inputs(proto)
    assert example_inputs(proto, {"length": 7, "batch": 3})[0].shape == (3, 7, 6)
