"""Checkpoints whose zeros are the mask."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import layercollapse as lc
from layercollapse.integrations import sparse

pytestmark = pytest.mark.usefixtures("seeded")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.first, self.last = nn.Embedding(6, 8), nn.Linear(8, 8), nn.Linear(8, 6, bias=False)
        self.last.weight = self.embedding.weight

    def forward(self, x):
        return self.last(self.first(self.embedding(x)).relu())


def pruned():
    model = Tied().eval()
    with torch.no_grad():
        model.first.weight.mul_(torch.rand(8, 8) > 0.5)
    return model


def words():
    return torch.randint(6, (2, 3))


def test_zeros_are_the_masks_there_and_back(tmp_path):
    model, other, x = pruned(), Tied().eval(), words()
    sparse.save(model, tmp_path / "new" / "model.safetensors")
    assert set(load_file(tmp_path / "new" / "model.safetensors")) == {"embedding.weight", "first.weight", "first.bias"}
    for path in (tmp_path / "new", tmp_path / "new" / "model.safetensors"):
        masks = sparse.load(other, path)
        assert torch.equal(masks["first.weight"], model.first.weight != 0)
        assert torch.equal(sparse.masks(path)["first.weight"], masks["first.weight"])
        assert "first.bias" not in masks
        assert torch.equal(other(x), model(x))
        assert other.last.weight is other.embedding.weight
    pruner = lc.Pruner(other, x)
    assert torch.equal(pruner.masks()["first.weight"], masks["first.weight"])


def test_shards(tmp_path):
    model, other = pruned(), Tied()
    state = {name: value.clone() for name, value in model.state_dict().items() if name != "last.weight"}
    parts = {"model-00001-of-00002.safetensors": ["embedding.weight"], "b.safetensors": ["first.weight", "first.bias"]}
    for file, names in parts.items():
        save_file({name: state[name] for name in names}, tmp_path / file)
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    sparse.load(other, tmp_path)
    assert torch.equal(other.first.weight, model.first.weight)
    index["weight_map"]["first.bias"] = "../outside.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(lc.LayerCollapseError, match="an index of files beside it"):
        sparse.load(other, tmp_path)


def test_masks_of_another_checkpoint():
    model, mask = Tied(), torch.rand(8, 8) > 0.5
    before = model.first.weight.detach().clone()
    for wrong in ({"nothing": mask}, {"first.weight": mask, "first.bias": mask}):
        with pytest.raises(lc.LayerCollapseError, match="masks: expected those of parameters"):
            sparse.apply(model, wrong)
        assert torch.equal(model.first.weight, before)
    sparse.apply(model, {"first.weight": mask})
    assert torch.equal(model.first.weight, before * mask)


def test_what_is_no_such_checkpoint_changes_nothing(tmp_path):
    model = Tied()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value.clone() for name, value in before.items() if name != "last.weight"}
    cases = {
        "missing": ({k: v for k, v in state.items() if k != "first.bias"}, "not missing, got first.bias"),
        "more": ({**state, "other": torch.ones(2)}, "of the model, got other"),
        "shape": ({**state, "first.bias": torch.ones(2)}, "of its shapes, got first.bias"),
        "packed": ({**state, "first.weight.bitmask": torch.ones(2)}, "got compressed ones"),
    }
    for name, (tensors, message) in cases.items():
        save_file(tensors, tmp_path / name)
        with pytest.raises(lc.LayerCollapseError, match=message):
            sparse.load(model, tmp_path / name)
    (tmp_path / "damaged").write_bytes(b"nothing")
    for path in (tmp_path / "damaged", tmp_path / "gone", tmp_path):
        with pytest.raises(lc.LayerCollapseError, match="path: expected a safetensors file"):
            sparse.load(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(lc.LayerCollapseError, match="path: expected a file that can be written"):
        sparse.save(model, tmp_path / "damaged" / "model.safetensors")
