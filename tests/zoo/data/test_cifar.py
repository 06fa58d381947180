"""CIFAR-10's batches: what Python 2 and 3 pickle is read, and nothing else is run."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data import load
from layercollapse.zoo.data.cifar import TEST, TRAIN, read_batch

# What Python 2 wrote: {'labels': [3], 'data': array([[7, 200]], dtype=uint8)}, protocol 2.
PYTHON2 = (
    b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03K\x03aU\x04dataq\x04cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\n"
    b"ndarray\nq\x06K\x00\x85U\x01b\x87Rq\x07(K\x01K\x01K\x02\x86cnumpy\ndtype\nq\x08U\x02u1K\x00K\x01\x87Rq\t(K\x03U\x01|"
    b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\x07\xc8tbu."
)


def write(folder: Path, count: int = 20, protocol: int = 2) -> None:
    generator = np.random.default_rng(0)
    for name in (*TRAIN, TEST):
        batch = {
            b"data": generator.integers(0, 256, (count, 3072), np.uint8),
            b"labels": [i % 10 for i in range(count)],
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    names = {b"label_names": [b"plane", b"car", *(f"c{i}".encode() for i in range(8))]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol))


def test_python_2_is_read(tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(PYTHON2)
    found = read_batch(tmp_path / "batch")
    assert found["labels"] == [3]
    assert found["data"].dtype == np.uint8
    assert found["data"].tolist() == [[7, 200]]


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_folder(tmp_path: Path, protocol: int) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    write(folder, protocol=protocol)
    found = load(f"cifar10:{tmp_path}", validation_share=0.2)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [80, 20, 20]
    assert (found.shape, found.num_classes, found.classes[:2]) == ((3, 32, 32), 10, ("plane", "car"))
    images = found.train.inputs
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    raw = read_batch(folder / TEST)["data"].reshape(-1, 3, 32, 32)
    order = np.argsort(raw[0, 2].reshape(-1), kind="stable")
    assert bool((found.test.inputs[0, 2].reshape(-1)[order].diff() >= 0).all())


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("touched"),))


def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    (tmp_path / TRAIN[2]).write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(LayerCollapseError, match=rf"{TRAIN[2]}, got: the file asks for .*, which is not read"):
        load(f"cifar10:{tmp_path}")
    assert not (tmp_path / "touched").exists()
    # An object array has elements of any class; a subclass of an array could be anything.
    for evil in (
        np.array([Evil()], dtype=object),
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\nI0\nS'b'\ntR.",
    ):
        raw = evil if isinstance(evil, bytes) else pickle.dumps({b"data": evil})
        (tmp_path / TRAIN[0]).write_bytes(raw)
        with pytest.raises(LayerCollapseError, match="data: expected a batch of CIFAR-10"):
            load(f"cifar10:{tmp_path}")
    assert not (tmp_path / "touched").exists()


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        LayerCollapseError, match="data: expected a folder with data_batch_1 to test_batch, got nowhere"
    ):
        load("cifar10:nowhere")
    write(tmp_path)
    with pytest.raises(LayerCollapseError, match="validation_share: expected images on both sides"):
        load(f"cifar10:{tmp_path}", validation_share=0.001)
    (tmp_path / TEST).write_bytes(pickle.dumps({"data": np.zeros((2, 9), np.uint8), "labels": [0, 1]}))
    with pytest.raises(LayerCollapseError, match=rf"expected data \(N, 3072\) of bytes .* in .*{TEST}, got \(2, 9\)"):
        load(f"cifar10:{tmp_path}")
    (tmp_path / TEST).write_bytes((tmp_path / TRAIN[0]).read_bytes()[:100])
    with pytest.raises(LayerCollapseError, match=f"expected a batch of CIFAR-10 in .*{TEST}"):
        load(f"cifar10:{tmp_path}")
    (tmp_path / TRAIN[1]).unlink()
    with pytest.raises(LayerCollapseError, match=f"a batch of CIFAR-10 at .*{TRAIN[1]}, got: No such file"):
        load(f"cifar10:{tmp_path}")
