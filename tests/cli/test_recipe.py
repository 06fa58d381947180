"""Recipes: files, names and KEY=VALUE in, one checked set of values out; written with what every key means."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkout import ROOT
from layercollapse.cli import recipe as recipes
from layercollapse.cli.recipe import Recipe, built_in, parse, read, schema, written
from layercollapse.errors import LayerCollapseError

yaml = pytest.importorskip("yaml")


def test_what_is_written_reads_back_and_says_what_every_key_means() -> None:
    recipe = Recipe(data="digits", epochs=3, max_drop=1.5, patterns=True)
    text = written(recipe)
    assert Recipe(**yaml.safe_load(text)) == recipe
    flat = " ".join(line.removeprefix("# ") for line in text.splitlines())
    for name, field in Recipe.model_fields.items():
        assert f"\n{name}: " in text
        assert field.description in flat
    assert "Accuracy budget in points, on validation. Default: 0.5. max_drop: 1.5" in flat
    assert max(map(len, text.splitlines())) <= 102


def test_a_file_and_values_on_top(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: digits\nepochs: 3\nmax_drop: 1e-1\nweights: w.safetensors\n")
    values = parse([str(file), "epochs=4", "max-layer-share=0.5", "weights=null"])
    recipe = Recipe(**values)
    assert (recipe.data, recipe.epochs, recipe.max_drop, recipe.max_layer_share) == ("digits", 4, 0.1, 0.5)
    assert recipe.weights is None
    assert parse(["data=idx:a=b"]) == {"data": "idx:a=b"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "recipe: expected a YAML file, got .*No such file"),
        ("a: [", "recipe: expected YAML in .*line 1"),
        ("- a", "recipe: expected names and values in .*, got list"),
        ("!!python/object/apply:os.system ['true']", "recipe: expected YAML in .*could not determine a constructor"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(LayerCollapseError, match=message):
        read(str(file))


def test_names_that_are_no_recipes() -> None:
    with pytest.raises(LayerCollapseError, match=r"expected a file that ends in .yaml, or one of .*vgg16_bn-digits.*"):
        parse(["resnet"])
    with pytest.raises(LayerCollapseError, match="expected KEY=VALUE after the first argument, got 'epochs'"):
        parse(["epochs=3", "epochs"])


@pytest.mark.parametrize("name", sorted(built_in()))
def test_recipes_of_the_package_are_valid(name: str) -> None:
    values = parse([name])
    assert values
    Recipe(**values)


def test_recipes_of_the_paper_have_its_numbers() -> None:
    found = {name: Recipe(**parse([f"paper-{name}"])) for name in ("resnet18", "vgg16_bn", "swin_t", "pacs", "sst2")}
    assert {name: recipe.lr for name, recipe in found.items()} == {
        "resnet18": 0.1,
        "vgg16_bn": 0.01,
        "swin_t": 0.001,
        "pacs": 0.001,
        "sst2": 1e-4,
    }
    resnet, pacs = found["resnet18"], found["pacs"]
    assert (resnet.epochs, resnet.batch_size, resnet.milestones, resnet.weight_decay) == (160, 128, (80, 120), 1e-4)
    assert (pacs.epochs, pacs.batch_size, pacs.milestones, pacs.weight_decay) == (30, 16, (24,), 5e-4)


def test_the_schema_in_the_documentation_is_of_this_version() -> None:
    kept = (ROOT / "docs" / "recipe.schema.json").read_text(encoding="utf-8")
    assert kept == schema(), f"python -m {recipes.__name__} > docs/recipe.schema.json"
