"""Networks of torchvision and timm on a folder of photos, by the command line: trained, pruned, collapsed, loaded."""

import importlib.util

import numpy as np
import pytest
import torch

import layercollapse as lc
from layercollapse.cli.experiment import Job
from layercollapse.report.record import Record
from public_networks import torchvision_or_skip

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def photos(tmp_path):
    """Reddish and bluish noise as JPEGs of some sizes."""
    image = pytest.importorskip("PIL.Image")
    chance = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 8), ("test", 8)):
        for channel, name in ((0, "red"), (2, "blue")):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(0, 160, (40 + number, 60, 3), dtype=np.uint8)
                pixels[..., channel] += 90
                image.fromarray(pixels).save(folder / f"{number}.jpg")
    return tmp_path / "photos"


@pytest.mark.parametrize("model", ["timm:resnet18", "torchvision:mobilenet_v2"])
def test_from_photos_to_predictions(tmp_path, photos, model):
    torchvision_or_skip()
    if model.startswith("timm") and importlib.util.find_spec("timm") is None:
        pytest.skip("needs timm")
    from click.testing import CliRunner

    from layercollapse.cli.commands import layercollapse

    out = tmp_path / "run"
    given = f"run --data imagefolder:{photos} --input 3x32x48 --model {model} --flip --workers 0 --epochs 2 --steps 1"
    done = CliRunner().invoke(layercollapse, [*given.split(), "--max-drop", "100", "--out", str(out)])
    assert done.exit_code == 0, done.output
    record = Record.load(out)
    assert len(record.steps) == 2
    job = Job.of(record)
    small, sparse = lc.load(out).eval(), job.load(out, record.chosen)
    images = torch.cat([inputs for inputs, _ in job.test_batches])
    assert images.shape == (16, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(small(images), sparse(images), rtol=1e-3, atol=1e-3)
    assert record.after.top1 == pytest.approx(job.test(small))
