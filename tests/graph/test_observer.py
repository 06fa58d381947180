"""Watching a model ends with the block, whatever happens in it, and follows no copy."""

import copy
import pickle
import threading
import warnings

import pytest
import torch
from torch import nn

from layercollapse import LayerCollapseError
from layercollapse.entropy.probe import EntropyProbe
from probed import two_sites

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(two_sites())
        with EntropyProbe(model) as probe:
            model(torch.randn(2, 3)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert [layer.name for layer in probe.report()] == ["1", "2.1"]


def test_replicas_in_threads():
    model, x = two_sites(), torch.randn(2, 3)

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
    model, x = two_sites(), torch.randn(2, 3)
    with EntropyProbe(model) as probe:
        model(x)
        copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        assert torch.equal(copied(x), model(x))
    copied(x)
    assert probe.report()["1"].samples == 4


def test_nesting_and_reuse():
    model, x = two_sites(), torch.randn(2, 3)
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


def test_models_that_cannot_be_watched():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = nn.Sequential(nn.Linear(3, 3), torch.jit.script(nn.ReLU()))
    with pytest.raises(LayerCollapseError, match="scripted one at 1"):
        EntropyProbe(scripted)
    with pytest.raises(LayerCollapseError, match=r"model: expected a torch.nn.Module, got function"):
        EntropyProbe(lambda x: x)


def test_a_pass_that_raises_leaves_no_counts_to_the_next():
    model = nn.Sequential(two_sites(), Failing(None))
    x = torch.randn(2, 3)
    with EntropyProbe(model) as probe:
        model(x)
        model[1].error = RuntimeError("late")
        with pytest.raises(RuntimeError, match="late"):
            model(x)
        model(x[:1])
        first = probe.report()
        model(x)
    assert [layer.samples for layer in first] == [3, 3, 3]  # and a report stays as it was
    assert [layer.samples for layer in probe.report()] == [5, 5, 5]


def test_rectifiers_in_hooks_of_modules_that_call_none():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)))
    handle = model[1][0].register_forward_hook(lambda module, args, output: torch.relu(output))
    with EntropyProbe(model) as probe:
        model(torch.randn(2, 3))
    handle.remove()
    assert list(probe.calls()) == ["1.0"]
