"""The rectifier calls of a forward pass: their names, the positions that count, and what is no call of the model."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from layercollapse import LayerCollapseError
from layercollapse.entropy.probe import EntropyProbe
from probed import Shared, same_names, two_sites

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def test_loss_and_recomputation_are_not_counted():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.relu = nn.Linear(3, 3), nn.ReLU()

        def forward(self, x):
            return self.relu(checkpoint(lambda y: self.relu(self.linear(y)), x, use_reentrant=False))

    model, x = Checkpointed(), torch.randn(2, 3, requires_grad=True)
    with EntropyProbe(model) as probe:
        F.relu(model(x)).sum().backward()
        for reentrant in (True, False):
            checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    assert [(layer.name, layer.samples) for layer in probe.report()] == [("relu", 6), ("relu#2", 6)]


def bert():
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=50)
    ).eval()


def test_bert_counts_data_tokens_only():
    model, tokens = bert(), torch.randint(0, 50, (3, 7))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [0] + [1] * 6])
    names = same_names(model, tokens)
    assert len(names) == 2
    reports = []
    for by_argument in ("keyword", "position", "keep"):
        with torch.no_grad(), EntropyProbe(model) as probe:
            if by_argument == "keyword":
                model(tokens, attention_mask=mask)
            elif by_argument == "position":
                model(tokens, mask)
            else:
                probe.keep(mask.bool())
                model(tokens, attention_mask=mask)
        reports.append(probe.report())
    for report in reports:
        assert [layer.samples for layer in report] == [17, 17]
        assert report[names[0]].kind == "gelu"
        assert torch.equal(report[names[0]].counts, reports[0][names[0]].counts)


def test_transformer_encoder_does_not_take_its_fused_path():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    assert same_names(model, torch.randn(2, 5, 8)) == ["layers.0", "layers.1"]


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.conv = nn.Linear(4, 6), nn.Conv1d(6, 3, 3, padding=1)

    def forward(self, x):  # (N, T, 4)
        x = F.relu(self.linear(x))  # (N, T, 6)
        x = F.relu(self.conv(x.transpose(1, 2)))  # (N, 3, T)
        x = F.relu(x.transpose(1, 2).reshape(-1, 3))  # (N·T, 3)
        return F.relu(x.reshape(2, -1, 3).mean(1))  # (N, 3)


def test_keep_applies_to_the_next_forward_only():
    model = Tokens()
    with EntropyProbe(model) as probe:
        probe.keep(torch.tensor([[True, True, False, False, False], [True, False, False, False, False]]))
        model(torch.randn(2, 5, 4))
        assert [layer.samples for layer in probe.report()] == [3, 3, 3, 2]
        model(torch.randn(2, 5, 4))
    assert [layer.samples for layer in probe.report()] == [13, 13, 13, 4]


def test_masks_that_do_not_fit():
    model = Tokens()
    with EntropyProbe(model) as probe:
        for bad in (torch.ones(2, 5), torch.ones(5, dtype=torch.bool), [True]):
            with pytest.raises(LayerCollapseError, match=r"mask: expected a bool tensor \(N, T\)"):
                probe.keep(bad)
        with pytest.raises(LayerCollapseError, match="at least one position"):
            probe.keep(torch.zeros(2, 5, dtype=torch.bool))
        probe.keep(torch.ones(2, 4, dtype=torch.bool))
        with pytest.raises(LayerCollapseError, match=r"'forward': mask: .* positions \(2, 5\), got \(2, 4\)"):
            model(torch.randn(2, 5, 4))
        model(torch.randn(2, 5, 4))
    assert probe.report()["forward"].samples == 10  # the failed forward counts nothing


def compiled():
    model = torch.compile(two_sites(), backend="eager")
    model(torch.randn(2, 3))  # compiled without hooks: this code must not run below
    return model


def compiled_inside():
    model = two_sites()
    model[2] = torch.compile(model[2], backend="eager")
    model.compile(backend="eager")
    model(torch.randn(2, 3))
    return model


@pytest.mark.parametrize("wrap", [lambda: nn.DataParallel(two_sites()), compiled, compiled_inside])
def test_wrapped_models_keep_their_names(wrap):
    model = wrap()
    device = next(model.parameters()).device
    with EntropyProbe(model) as probe:
        model(torch.randn(2, 3, device=device))
    assert [(layer.name, layer.samples) for layer in probe.report()] == [("1", 2), ("2.1", 2)]


def test_a_module_under_two_names_has_its_first():
    model = Shared()
    with EntropyProbe(model) as probe:
        model(torch.randn(2, 3))
    assert [layer.name for layer in probe.report()] == ["act", "act#2"]


def test_a_module_under_two_names_in_the_capture():
    same_names(Shared(), torch.randn(2, 3))


def test_a_site_must_keep_its_channels_and_kind():
    class Changing(nn.Module):
        act = staticmethod(F.relu)

        def forward(self, x):
            return self.act(x)

    model = Changing()
    with EntropyProbe(model) as probe:
        model(torch.randn(2, 3))
        with pytest.raises(LayerCollapseError, match=r"'forward': expected relu with 3 channels .* got relu with 4"):
            model(torch.randn(2, 4))
        model.act = F.relu6
        with pytest.raises(LayerCollapseError, match=r"got relu6 on \[0.0, 6.0\] with 3 channels"):
            model(torch.randn(2, 3))
    assert probe.report()["forward"].samples == 2
