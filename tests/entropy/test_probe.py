"""The probe against a count of stored activations, and against the names that the graph capture gives."""

import copy
import math
import pickle
import threading
import warnings
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from layercollapse import LayerCollapseError
from layercollapse.entropy.probe import EntropyProbe, EntropyReport
from layercollapse.graph.capture import capture

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(autouse=True)
def _nothing_left_behind():
    torch.manual_seed(0)
    yield
    assert _get_current_function_mode_stack() == []


class Mixed(nn.Module):
    """Every way to call a rectifier; `store` keeps what each of them saw, as (name, tensor, channel dim, upper)."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.conv1d = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv1d(6, 5, 3)
        self.relu, self.relu6, self.leaky = nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.1)
        self.block = nn.Sequential(nn.Linear(5, 7), nn.PReLU())
        self.tanh = nn.Hardtanh(-0.5, 0.25)
        self.seen = []

    def store(self, name, x, dim, lower=0.0, upper=None):
        self.seen.append((name, x.detach().clone(), dim, lower, upper))
        return x

    def forward(self, x):
        x = self.relu(self.store("relu", self.bn(self.conv(x)), 1))
        x = self.relu(self.store("relu#2", x - 0.3, 1))
        x = F.relu(self.store("forward", -x + 0.1, 1), inplace=True)
        x = self.relu6(self.store("relu6", 40 * x - 1, 1, 0, 6))
        x = torch.relu_(self.store("forward#2", x - x.mean(), 1))
        x = self.conv1d(x.flatten(2))
        x = self.leaky(self.store("leaky", x, 1))
        x = x.transpose(1, 2)
        y = self.block[0](x)
        self.store("block.1", y, 2)
        x = self.block(x)
        x = self.tanh(self.store("tanh", x, 2, -0.5, 0.25)) + y
        x = x.mean(1)
        x = self.store("forward#3", x, 1).relu()
        return torch.ops.aten.relu(self.store("forward#4", x - 0.1, 1))


def brute(x, dim, lower, upper):
    rows = x.movedim(dim, 0).reshape(x.shape[dim], -1).double()
    columns = [rows < lower, rows == lower, rows > lower, rows.isnan()] + ([rows >= upper] if upper else [])
    return torch.stack([column.sum(1) for column in columns], 1).cpu()


def same_names(model, *inputs):
    with torch.no_grad(), EntropyProbe(model) as probe:
        model(*inputs)
    ours = [(layer.name, layer.kind, layer.neurons) for layer in probe.report()]
    assert ours == [(site.name, site.kind, site.channels) for site in capture(model, inputs).sites]
    return [name for name, _, _ in ours]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_counts_equal_those_of_stored_activations(device, training, grad):
    model = Mixed().train(training).to(device)
    with EntropyProbe(model) as probe:
        for size in (9, 12, 9):
            with grad():
                model(torch.randn(4, 3, size, size, device=device))
        model(torch.randn(4, 3, 9, 9, device=device))
    report = probe.report()
    assert [layer.name for layer in report] == list(dict.fromkeys(name for name, *_ in model.seen))
    for layer in report:
        expected = sum(brute(*rest) for name, *rest in model.seen if name == layer.name)
        assert torch.equal(layer.counts, expected), layer.name
    assert report["relu6"].kind == "relu6"
    assert report["tanh"].kind == "hardtanh"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("grad", [torch.enable_grad, torch.inference_mode])
def test_patterns_are_those_of_stored_activations(device, grad):
    model = Mixed().eval().to(device)
    with EntropyProbe(model, patterns=True) as probe:
        for size in (9, 12, 9):
            with grad():
                model(torch.randn(4, 3, size, size, device=device))
    report = probe.report()
    for layer in report:
        rows = Counter()
        for name, x, dim, lower, _ in model.seen:
            if name == layer.name:
                rows.update(map(tuple, (x.movedim(dim, -1).flatten(0, -2).double() > lower).tolist()))
        assert sorted(layer.patterns.counts.tolist()) == sorted(rows.values()), layer.name
        assert layer.patterns.rows == rows.total() == layer.samples
        assert layer.patterns.channels == layer.neurons
        neurons = layer.counts[:, 2] / layer.counts[:, :3].sum(1)
        bits = torch.special.entr(torch.stack([neurons, 1 - neurons])).sum(0) / math.log(2)
        assert float(bits.max()) - 1e-6 <= layer.patterns.entropy <= float(bits.sum()) + 1e-6
    again = EntropyReport.from_json(report.to_json())
    assert again.table() == report.table()
    twice = report.merge(again)
    for one, two in zip(report, twice, strict=True):
        assert (two.patterns.distinct, two.patterns.rows) == (one.patterns.distinct, 2 * one.patterns.rows)


def test_patterns_of_written_activations_and_of_what_is_no_padding():
    class Written(nn.Module):
        def forward(self, x):
            return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    x = torch.tensor([[1.0, -1.0], [2.0, -2.0], [-1.0, 1.0], [3.0, 3.0]])
    with EntropyProbe(Written(), patterns=True) as probe:
        probe.model(x)
    (layer,) = probe.report()
    assert sorted(layer.patterns.counts.tolist()) == [1, 1, 2]
    with EntropyProbe(nn.Sequential(nn.ReLU()), patterns=True) as probe:
        probe.keep(torch.tensor([[True, True], [False, True]]))
        probe.model(x.view(2, 2, 2))
    (layer,) = probe.report()
    assert (layer.patterns.rows, layer.patterns.distinct) == (3, 2)


def test_patterns_are_counted_on_request_only():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with EntropyProbe(model) as probe:
        model(torch.randn(5, 3))
    assert probe.report()["1"].patterns is None
    assert "patterns" not in probe.report().table()
    with pytest.raises(LayerCollapseError, match="patterns: expected True or False, got 3"):
        EntropyProbe(model, patterns=3)


def test_names_agree_with_the_capture():
    names = same_names(Mixed().eval(), torch.randn(2, 3, 9, 9))
    assert names[:4] == ["relu", "relu#2", "forward", "relu6"]


def test_rectifiers_written_as_clamps_and_thresholds():
    class Clamps(nn.Module):
        def __init__(self):
            super().__init__()
            self.threshold, self.rrelu = nn.Threshold(0, 0), nn.RReLU()

        def forward(self, x):
            x = self.threshold(self.rrelu(x))
            x = torch.clamp(x - 0.5, min=0) + x.clamp_min(0) + x.clip(0, 6) + (x - 1).clamp_(0, max=2.5)
            x = x / x.norm().clamp(min=1e-6)  # what follows is no rectifier
            return x.clamp(-50, 50) + x.clamp(max=1) + x.long().clamp(min=0) + x.clamp(min=x.mean())

    model, x = Clamps().eval(), torch.randn(8, 3)
    names = same_names(model, x)
    assert names == ["rrelu", "threshold", "forward", "forward#2", "forward#3", "forward#4"]
    kinds = [site.kind for site in capture(model, x).sites]
    assert kinds == ["rrelu", "relu", "relu", "relu", "relu6", "hardtanh"]


@pytest.mark.parametrize("device", DEVICES)
def test_outputs_and_gradients_do_not_change(device):
    model = Mixed().to(device)
    twin, x = copy.deepcopy(model), torch.randn(4, 3, 9, 9, device=device)
    expected = twin(x)
    with EntropyProbe(model):
        result = model(x)
    assert torch.equal(result, expected)
    result.sum().backward()
    expected.sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_float64_and_autocast():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU())
    x = torch.randn(20, 4)
    with EntropyProbe(model) as probe, torch.autocast("cpu", torch.bfloat16):
        model(x)
        seen = model[0](x)
    assert seen.dtype == torch.bfloat16
    assert torch.equal(probe.report()["1"].counts, brute(seen, 1, 0, None))
    double = model.double()
    with EntropyProbe(double) as probe:
        double(x.double() * 1e-300)
    assert probe.report()["1"].samples == 20


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


# --- models that people have ------------------------------------------------------------------------------


def resnet():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[2, 2, 2, 2], layer_type="basic")
    return ResNetForImageClassification(config).eval()


def bert():
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=50)
    ).eval()


def test_resnet_of_transformers():
    assert len(same_names(resnet(), torch.randn(2, 3, 32, 32))) == 17


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "mobilenet_v2", "mlp"])
def test_own_models(name):
    from layercollapse.zoo.models import build

    model = build(name, in_channels=3, image_size=32, width=4).eval()
    assert len(same_names(model, torch.randn(2, 3, 32, 32))) >= {"mlp": 1}.get(name, 15)


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


# --- masks ------------------------------------------------------------------------------------------------


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


# --- wrappers ---------------------------------------------------------------------------------------------


def two():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.ReLU6()))


def compiled():
    model = torch.compile(two(), backend="eager")
    model(torch.randn(2, 3))  # compiled without hooks: this code must not run below
    return model


def compiled_inside():
    model = two()
    model[2] = torch.compile(model[2], backend="eager")
    model.compile(backend="eager")
    model(torch.randn(2, 3))
    return model


@pytest.mark.parametrize("wrap", [lambda: nn.DataParallel(two()), compiled, compiled_inside])
def test_wrapped_models_keep_their_names(wrap):
    model = wrap()
    device = next(model.parameters()).device
    with EntropyProbe(model) as probe:
        model(torch.randn(2, 3, device=device))
    assert [(layer.name, layer.samples) for layer in probe.report()] == [("1", 2), ("2.1", 2)]


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(two())
        with EntropyProbe(model) as probe:
            model(torch.randn(2, 3)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert [layer.name for layer in probe.report()] == ["1", "2.1"]


def test_replicas_in_threads():
    model, x = two(), torch.randn(2, 3)

    def work():
        for _ in range(20):
            model(x)

    with EntropyProbe(model) as probe:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [layer.samples for layer in probe.report()] == [160, 160]


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.act = nn.Linear(3, 3), nn.ReLU()
        self.again = self.act

    def forward(self, x):
        return self.act(self.linear(self.again(self.linear(x))))


def test_a_module_under_two_names_has_its_first():
    model = Shared()
    with EntropyProbe(model) as probe:
        model(torch.randn(2, 3))
    assert [layer.name for layer in probe.report()] == ["act", "act#2"]


class Pooled(torch.nn.Module):
    """A 3-D tensor whose length changes between the convolution and the rectifier."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv1d(2, 3, 3), nn.MaxPool1d(2)

    def forward(self, x):
        x = self.pool(self.conv(x))
        return torch.relu(torch.cat([x, x[:, :1]], dim=1))


def test_channels_after_pooling_and_cat():
    same_names(Pooled(), torch.randn(2, 2, 12))
    assert capture(Pooled(), torch.randn(2, 2, 12)).sites[0].channels == 4


class Moved(nn.Module):
    """A rectifier behind a convolution to 5 channels of maps 6 x 7, or a linear layer, and a move of these."""

    def __init__(self, move, tokens):
        super().__init__()
        self.layer, self.move = nn.Linear(3, 5) if tokens else nn.Conv2d(3, 5, 1), move

    def forward(self, x):
        return F.relu(self.move(self.layer(x)))


# Name -> the move and the dimension where the channels lie then.
MOVES = {
    "mean of rows": (lambda x: x.mean(2), 1),
    "mean by name": (lambda x: torch.mean(x, dim=(3,)), 1),
    "kept mean": (lambda x: x.mean(-1, keepdim=True), 1),
    "sum": (lambda x: torch.sum(x, -2), 1),
    "amax": (lambda x: x.amax(2), 1),
    "largest": (lambda x: x.max(3).values, 1),
    "select": (lambda x: x[:, :, 0], 1),
    "select by name": (lambda x: x.select(3, 1), 1),
    "slice": (lambda x: x[:, 1:, ::2], 1),
    "squeeze": (lambda x: x[:, :, :1].squeeze(2), 1),
    "unsqueeze": (lambda x: x.unsqueeze(2)[:, :, 0].mean(2), 1),
    "flatten": (lambda x: x.flatten(2), 1),
    "reshape": (lambda x: x.reshape(x.shape[0], 5, -1), 1),
    "permute": (lambda x: x.permute(0, 2, 3, 1), 3),
    "between": (lambda x: x.permute(0, 2, 1, 3), 2),
    "transpose": (lambda x: x.transpose(1, 2).mean(3), 2),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2), 2),
    "movedim": (lambda x: torch.movedim(x, 1, -1), 3),
    "last two": (lambda x: x.mean(2).mT, 2),
    "chunk": (lambda x: x.chunk(2, dim=2)[1].mean(2), 1),
    "and back": (lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 5).transpose(1, 2), 1),
    "pool": (lambda x: F.adaptive_avg_pool2d(x, (1, None)).squeeze(2), 1),
}
TOKEN_MOVES = {
    "first": (lambda x: x[:, 0], 2),
    "rows": (lambda x: x.mean(2), 2),
    "positions": (lambda x: x.reshape(-1, 7, 5), 2),
    "to maps": (lambda x: x.permute(0, 3, 1, 2), 1),
    "to one row of maps": (lambda x: x[:, 0].transpose(1, 2), 1),
    "square": (lambda x: x[:, :5, 0].transpose(1, 2), 1),
}


@pytest.mark.parametrize(
    ("name", "move", "dim", "tokens"),
    [(name, *move, False) for name, move in MOVES.items()]
    + [(name, *move, True) for name, move in TOKEN_MOVES.items()],
)
def test_channels_that_move(name, move, dim, tokens):
    model, x = Moved(move, tokens), torch.randn(2, 6, 7, 3) if tokens else torch.randn(2, 3, 6, 7)
    with torch.no_grad(), EntropyProbe(model) as probe:
        seen = model.move(model.layer(x))
        model(x)
    assert torch.equal(probe.report()["forward"].counts, brute(seen, dim, 0, None))
    (site,) = capture(model, x).sites
    assert (site.channels, site.channel_dim % seen.ndim) == (seen.shape[dim], dim)


def test_a_module_under_two_names_in_the_capture():
    same_names(Shared(), torch.randn(2, 3))


# --- what can go wrong ------------------------------------------------------------------------------------


class Failing(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.relu, self.error = nn.ReLU(), error

    def forward(self, x):
        x = self.relu(x)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return x


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_exceptions_leave_nothing_behind(error):
    model = Failing(error("stop"))
    with pytest.raises(error, match="stop"), EntropyProbe(model):
        model(torch.randn(2, 3))
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_retry_inside_except_counts_once():
    model = Failing(RuntimeError("out of memory"))
    with EntropyProbe(model) as probe:
        try:
            model(torch.randn(4, 3))
        except RuntimeError:
            model(torch.randn(2, 3))
    assert probe.report()["relu"].samples == 2


def test_a_copy_made_while_watching_is_not_watched():
    model, x = two(), torch.randn(2, 3)
    with EntropyProbe(model) as probe:
        model(x)
        copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        assert torch.equal(copied(x), model(x))
    copied(x)
    assert probe.report()["1"].samples == 4


def test_nothing_seen():
    model = two()
    with EntropyProbe(model) as probe:
        pass
    with pytest.raises(LayerCollapseError, match=r"at least one forward pass .* got none"):
        probe.report()
    with EntropyProbe(model) as probe:
        model.forward(torch.randn(2, 3))
    with pytest.raises(LayerCollapseError, match=r"model.forward\(x\)"):
        probe.report()
    linear = nn.Linear(3, 3)
    with EntropyProbe(linear) as probe:
        linear(torch.randn(2, 3))
    with pytest.raises(LayerCollapseError, match=r"expected rectifiers .*as a clamp.* got none called by Linear"):
        probe.report()


def test_nan_names_the_sites():
    model = two()
    with EntropyProbe(model) as probe:
        model(torch.full((2, 3), float("nan")))
    with pytest.raises(LayerCollapseError, match=r"got NaN at 1, 2\.1"):
        probe.report()
    probe.reset()
    with probe:
        model(torch.randn(2, 3))
    assert probe.report()["1"].samples == 2


def test_nesting_and_reuse():
    model, x = two(), torch.randn(2, 3)
    probe = EntropyProbe(model)
    with probe:
        model(x)
        with pytest.raises(LayerCollapseError, match="nested"), probe:
            pass
        model(x)
        with EntropyProbe(model) as other:
            model(x)
    with probe:
        model(x)
    assert probe.report()["1"].samples == 8
    assert other.report()["1"].samples == 2


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


def test_activations_that_cannot_be_counted():
    class Integers(nn.Module):
        def forward(self, x):
            return F.relu(x)

    model = Integers()
    with EntropyProbe(model), pytest.raises(LayerCollapseError, match=r"site 'forward': x: expected a dense float32.*"):
        model(torch.arange(6).reshape(2, 3))


def test_models_that_cannot_be_watched():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = nn.Sequential(nn.Linear(3, 3), torch.jit.script(nn.ReLU()))
    with pytest.raises(LayerCollapseError, match="scripted one at 1"):
        EntropyProbe(scripted)
    with pytest.raises(LayerCollapseError, match=r"model: expected a torch.nn.Module, got function"):
        EntropyProbe(lambda x: x)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_channels_behind_an_interpolation_are_those_of_the_graph(mode: str, antialias: bool) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(2, 4, 1)

        def forward(self, x):
            smooth = {"antialias": True} if antialias and mode.startswith("bi") else {}
            x = torch.nn.functional.interpolate(self.layer(x), scale_factor=2, mode=mode, **smooth)
            return torch.relu(x.flatten(2))

    model, x = Joined(), torch.randn(3, 2, 5, 6)
    with EntropyProbe(model) as probe:
        model(x)
    site = capture(model, x).sites[0]
    assert (site.channels, site.channel_dim) == (4, 1)
    assert probe.report()[site.name].neurons == 4
