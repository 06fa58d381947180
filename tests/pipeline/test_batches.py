"""Batches as users have them."""

import json

import pytest
import torch
from torch import nn

from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline import checkpoint
from layercollapse.pipeline.api import run

pytestmark = pytest.mark.usefixtures("one_thread")


class Tagger(nn.Module):
    """Keyword arguments in, a dict out, as the models of transformers."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc, self.head = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, ids, attention_mask=None, labels=None):
        assert labels is None
        keep = torch.ones_like(ids) if attention_mask is None else attention_mask
        y = torch.relu(self.fc(self.embed(ids))) * keep[..., None]
        return {"logits": self.head(y.sum(1) / keep.sum(1, keepdim=True))}


def test_batches_may_be_dicts(tmp_path):
    torch.manual_seed(0)
    ids = torch.randint(9, (64, 5))
    whole = {"ids": ids, "attention_mask": (torch.arange(5) < 3).expand(64, 5).long()}
    batches = [{key: x[i : i + 16] for key, x in whole.items()} | {"labels": ids[i : i + 16, 0] > 4} for i in (0, 16)]
    result = run(
        Tagger(),
        train=lambda model: None,
        evaluate=lambda model: float((model(**whole)["logits"].argmax(1) == (ids[:, 0] > 4)).float().mean()),
        data=batches,
        test_data=batches[1:],
        steps=1,
        max_drop=100,
        unit="fraction",
        out=tmp_path / "made",
    )
    record = result.record
    assert record.identical == record.compared == 16
    assert record.after.macs == record.before.macs - 6 * 8 * 5 + result.model.fc.weight.numel() * 5
    assert set(record.after.latency_ms) == {"1", "64"}
    model = Tagger()
    checkpoint.load(result.out, record.chosen, model)
    torch.testing.assert_close(result.model(**whole), model(**whole))
    # Half of the weights went, and the padding was not counted: 3 of 5 positions of 32 samples.
    entropy = json.loads((result.out / "entropy.json").read_text())
    assert {sum(row) for row in entropy["layers"][0]["counts"]} == {3 * 32}


def test_dicts_must_hold_arguments_of_the_model(tmp_path):
    with pytest.raises(LayerCollapseError, match=r"data: expected .* a dict of arguments of the model, got dict"):
        run(Tagger(), train=None, evaluate=None, data=[{"tokens": torch.zeros(2, 5)}], out=tmp_path / "made")
