"""What a run says and writes before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from layercollapse.cli import introduction
from layercollapse.cli.experiment import Job
from layercollapse.cli.recipe import Recipe, read
from layercollapse.pipeline.events import Event
from records import make_record


def said(**keys: object) -> list[str]:
    recipe = Recipe(**{"data": "digits", "model": "mlp", "width": 2, **keys})
    job = Job.taken(recipe.model_dump())
    return introduction.introduction(job, job.build(), recipe)


def test_what_is_trained_on_what() -> None:
    first = "mlp, width 2 (2,026 parameters) on digits (1,258 / 180 / 359 images): up to 5 prunings, 5 epochs each"
    assert said() == [first]
    assert said(lr=0.5) == [first, "trained by sgd, learning rate 0.5, one-cycle, batches of 64"]
    linear = said(model="torch.nn:Flatten", width=None, steps=2)
    assert linear[0].startswith("torch.nn:Flatten (0 parameters) on digits (")
    assert linear[1] == "trained by adamw, learning rate 0.001, one-cycle, batches of 64"


def test_names_of_classes(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name in "abcdefghijklmn":
        (tmp_path / name).mkdir()
        for number in range(10):
            image.new("L", (8, 8), number).save(tmp_path / name / f"{number}.png")
    assert said(data=f"imagefolder:{tmp_path}", workers=0)[1:] == [
        "classes: a, b, c, d, e, f, g, h, i, j, k, l and 2 more",
        "validation and test: 10 %, 20 % of the training data",
    ]


def test_the_recipe_is_kept_when_a_run_begins(tmp_path: Path) -> None:
    recipe, shown = Recipe(data="digits", model="mlp", epochs=3), list[Event]()
    job = Job.taken(recipe.model_dump())
    progress = introduction.started(recipe, job, tmp_path, shown.append)
    for stage in ("measure", "train"):
        assert list(tmp_path.iterdir()) == []
        progress(Event(stage, 0, make_record(0, finished=False)))
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
    assert Recipe(**read(str(tmp_path / "recipe.yaml"))) == recipe
    assert [event.stage for event in shown] == ["measure", "train"]
