"""Collapsed models in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import layercollapse as lc
from networks import Small


def test_onnx(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    x = torch.randn(5, 1, 9, 9)
    result = lc.collapse(Small().eval(), x, None)
    result.save(tmp_path, onnx=True)
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    (y,) = session.run(None, {session.get_inputs()[0].name: x[:3].numpy()})  # the batch is dynamic
    torch.testing.assert_close(torch.from_numpy(y), result.model(x[:3]).detach(), atol=1e-5, rtol=1e-5)
