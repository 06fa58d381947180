"""Splits, stratified, and their batches."""

from itertools import zip_longest

import numpy as np
import torch

from layercollapse.zoo.data.split import Split, stratified


def test_stratified_by_hand():
    labels = np.array([0] * 10 + [1] * 5)
    train, rest = stratified(labels, (0.8, 0.2))
    assert sorted([*train, *rest]) == list(range(15))
    assert [int((labels[train] == label).sum()) for label in (0, 1)] == [8, 4]


def test_batches():
    split = Split(torch.arange(10.0).view(10, 1, 1, 1), torch.arange(10))
    ordered = split.batches(4)
    assert len(ordered) == 3
    assert [labels.tolist() for _, labels in ordered] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    shuffled = split.shuffled(4)
    torch.manual_seed(0)
    first = [labels.tolist() for _, labels in shuffled]
    second = [labels.tolist() for _, labels in shuffled]
    torch.manual_seed(0)
    assert [labels.tolist() for _, labels in shuffled] == first != second
    assert len(shuffled) == 2 == len(first)
    assert len({label for batch in first for label in batch}) == 8
    for images, labels in shuffled:
        assert torch.equal(images.flatten().long(), labels)
    assert len(split.shuffled(100)) == 1  # a split smaller than a batch is one batch


def test_shares_are_all_of_it_and_nothing_twice():
    split = Split(torch.arange(11.0).view(11, 1, 1, 1), torch.arange(11))
    for size in (2, 3, 7):
        shares = [split.to("cpu").share(rank, size) for rank in range(size)]
        assert {len(share) for share in shares} == {11}
        ordered = [[labels.tolist() for _, labels in share.batches(3)] for share in shares]
        assert [batch for turn in zip_longest(*ordered) for batch in turn if batch] == [
            [0, 1, 2],
            [3, 4, 5],
            [6, 7, 8],
            [9, 10],
        ]
        assert [len(share.batches(3)) for share in shares] == [len(batches) for batches in ordered]
        shuffled = []
        for share in [*shares, split]:
            torch.manual_seed(0)
            shuffled.append([labels.tolist() for _, labels in share.shuffled(5)])
        *parts, whole = shuffled
        assert [len(share.shuffled(5)) for share in shares] == [len(whole)] * size == [2] * size
        for number, batch in enumerate(whole):
            assert all(part[number] == batch[rank::size] for rank, part in enumerate(parts))
