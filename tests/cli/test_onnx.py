"""What an ONNX file says of its inputs."""

from pathlib import Path

import pytest

from layercollapse.cli.onnx import fixed_batch, input_shapes, open_sizes

onnx = pytest.importorskip("onnx")


def written(path: Path, *sizes: int | str) -> Path:
    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, sizes)
    weight = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, sizes)
    values = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [2.0])
    node = onnx.helper.make_node("Mul", ["x", "w"], ["y"])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [weight, given], [result], [values])), path)
    return path


def test_numbers_and_names(tmp_path: Path) -> None:
    path = written(tmp_path / "net.onnx", "batch", 3, "height", "width")
    assert input_shapes(path) == [["batch", 3, "height", "width"]]  # the weight is no input
    assert fixed_batch(path) is None
    assert open_sizes(path, (3, 8, 10)) == {"height": 8, "width": 10}
    assert open_sizes(path, None) == {}


def test_a_fixed_batch_and_no_image(tmp_path: Path) -> None:
    path = written(tmp_path / "net.onnx", 4, "features")
    assert fixed_batch(path) == 4
    assert open_sizes(path, (3, 8, 10)) == {}
