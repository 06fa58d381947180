"""Pictures to tensors: pixels by hand, sizes of every kind, chance only where it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data.transforms import Transform, normalised, parsed_shape

Image = pytest.importorskip("PIL.Image")


def picture(height: int, width: int, seed: int = 0) -> object:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def test_pixels_by_hand() -> None:
    array = np.zeros((2, 3, 3), np.uint8)
    array[0, 1] = (255, 0, 51)
    found = Transform((3, 2, 3), mean=(0.5, 0.0, 0.0), deviation=(0.5, 1.0, 0.1))(Image.fromarray(array))
    expected = torch.zeros(3, 2, 3)
    expected[0] = -1
    expected[:, 0, 1] = torch.tensor([1.0, 0.0, 2.0])
    torch.testing.assert_close(found, expected)
    assert Transform((3, 2, 3), mean=(0.5, 0.0, 0.0), deviation=(0.5, 1.0, 0.1)).box == (-1.0, 10.0)


@pytest.mark.parametrize("size", [(10, 10), (7, 31), (31, 7), (1, 1), (64, 50)])
@pytest.mark.parametrize("shape", [(3, 8, 12), (1, 12, 8), (3, 10, 10)])
@pytest.mark.parametrize("resize", [None, 5, 40])
def test_any_size_becomes_the_shape(size: tuple, shape: tuple, resize: int | None) -> None:
    for crop in ("center", "random", "resized"):
        for training in (False, True):
            found = Transform(shape, resize, crop, training=training)(picture(*size))
            assert found.shape == shape
            assert found.is_contiguous()
            assert 0 <= float(found.min()) <= float(found.max()) <= 1


def test_the_center_is_cropped_of_the_shorter_side_resized() -> None:
    array = np.zeros((4, 8, 3), np.uint8)
    array[1:3, 3:5] = 255
    whole = Transform((3, 2, 2))
    found = whole(Image.fromarray(array))  # resized to 2 x 4, of which the middle
    assert found.shape == (3, 2, 2)
    assert 0.2 < float(found.min()) == float(found.max())
    exact = Transform((3, 2, 2), resize=4)(Image.fromarray(array))  # not resized: the white square alone
    assert torch.equal(exact, torch.ones(3, 2, 2))


def test_chance_only_in_training() -> None:
    x = picture(20, 20)
    still = Transform((3, 12, 12), resize=20, crop="random")
    assert torch.equal(still(x), still(x))
    torch.manual_seed(0)
    moving = Transform((3, 12, 12), resize=20, crop="random", training=True)
    assert len({moving(x).numpy().tobytes() for _ in range(20)}) > 10


def test_mean_and_deviation() -> None:
    pictures = [lambda seed=seed: picture(6, 5, seed) for seed in range(7)]
    plain = Transform((3, 6, 5))
    pixels = torch.stack([plain(one()) for one in pictures]).double()
    found = normalised(plain, "data", pictures)
    assert found.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert found.deviation == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-6)
    assert normalised(plain, "imagenet", []).mean == (0.485, 0.456, 0.406)
    assert normalised(plain, "0.5/0.25", []).deviation == (0.25,) * 3
    assert normalised(plain, "0.1,0.2,0.3/1,2,3", []).deviation == (1.0, 2.0, 3.0)
    flat = normalised(Transform((1, 2, 2)), "data", [lambda: Image.new("L", (2, 2), 7)])
    assert flat.deviation == (1.0,)
    for wrong in ("mean", "0.5", "0.5/0", "1,2/1,2", "a/b"):
        with pytest.raises(
            LayerCollapseError, match="normalize: expected data, imagenet, unit, or MEAN/DEVIATION of 3"
        ):
            normalised(plain, wrong, [])


def test_shapes_in_words() -> None:
    assert parsed_shape("3x224x160") == (3, 224, 160)
    for wrong in ("224", "3x224", "2x8x8", "3x0x8", "3x8x8x8", "3xaxb"):
        with pytest.raises(LayerCollapseError, match="input: expected CHANNELSxHEIGHTxWIDTH"):
            parsed_shape(wrong)
