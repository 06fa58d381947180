"""Models and inputs whose tensors cannot be read: the error names the argument, and nothing has changed."""

import pytest
import torch
from torch import nn

import layercollapse as lc


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


class Holds(nn.Module):
    """Multiplies its input by a tensor of some kind before it goes on."""

    def __init__(self, tensor, parameter=False):
        super().__init__()
        if parameter:
            self.matrix = nn.Parameter(tensor)
        else:
            self.register_buffer("matrix", tensor)
        self.layers = net()

    def forward(self, x):
        matrix = self.matrix.dequantize() if self.matrix.is_quantized else self.matrix
        return self.layers((matrix @ x.T).T)


def meta():
    with torch.device("meta"):
        return net()


def inference():
    with torch.inference_mode():
        return net()


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
QUANTIZED = torch.quantize_per_tensor(torch.eye(6), 0.1, 0, torch.qint8)
MODELS = {
    "sparse buffer": (lambda: Holds(torch.eye(6).to_sparse()), r"'matrix', float32 of shape \(6, 6\), layout .*coo"),
    "sparse rows": (lambda: Holds(torch.eye(6).to_sparse_csr()), "'matrix', .* layout .*csr"),
    "sparse parameter": (lambda: Holds(torch.eye(6).to_sparse(), parameter=True), "'matrix', .* layout .*coo"),
    "quantized buffer": (lambda: Holds(QUANTIZED), "'matrix', qint8"),
    "meta": (meta, "'0.weight' on the meta device"),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3)),
        "lazy '0.weight'; call the model once",
    ),
    "inference mode": (inference, "'0.weight', made inside torch.inference_mode"),
}
INPUTS = {
    "sparse": X.to_sparse(),
    "meta": X.to("meta"),
    "quantized": torch.quantize_per_tensor(X, 0.1, 0, torch.quint8),
}
CALLS = pytest.mark.parametrize("call", [lc.capture, lc.Pruner, lc.collapse])


@CALLS
@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_dense_values_is_refused_by_name(name, call):
    build, message = MODELS[name]
    model = build()
    with pytest.raises(lc.LayerCollapseError, match=f"^model: expected .* got .*{message}"):
        call(model, X)
    assert model.training


@CALLS
@pytest.mark.parametrize("name", INPUTS)
def test_inputs_without_dense_values_are_refused(name, call):
    with pytest.raises(
        lc.LayerCollapseError, match=r"^example_inputs: expected dense tensors with values, got .*\(4, 6\)"
    ):
        call(net(), INPUTS[name])


def test_a_sparse_buffer_that_forward_does_not_read_is_none_of_ours():
    class Unread(Holds):
        def forward(self, x):
            return self.layers(x)

    assert lc.collapse(Unread(torch.eye(6).to_sparse()), X, cost="macs").max_abs_error == 0.0


def test_a_lazy_model_that_was_called_is_a_model():
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))
    model(X)
    assert lc.collapse(model, X, cost="macs").max_abs_error == 0.0


@CALLS
def test_an_exported_program_is_no_module(call):
    program = torch.export.export(net(), (X,))
    with pytest.raises(lc.LayerCollapseError, match=r"^model: .* got ExportedProgram; pass what its module\(\) gives"):
        call(program, X)
