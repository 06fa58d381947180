"""Loaders of the user's own: tuples and dicts, pairs and dicts of arguments, and which loader is wrong."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data.loaders import Decoded, Given, from_loaders, pair

X, Y = torch.arange(24.0).reshape(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])


def loader(labels: torch.Tensor = Y) -> DataLoader:
    return DataLoader(TensorDataset(X[: len(labels)], labels), batch_size=4)


def test_pairs() -> None:
    found = from_loaders("mine", (loader(), loader(), loader()))
    assert (found.num_classes, found.shape, found.kind, found.box) == (3, (1, 2, 2), "samples", None)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [6, 6, 6]
    batches = found.train.shuffled(1)  # as large as the loader makes them
    assert len(batches) == 2
    assert torch.equal(torch.cat([x for x, _ in batches]), X)


def test_dicts() -> None:
    batches = [{"input_ids": torch.ones(2, 3), "labels": Y[:2].int()}] * 2
    found = from_loaders("mine", {"train": batches, "validation": batches, "test": batches, "num_classes": 7})
    assert (found.num_classes, found.shape) == (7, None)
    inputs, labels = next(iter(found.test.batches(1)))
    assert set(inputs) == {"input_ids"}
    assert labels.dtype == torch.int64


def test_batches_go_to_the_device() -> None:
    part = Given([(X, Y)], 6).to("meta")
    ((inputs, labels),) = part.batches(6)
    assert inputs.device.type == labels.device.type == "meta"


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        (X, "a Tensor"),
        ((X, Y, Y), "3 values"),
        ((X, Y.float()), "2 values"),
        ((X, Y.reshape(6, 1)), "2 values"),
        (([X], Y), "2 values"),
        ({"x": X}, "a dict with x"),
    ],
)
def test_other_batches(batch: Any, got: str) -> None:
    with pytest.raises(
        LayerCollapseError, match=rf"^data: expected batches \(inputs, labels\), or dicts .*, got {got}$"
    ):
        pair(batch, "data")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (3, r"data: expected loaders \(train, validation, test\), or a dict of them, got a int"),
        ({"train": 1, "val": 2}, "data: expected loaders .* got train, val"),
        ((loader(), iter([1]), loader()), "data: validation: expected batches with a length .*, got a list_iterator"),
        ((loader(), [], loader()), "data: validation: expected at least one batch with a sample, got none"),
        ((loader(Y[:2]), loader(), loader()), "data: validation: expected labels up to 1, the largest in train, got 2"),
        ((loader(), loader(), loader(Y - 1)), "data: test: expected labels from 0 on, got -1"),
        ((loader(), [X], loader()), "data: validation: expected batches"),
    ],
)
def test_other_loaders(made: Any, message: str) -> None:
    with pytest.raises(LayerCollapseError, match=message):
        from_loaders("mine", made)


def decoded(samples: int = 11) -> Decoded:
    data = TensorDataset(torch.arange(float(samples)).view(samples, 1), torch.arange(samples))
    return Decoded(data, data, 0)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("make", [decoded, lambda: Given(list(decoded().batches(3)), 11)])
def test_shares_are_all_of_it_and_nothing_twice(make: Any, size: int) -> None:
    shares = [make().share(rank, size).to("cpu") for rank in range(size)]
    assert {len(share) for share in shares} == {11}
    ordered = [[labels.tolist() for _, labels in share.batches(3)] for share in shares]
    batches = [batch for turn in zip_longest(*ordered) for batch in turn if batch]
    assert batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
    assert [len(share.batches(3)) for share in shares] == [len(found) for found in ordered]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("make", [lambda: decoded(12), lambda: Given(list(decoded(12).batches(6)), 12)])
def test_shuffled_batches_are_divided(make: Any, size: int) -> None:
    shuffled = []
    for share in [*(make().share(rank, size) for rank in range(size)), make()]:
        torch.manual_seed(0)
        found = share.shuffled(6)
        shuffled.append([labels.tolist() for _, labels in found])
        assert len(found) == len(shuffled[-1])
    *parts, whole = shuffled
    assert len(whole) == 2
    for number, batch in enumerate(whole):
        assert all(part[number] == batch[rank::size] for rank, part in enumerate(parts))


def test_a_batch_too_small_to_be_divided_is_left_out_on_all() -> None:
    part = Given(list(decoded(13).batches(6)), 13)
    assert [len(labels) for _, labels in part.shuffled(6)] == [6, 6, 1]
    for rank in range(2):
        assert [len(labels) for _, labels in part.share(rank, 2).shuffled(6)] == [3, 3]
    with pytest.raises(LayerCollapseError, match="data: expected batches of at least 2 samples for each of 4 proc"):
        list(part.share(0, 4).shuffled(6))


def test_workers_load_a_share() -> None:
    part = replace(decoded(), workers=2).share(1, 2)
    assert [labels.tolist() for _, labels in part.batches(3)] == [[3, 4, 5], [9, 10]]
