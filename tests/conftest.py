import gc
import os
from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch.overrides import _get_current_function_mode_stack

from layercollapse import ops
from layercollapse.compiler.driver import api

# Properties of the ops: slow on a busy machine, and large. LAYERCOLLAPSE_NIGHTLY_CASES: of each op, with -m nightly.
slow_data = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("ops", deadline=None, suppress_health_check=slow_data)
cases = int(os.environ.get("LAYERCOLLAPSE_NIGHTLY_CASES", "50000"))
settings.register_profile("nightly", settings.get_profile("ops"), max_examples=cases)


def pytest_collection_finish() -> None:
    """The garbage collector looks through the million objects of torch no more, which took an eighth of the time."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # at the end Triton's binding counts what is left, and prints pages of it


@contextmanager
def core_using(threads=None, isa="auto"):
    """The CPU backend with so many threads and this instruction set; skips where the CPU does not have it."""
    before = torch.get_num_threads()
    try:
        if isa != "auto":
            from layercollapse_core import _core

            try:
                _core.use_isa(isa)
            except ValueError:
                pytest.skip("not on this CPU")
        torch.set_num_threads(threads or before)
        yield
    finally:
        torch.set_num_threads(before)
        if isa != "auto":
            _core.use_isa("auto")


@pytest.fixture(scope="session")
def core():
    return core_using


@pytest.fixture(params=[1, 2, 7])
def threads(request):
    with core_using(threads=request.param):
        yield request.param


@pytest.fixture(params=["portable", "avx2", "avx512"])
def isa(request):
    with core_using(isa=request.param):
        yield request.param


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small train several times slower on two threads when the machine has other work."""
    with core_using(threads=1):
        yield


@pytest.fixture
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def nothing_left_behind(seeded):
    """No mode of ours still sees torch's functions behind the test."""
    yield
    assert _get_current_function_mode_stack() == []


@pytest.fixture
def chosen_by_device():
    """A backend that a test chooses for all that follows is not chosen behind it."""
    yield
    ops.use_backend("auto")


class Counted:
    """A cost model without a clock: networks take the same time, all of them."""

    def __init__(self, device):
        pass

    def networks(self, models, example_inputs, *, seconds, passes):
        return dict.fromkeys(models, 1.0)


@pytest.fixture(autouse=True)
def counted(request, monkeypatch):
    """Multiply-accumulates decide how a network is written, where a test is not marked `timed`.

    Networks this small take microseconds, and on a machine with other work every race has two outcomes.
    """
    if request.node.get_closest_marker("timed") is None:
        monkeypatch.setattr(api, "Latency", Counted)
