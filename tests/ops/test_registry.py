"""The registry of backends: a choice per thread and task, which one ran, and backends of other packages."""

import asyncio
import contextvars
import json
import os
import subprocess
import sys
import threading

import pytest
import torch

from layercollapse import LayerCollapseError, ops
from layercollapse.ops import reference
from layercollapse.ops import registry as backends
from layercollapse.ops.registry import Backend, BackendStatus, register


def backend_of(name, **changes):
    """One that runs on the reference under a name of its own."""
    fields = {
        "name": name,
        "status": lambda: BackendStatus(True, "for a test"),
        "sign_histogram_": reference.sign_histogram_,
        "masked_topk_": reference.masked_topk_,
    }
    return Backend(**{**fields, **changes})


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    ops.backends()  # reads the entry points, if there are any
    monkeypatch.setattr(backends, "_registry", dict(backends._registry))
    yield
    ops.use_backend("auto")


def who_runs():
    ops.sign_histogram(torch.ones(2, 3))
    return ops.last_backend()


def in_a_thread(call):
    results = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


def test_the_last_one_registered_is_taken_and_asked_for():
    register(backend_of("mine"))
    assert who_runs() == "mine"
    with ops.use_backend("reference"):
        assert who_runs() == "reference"
    mask = ops.pack_mask(torch.ones(4, dtype=torch.bool))
    ops.masked_topk_(torch.ones(4), mask, 1)
    assert ops.last_backend() == "mine"


@pytest.mark.parametrize("forced", [True, False])
def test_ops_that_it_leaves_out_run_on_the_reference(forced):
    register(backend_of("mine"))
    if forced:
        ops.use_backend("mine")
    weight, mask = torch.ones(4), ops.pack_mask(torch.tensor([True, False, True, False]))
    ops.apply_mask_(weight, mask)
    assert weight.tolist() == [1, 0, 1, 0]
    assert ops.last_backend() != "mine"
    assert not forced or ops.last_backend() == "reference"
    assert who_runs() == "mine"
    register(backend_of("mine", apply_mask_=lambda weights, masks: weights[0].fill_(7)))
    ops.apply_mask_(weight, mask)
    assert weight.tolist() == [7] * 4
    assert ops.last_backend() == "mine"


def test_it_must_be_able_to():
    register(backend_of("halves", dtypes=frozenset({torch.float16})))
    register(backend_of("elsewhere", devices=frozenset({"xla"})))
    register(backend_of("broken", status=lambda: BackendStatus(False, "no such device")))
    assert who_runs() not in ("halves", "elsewhere", "broken")
    ops.sign_histogram(torch.ones(2, 3, dtype=torch.float16))
    assert ops.last_backend() == "halves"
    with pytest.raises(LayerCollapseError, match="use_backend: 'broken' cannot run here: no such device"):
        ops.use_backend("broken")


def test_a_status_that_raises_is_a_reason():
    register(backend_of("mine", status=lambda: 1 // 0))
    assert ops.backends()["mine"] == (False, "its status failed: ZeroDivisionError: integer division or modulo by zero")
    assert who_runs() != "mine"


def test_another_thread_chooses_for_itself():
    register(backend_of("mine"))
    ops.use_backend("reference")
    assert in_a_thread(ops.last_backend) is None
    assert in_a_thread(who_runs) == "mine"
    assert in_a_thread(lambda: contextvars.copy_context().run(who_runs)) == "mine"
    assert in_a_thread(lambda: ops.use_backend("mine")) is not None
    assert who_runs() == "reference"
    taken = contextvars.copy_context()
    assert in_a_thread(lambda: taken.run(who_runs)) == "reference"


def test_tasks_do_not_see_each_others_choice():
    register(backend_of("mine"))

    async def task(name):
        with ops.use_backend(name):
            await asyncio.sleep(0)  # the other task is in its block now
            return who_runs()

    async def both():
        return await asyncio.gather(task("reference"), task("mine"))

    assert asyncio.run(both()) == ["reference", "mine"]


@pytest.mark.parametrize("name", ["cpu", "reference", "auto"])
def test_own_names_cannot_be_taken(name):
    with pytest.raises(LayerCollapseError, match=f"backend: expected a name other than .*, got '{name}'"):
        register(backend_of(name))


def test_what_is_no_backend_is_named():
    with pytest.raises(LayerCollapseError, match="backend: expected a Backend, got 'mine'"):
        register("mine")


MODULE = """
from layercollapse import ops
from layercollapse.ops import reference
from layercollapse.ops.registry import Backend, BackendStatus

class Counting:
    calls = 0

    def __call__(self, *arguments):
        Counting.calls += 1
        reference.sign_histogram_(*arguments)

def made(name="acme"):
    return Backend(
        name=name,
        status=lambda: BackendStatus(True, "an accelerator"),
        sign_histogram_=Counting(),
        masked_topk_=reference.masked_topk_,
    )

ready = made("ready")
taken = made("acme")
number = lambda: 3
"""
ENTRIES = """[layercollapse.backends]
acme = acme_backend:made
absent = acme_backend:missing
reference = acme_nowhere:made
number = acme_backend:number
ready = acme_backend:ready
again = acme_backend:taken
"""


def test_other_packages_register_theirs_by_an_entry_point(tmp_path):
    (tmp_path / "acme_backend.py").write_text(MODULE)
    info = tmp_path / "acme_backend-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-backend\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    script = """if True:
        import json, torch, acme_backend  # which imports layercollapse: its entry point must not be loaded by that
        from layercollapse import ops
        with ops.use_backend("acme"):
            counts = ops.sign_histogram(torch.ones(2, 3)).tolist()
            ran = ops.last_backend(), acme_backend.Counting.calls
        print(json.dumps({"counts": counts, "ran": ran, "backends": ops.backends()}))
    """
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["counts"] == [[0, 0, 2, 0]] * 3
    assert found["ran"] == ["acme", 1]
    statuses = found["backends"]
    assert statuses["acme"] == statuses["ready"] == [True, "an accelerator"]
    assert statuses["reference"][0]
    reasons = {
        "absent": "the entry point absent = acme_backend:missing failed: AttributeError: ",
        "acme_nowhere:made": "the entry point reference = acme_nowhere:made failed: ModuleNotFoundError: ",
        "number": "the entry point number = acme_backend:number failed: LayerCollapseError: backend: expected a B",
    }
    for name, reason in reasons.items():
        assert not statuses[name][0]
        assert statuses[name][1].startswith(reason)
    assert not statuses["again"][0]
    assert "expected a new name, got 'acme'" in statuses["again"][1]
