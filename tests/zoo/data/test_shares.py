"""What one of several processes loads, by hand."""

import torch

from layercollapse.zoo.data.shares import Every, Places, Share


def test_whole_batches_in_turn() -> None:
    shares = [Share(Places(11, 3, rank, 3)) for rank in range(3)]
    assert [list(share) for share in shares] == [[[0, 1, 2], [9, 10]], [[3, 4, 5]], [[6, 7, 8]]]
    assert [len(share) for share in shares] == [2, 1, 1]


def test_a_part_of_each_shuffled_batch() -> None:
    found = []
    for rank in range(2):
        torch.manual_seed(3)
        found.append(list(Share(Places(11, 4, rank, 2, shuffled=True))))
    torch.manual_seed(3)
    order = torch.randperm(11).tolist()
    assert found == [[order[0:4:2], order[4:8:2]], [order[1:4:2], order[5:8:2]]]


def test_every_other_batch_of_a_loader() -> None:
    shares = [Every(list("abcde"), rank, 2) for rank in range(2)]
    assert [list(share) for share in shares] == [["a", "c", "e"], ["b", "d"]]
    assert [len(share) for share in shares] == [3, 2]
