import pytest
import torch
import torch.distributed as dist
from torch import nn

import processes
from layercollapse import LayerCollapseError
from layercollapse._util.ranks import Ranks


def test_alone_nothing_waits():
    ranks = Ranks.of(nn.Linear(2, 2))
    assert ranks.alone
    assert ranks.first
    assert ranks.sum_(torch.tensor([2, 3])).tolist() == [2, 3]
    assert ranks.decide(True)
    assert ranks.together(lambda: 7) == 7
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.tell(b"a") == b"a"
    assert ranks.hear(b"a") == [b"a"]
    assert ranks.same_(torch.tensor([2])).tolist() == [2]
    assert Ranks.default().alone
    ranks.check_same("x", {"a": object()})
    with pytest.raises(LayerCollapseError, match=r"group: expected one of an initialized torch\.distributed"):
        Ranks.of(nn.Linear(2, 2), group=object())


def failing(rank, wrong):
    def work():
        if rank == wrong:
            raise LayerCollapseError(f"x: of {rank}, é")
        return rank

    return work


def without_room(rank):
    def work():
        if rank == 1:
            raise OSError("no room")

    return work


def said(work):
    try:
        return work()
    except LayerCollapseError as error:
        return str(error)


def on_ranks(rank, size):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    model = nn.Linear(8, 8)
    every, own = Ranks.of(model), Ranks.of(model, dist.new_subgroups(1)[0])
    results = [
        every.sum_(torch.tensor([rank, 1])).tolist(),
        every.max_(torch.tensor([float(rank)])).tolist(),
        every.gather(torch.tensor([rank, 5])).tolist(),
        (every.first, own.first, own.alone, every.decide(rank == 0), every.decide(rank == 1)),
        said(lambda: every.together(failing(rank, 1))),
        said(lambda: every.together(failing(rank, -1))),
        said(lambda: every.check_same("what", {"a": 1, "b": b"2"})),
        said(lambda: every.check_same("what", {"a": 1, "b": rank // 2})),
        said(lambda: every.check_same("what", {"a": 1, "b": rank // 2}, {"a": 0, "b": rank // 2})),
        said(lambda: every.check_same("what", {"a": 1, str(rank): 0})),
        said(lambda: every.check_same("what", dict.fromkeys(range(1 + rank // 2)))),
    ]
    with pytest.raises(OSError if rank == 1 else RuntimeError, match="no room" if rank == 1 else "rank 1: OSError: no"):
        every.together(without_room(rank))
    words = [b"", b"of two", b"\x00\xff"]
    assert [every.tell(word if rank == 0 else b"no") for word in words] == words
    assert every.hear(words[rank % 3]) == [words[other % 3] for other in range(size)]
    assert every.same_(torch.tensor([rank, 3 * rank + 1])).tolist() == [0, 1]
    assert (every.rank, every.size, own.rank, own.size) == (rank, size, 0, 1)
    assert (Ranks.default().rank, Ranks.default().size) == (rank, size)
    square = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("a", "b"))
    model.weight = nn.Parameter(distribute_tensor(model.weight.data, square, [Shard(0), Shard(1)]))
    mesh = Ranks.of(model)
    assert (mesh.rank, mesh.size) == (rank, size)
    assert mesh.gather(torch.tensor(rank)).tolist() == [*range(size)]
    assert mesh.tell(b"x" * (rank + 1)) == b"x"
    assert mesh.hear(bytes([rank])) == [bytes([other]) for other in range(size)]
    results += [len(mesh.groups), mesh.gather(torch.tensor(rank)).tolist(), mesh.sum_(torch.tensor(rank)).tolist()]
    results.append(said(lambda: Ranks.of(model, square.get_group("b"))))
    return [*results, Ranks.of(model, square.get_group("b"), weights=False).size]


@pytest.mark.long
def test_four_processes():
    for rank, got in enumerate(processes.run(4, on_ranks, 4)):
        assert got[:3] == [[6, 4], [3.0], [[0, 5], [1, 5], [2, 5], [3, 5]]]
        assert got[3] == (rank == 0, True, True, True, False)
        assert got[4] == ("x: of 1, é" if rank == 1 else "rank 1: x: of 1, é")
        assert got[5] == rank
        assert got[6] is None
        assert got[7] == "what: expected the same on all ranks, got others on rank 2 than on rank 0 for b"
        assert got[8] is None
        assert got[9].endswith("got others on rank 1 than on rank 0 for their names")
        assert got[10] == "what: expected the same number of them on all ranks, got [1, 1, 2, 2]"
        assert got[11:14] == [2, [0, 1, 2, 3], 6]
        assert "group: expected all ranks that hold parts of 'weight'" in got[14]
        assert got[15] == 2
