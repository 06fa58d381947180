"""Save and load: the same outputs, without the class; nothing from a damaged or hostile file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.prune import l1_unstructured

import layercollapse as lc
from layercollapse.compiler.backend.serialize import save
from networks import Small


def test_round_trip(saved: tuple[Path, nn.Module, torch.Tensor]) -> None:
    folder, model, x = saved
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.pt2", "model.safetensors"]
    for path in (folder, folder / "model.json", str(folder)):
        loaded = lc.load(path)
        assert torch.equal(loaded(x), model(x))
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }


def test_a_file_of_before_complex_parameters(saved: tuple[Path, nn.Module, torch.Tensor], tmp_path: Path) -> None:
    folder, model, x = saved
    shutil.copy(folder / "model.safetensors", tmp_path)
    described = json.loads((folder / "model.json").read_text())
    assert described.pop("complex") == []
    (tmp_path / "model.json").write_text(json.dumps(described))
    assert torch.equal(lc.load(tmp_path)(x), model(x))


@pytest.mark.parametrize("name", ["small.v2", "a.b/c.d", "model.json.d"])
def test_a_folder_with_a_dot_in_its_name(
    saved: tuple[Path, nn.Module, torch.Tensor], tmp_path: Path, name: str
) -> None:
    _, model, x = saved
    save(model, tmp_path / name, x)
    for path in (tmp_path / name, str(tmp_path / name), tmp_path / name / "model.json"):
        assert torch.equal(lc.load(path)(x), model(x))


@pytest.mark.parametrize("fails", ["save_file", "save", "save_onnx"])
def test_what_fails_leaves_nothing(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise lc.LayerCollapseError("no")

    where = torch.export if fails == "save" else sys.modules["layercollapse.compiler.backend.serialize"]
    monkeypatch.setattr(where, fails, stop)
    result = lc.collapse(nn.Linear(2, 2).eval(), torch.ones(1, 2))
    (tmp_path / "there").mkdir()
    for folder in ("there", "new/one"):
        with pytest.raises(lc.LayerCollapseError, match="no"):
            result.save(tmp_path / folder, onnx=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


@pytest.mark.long
def test_exports_take_every_size_that_the_network_takes(tmp_path: Path) -> None:
    """The sequence length of a token model, height and width of a convolutional one."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    images = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    )
    images[0].weight.data.zero_()  # leaves a constant map, which depends on the size
    images[0].bias.data.fill_(1.0)
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.ReLU())
    cases = {
        "images": (images, torch.rand(2, 3, 8, 8), torch.rand(3, 3, 10, 13)),
        "tokens": (tokens, torch.randint(9, (2, 5)), torch.randint(9, (3, 8))),
    }
    for name, (model, example, other) in cases.items():
        result = lc.collapse(model.eval(), example)
        result.save(tmp_path / name, onnx=True)
        exported = torch.export.load(tmp_path / name / "model.pt2").module()
        session = onnxruntime.InferenceSession(tmp_path / name / "model.onnx")
        (run,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
        with torch.no_grad():
            expected = model(other)
            for got in (result.model(other), lc.load(tmp_path / name)(other), exported(other), torch.from_numpy(run)):
                assert torch.allclose(got, expected, atol=1e-6)


def test_no_data_goes_into_the_files(tmp_path: Path) -> None:
    data = torch.rand(100_000, 8)
    lc.collapse(nn.Sequential(nn.Linear(8, 4), nn.ReLU()).eval(), data[:2]).save(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 100_000


@pytest.mark.long
def test_pt2_loads_without_the_package(saved: tuple[Path, nn.Module, torch.Tensor], tmp_path: Path) -> None:
    folder, model, x = saved
    torch.save({"x": x, "y": model(x).detach()}, tmp_path / "data.pt")
    code = (
        "import sys, torch\n"
        f"d = torch.load({str(tmp_path / 'data.pt')!r}, weights_only=True)\n"
        f"m = torch.export.load({str(folder / 'model.pt2')!r}).module()\n"
        "assert 'layercollapse' not in sys.modules\n"
        "assert (m(d['x']) - d['y']).abs().max() < 1e-6\n"
        "assert m(d['x'][:2]).shape == (2, 3)\n"  # the batch is dynamic
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_truncated_files(saved: tuple[Path, nn.Module, torch.Tensor], tmp_path: Path) -> None:
    folder, _, _ = saved
    for name in ("model.json", "model.safetensors"):
        whole = (folder / name).read_bytes()
        for length in (0, 1, len(whole) // 2, len(whole) - 1):
            for other in ("model.json", "model.safetensors"):
                (tmp_path / other).write_bytes((folder / other).read_bytes())
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(lc.LayerCollapseError, match="path: "):
                lc.load(tmp_path)
    with pytest.raises(lc.LayerCollapseError, match=r"model\.json"):
        lc.load(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_written(saved: tuple[Path, nn.Module, torch.Tensor], tmp_path: Path) -> None:
    _, _model, x = saved
    (tmp_path / "file").write_text("")
    with pytest.raises(lc.LayerCollapseError, match="folder: expected one that can be written"):
        lc.collapse(Small().eval(), x, None).save(tmp_path / "file" / "out")
    with pytest.raises(lc.LayerCollapseError, match="expected the model of a CollapseResult"):
        save(nn.Linear(2, 2), tmp_path, x)


class Rectified(nn.Module):
    """A convolution pruned by torch, and a view changed in place, which torch.export has to decompose."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        l1_unstructured(self.conv, "weight", 0.5)

    def forward(self, x):
        x = self.conv(x)
        x.view(x.shape[0], -1).relu_()
        return x


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lc.collapse(Rectified(), torch.randn(2, 3, 4, 4)).save(tmp_path)
    assert capfd.readouterr() == ("", "")
