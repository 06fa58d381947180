"""States on disk and back, without pickle."""

import random
import resource
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline import states


def equal(left, right):
    if isinstance(left, torch.Tensor | np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and bool((left == right).all())
    if isinstance(left, dict):
        return type(left) is type(right) and list(left) == list(right) and all(equal(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(equal, left, right))
    return type(left) is type(right) and left == right


def test_anything_plain_comes_back(tmp_path):
    shared = torch.arange(6.0).view(2, 3)
    state = {
        "tensors": [
            shared,
            shared,
            shared.t(),
            shared[1:],
            shared[:0],
            torch.tensor(3),
            torch.empty(0, 2),
            torch.tensor([True]),
        ],
        "half": torch.ones(2, dtype=torch.bfloat16),
        0: {"step": 1, "rate": 0.1, "limit": float("inf"), "none": None, "on": True, "name": "é"},
        "tuple": (1, (2, [3])),
        "array": np.arange(3, dtype=np.uint32),
        "turned": np.arange(6.0).reshape(2, 3)[:, ::-1],
        "no dimension": np.array(3.0),
        "milestones": Counter({2: 1, 5: 2}),
        "empty": [{}, (), []],
    }
    states.save(tmp_path / "state.safetensors", state)
    assert equal(states.load(tmp_path / "state.safetensors"), state)


def test_numbers_of_numpy_are_numbers(tmp_path):
    states.save(tmp_path / "state", {"a": np.float64(0.1), "b": np.int64(3), "c": np.bool_(True)})
    assert equal(states.load(tmp_path / "state"), {"a": 0.1, "b": 3, "c": True})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [1, object()]}, r"state\['a'\]\[1\]: expected tensors.* got a object"),
        ({"a": {(1, 2): 3}}, r"state\['a'\]: expected keys .* got \(1, 2\)"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, r"state\['a'\]: expected dense real tensors"),
        ({"a": np.array([object()])}, r"state\['a'\]: expected arrays of numbers, got one of object"),
        ({"a": np.array(["b"])}, r"state\['a'\]: expected arrays of numbers, got one of <U1"),
    ],
)
def test_what_cannot_be_written(tmp_path, state, message):
    with pytest.raises(LayerCollapseError, match=message):
        states.save(tmp_path / "state", state)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "other").write_bytes(b"no safetensors")
    states.write(tmp_path / "plain", {"a": torch.ones(1)})
    for name in ("missing", "other", "plain"):
        with pytest.raises(LayerCollapseError, match=rf"out: expected a state that a run has written in .*{name}"):
            states.load(tmp_path / name)


FULL = """
import resource, sys
from pathlib import Path
import torch
from layercollapse.pipeline import states
from layercollapse.errors import LayerCollapseError

file = Path(sys.argv[1])
states.save(file, torch.zeros(10))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    states.save(file, torch.ones(100_000))
except LayerCollapseError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit of the size of files here")
def test_a_full_disk_loses_nothing(tmp_path):
    file = tmp_path / "state"
    done = subprocess.run([sys.executable, "-c", FULL, file], capture_output=True, text=True, check=True)
    assert f"out: expected room and permission to write {file}" in done.stdout
    assert torch.equal(states.load(file), torch.zeros(10))
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_random_numbers_go_on():
    def draw():
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random(), random.gauss(0, 1)  # noqa: NPY002

    states.seed(3)
    draw()
    before = states.random_state()
    wanted = draw()
    draw()
    states.set_random_state(before)
    assert draw() == wanted
    states.seed(3)
    first = draw()
    states.seed(3)
    assert draw() == first
    states.seed(-1)  # which torch takes, too


def test_fewer_gpus_than_there_were(monkeypatch):
    given = []
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", given.extend)
    for gpus in (0, 1):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        states.set_random_state(states.random_state() | {"cuda": ["first", "second"]})
    assert given == ["first"]


def test_a_random_state_is_written_and_read(tmp_path):
    state = states.random_state()
    states.save(tmp_path / "random", state)
    assert equal(states.load(tmp_path / "random"), state)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 4]),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)),
        torch.optim.lr_scheduler.ReduceLROnPlateau,
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [torch.optim.lr_scheduler.ConstantLR(o), torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3)],
            [2],
        ),
    ],
)
def test_schedules_of_torch(tmp_path, make):
    def build():
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return model, optimizer, make(optimizer)

    def step(model, optimizer, schedule):
        optimizer.zero_grad()
        loss = model(torch.ones(1, 2)).square().sum()
        loss.backward()
        optimizer.step()
        plateau = isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
        schedule.step(*([loss.item()] if plateau else []))

    whole, parts = build(), build()
    for _ in range(6):
        step(*whole)
    for _ in range(3):
        step(*parts)
    states.save(tmp_path / "state", [part.state_dict() for part in parts])
    fresh = build()
    for part, state in zip(fresh, states.load(tmp_path / "state"), strict=True):
        part.load_state_dict(state)
    for _ in range(3):
        step(*fresh)
    assert torch.equal(whole[0].weight, fresh[0].weight)
    assert whole[2].get_last_lr() == fresh[2].get_last_lr()
