"""What a name stands for, and the model and the inputs that come of it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse import LayerCollapseError
from layercollapse.cli.subject import MODEL, ONNX, PROGRAM, RUN, SAVED, Subject, Whole, chosen, kind_of, recorded
from records import make_record

MINE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, in_channels=1):
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(self.relu(self.conv(x)).mean((2, 3)))

def features():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
"""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine_of_subjects.py").write_text(MINE)
    return tmp_path


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)).eval()


def saved(folder: Path) -> Path:
    lc.collapse(small(), torch.randn(2, 1, 8, 8), cost="macs").save(folder)
    return folder


def shapes(example: object) -> list[tuple[int, ...]]:
    values = example.values() if isinstance(example, dict) else example
    return [tuple(value.shape) for value in values]


def test_what_a_name_stands_for(here: Path) -> None:
    for folder, file in (("ran", "run.json"), ("small.v2", "model.json"), ("a:b", "run.json"), ("resnet18", "x")):
        (here / folder).mkdir()
        (here / folder / file).touch()
    (here / "ran" / "model.json").touch()  # a run has its collapsed model beside the record
    kinds = {
        "ran": RUN,
        "./ran": RUN,
        "small.v2": SAVED,
        "a:b": RUN,
        "net.onnx": ONNX,
        "net.pt2": PROGRAM,
        "resnet18": MODEL,
        "mine:Net": MODEL,
        "torchvision:resnet50": MODEL,
    }
    assert {name: kind_of(name) for name in kinds} == kinds


def test_names_of_nothing_and_of_two_things(here: Path) -> None:
    (here / "resnet18").mkdir()
    (here / "empty").mkdir()
    with pytest.raises(LayerCollapseError, match=r"expected a folder with run.json .* got a folder without these, 'em"):
        kind_of("empty")
    with pytest.raises(LayerCollapseError, match=r"got 'resnet19'"):
        kind_of("resnet19")
    with pytest.raises(LayerCollapseError, match=r"got a folder without these, './resnet18'"):
        kind_of("./resnet18")
    (here / "resnet18" / "run.json").touch()
    with pytest.raises(LayerCollapseError, match=r"a folder and a network: ./resnet18 is the folder, --model resnet18"):
        kind_of("resnet18")
    assert kind_of("./resnet18") == RUN
    assert Subject.of(None, {"model": "resnet18"}, None).kind == MODEL


@pytest.mark.parametrize(
    ("name", "given", "weights", "message"),
    [
        ("mlp", {"model": "mlp"}, None, "model: expected it once, got 'mlp' and --model mlp"),
        ("mlp", {"epochs": 3}, None, "epochs: expected no such key with 'mlp', which is not built or trained here"),
        ("net.onnx", {"width": 3}, None, "width: expected no such key with 'net.onnx'"),
        ("net.onnx", {}, "w.pt", "weights: expected none with 'net.onnx', which has its own"),
        ("net.onnx", {}, None, "data: expected --data DATA, to measure net.onnx on, got none"),
        ("net.pt2", {}, None, "data: expected --data DATA"),
    ],
)
def test_keys_that_have_no_use(name: str, given: dict, weights: str | None, message: str) -> None:
    with pytest.raises(LayerCollapseError, match=message):
        Subject.of(name, given, weights).with_batches()


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("mlp", {}, [(2, 1, 28, 28)]),
        ("mlp", {"input": "3x8x10", "width": 2}, [(2, 3, 8, 10)]),
        ("mlp", {"data": "digits"}, [(2, 1, 8, 8)]),
        ("mine_of_subjects:Net", {"input": "3x9x9"}, [(2, 3, 9, 9)]),
    ],
)
def test_inputs_by_name(here: Path, name: str, given: dict, expected: list) -> None:
    model, example = Subject.of(name, given, None).with_example()
    assert shapes(example) == expected
    assert not model.training
    model(*example)


def test_texts_by_name() -> None:
    pytest.importorskip("transformers")
    model, example = Subject.of("bert", {"tokens": 7, "width": 16}, None).with_example()
    assert shapes(example) == [(2, 7), (2, 7)]
    assert model(**example).logits.shape == (2, 10)


def test_a_size_that_nothing_takes(here: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(LayerCollapseError, match="input: expected none, as it takes no images with bert, got 1x8x8"):
        Subject.of("bert", {"width": 16, "input": "1x8x8"}, None).with_example()


def test_a_model_of_ones_own_needs_a_shape(here: Path) -> None:
    with pytest.raises(LayerCollapseError, match="input: expected the size of an image, as --input 3x224x224, or --da"):
        Subject.of("mine_of_subjects:Net", {}, None).with_example()


def test_weights_of_ones_own(here: Path) -> None:
    name = "mine_of_subjects:features"
    state = {
        key: torch.ones_like(x)
        for key, x in Subject.of(name, {"input": "1x8x8"}, None).with_example()[0].state_dict().items()
    }
    torch.save(state, here / "w.pt")
    model, batches, example = Subject.of(name, {"data": "digits"}, "w.pt").with_batches()  # three logits for ten digits
    assert all(bool((x == 1).all()) for x in model.state_dict().values())
    assert shapes(example) == [(2, 1, 8, 8)]
    assert sum(len(images) for images, _ in batches) == 1258
    with pytest.raises(LayerCollapseError, match="weights: expected safetensors"):
        Subject.of("mlp", {"data": "digits"}, "w.pt").with_batches()


def test_a_saved_folder(here: Path) -> None:
    saved(here / "small.v2")
    with pytest.raises(LayerCollapseError, match="input: expected the size of an image, as --input 3x224x224, for an"):
        Subject.of("small.v2", {}, None).with_example()  # it takes 8x8 and 4x16
    model, example = Subject.of("small.v2", {"input": "1x8x8"}, None).with_example()
    assert shapes(example) == [(2, 1, 8, 8)]
    again, batches, _ = Subject.of("small.v2", {"data": "digits"}, None).with_batches()
    images, _ = next(iter(batches))
    assert torch.equal(model(images), again(images))
    with pytest.raises(LayerCollapseError, match=r"takes \(2, 1, 28, 28\) float32 of mnist5k, got small.v2, which"):
        Subject.of("small.v2", {"data": "mnist5k"}, None).with_batches()


def test_an_exported_program(here: Path) -> None:
    batch = ({0: torch.export.Dim("batch", min=1)},)
    torch.export.save(torch.export.export(small(), (torch.randn(3, 1, 8, 8),), dynamic_shapes=batch), "net.pt2")
    model, example = Subject.of("net.pt2", {}, None).with_example()
    assert shapes(example) == [(3, 1, 8, 8)]
    assert [site.kind for site in lc.inspect(model, example).sites] == ["relu"]
    assert shapes(Subject.of("net.pt2", {"input": "1x4x16"}, None).with_example()[1]) == [(3, 1, 4, 16)]
    assert shapes(Subject.of("net.pt2", {"data": "digits"}, None).with_batches()[2]) == [(2, 1, 8, 8)]
    with pytest.raises(LayerCollapseError, match=r"model: expected a program of torch.export in gone.pt2"):
        Subject.of("gone.pt2", {}, None).with_example()


def test_a_batch_of_which_the_size_is_fixed() -> None:
    feed = [(torch.zeros(4, 1), torch.zeros(4)), (torch.zeros(3, 1), torch.zeros(3))]
    assert [len(x) for x, _ in Whole(feed, 4)] == [4]


@pytest.mark.long
@pytest.mark.parametrize("fixed", [False, True])
def test_an_onnx_file(here: Path, fixed: bool) -> None:
    pytest.importorskip("onnxscript")
    if importlib.util.find_spec("onnx2torch") is None:  # which does not import by itself without torchvision
        pytest.skip("needs onnx2torch")
    sizes = None if fixed else ({0: torch.export.Dim("batch")},)
    torch.onnx.export(small(), (torch.randn(3, 1, 8, 8),), "net.onnx", dynamo=True, dynamic_shapes=sizes)
    model, example = Subject.of("net.onnx", {}, None).with_example()
    assert shapes(example) == [(3 if fixed else 2, 1, 8, 8)]
    with pytest.raises(LayerCollapseError, match=r"input: expected 1x8x8 with net.onnx, got 1x9x9"):
        Subject.of("net.onnx", {"input": "1x9x9"}, None).with_example()
    _, batches, _ = Subject.of("net.onnx", {"data": "digits"}, None).with_batches()
    images, _ = next(iter(batches))
    assert len(images) == (3 if fixed else 500)
    assert lc.inspect(model, example).macs == 64 * 8 + 8 * 10


def test_a_run_without_a_step(tmp_path: Path) -> None:
    record = make_record(0, finished=False)
    record.chosen, record.settings["width"] = None, 2
    record.save(tmp_path)
    job, read = recorded(tmp_path, batch_size=7)
    assert (job.data, job.batch_size) == ("digits", 7)
    with pytest.raises(LayerCollapseError, match="run: expected a run with at least one finished step"):
        chosen(read)
