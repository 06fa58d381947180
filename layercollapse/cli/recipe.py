"""The recipe of a run: every key with its default and its meaning, as a file, on the command line, and as a schema.

`python -m layercollapse.cli.recipe > docs/recipe.schema.json` writes the last.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from layercollapse._util.files import write_text
from layercollapse.cli.keys import Keys, key, one_of
from layercollapse.compiler.driver.check import MODES
from layercollapse.errors import LayerCollapseError, require
from layercollapse.prune.budget import GLOBAL, RULES
from layercollapse.strategies import STRATEGIES
from layercollapse.zoo.data import DATA_SETS
from layercollapse.zoo.models import MODELS

if TYPE_CHECKING:
    Model: TypeAlias = str
    Rule: TypeAlias = str
    Mode: TypeAlias = str
else:
    Model, Rule, Mode = one_of(MODELS), one_of([*RULES, GLOBAL]), one_of(MODES)

FILE = "recipe.yaml"
SUFFIXES = (".yaml", ".yml")
WIDTH = 100


class DataKeys(Keys):
    """Data"""

    data: str = key("mnist5k", f"Images: {', '.join(DATA_SETS)}; the last two take a folder of IDX files: idx:FOLDER.")


class ModelKeys(DataKeys):
    """Model"""

    model: Model = key("resnet18", "The network.")
    width: int = key(16, "Channels of the first stage.")


class TrainingKeys(ModelKeys):
    """Training"""

    epochs: int = key(5, "Passes over the data of every training.", ge=1)
    batch_size: int | None = key(
        None, "Samples per optimizer step.", otherwise="64 for fewer than 20,000 samples, else 128", ge=1
    )
    flip: bool = key(False, "Half of the training images, by chance, are mirrored left to right.")
    device: str = key("cpu", "cpu, cuda, cuda:1, ...")


class Recipe(TrainingKeys):
    """Schedule"""

    amount: float = key(0.5, "Share of the weights left that a step prunes.")
    steps: int = key(5, "Prunings at most.")
    rule: Rule = key("nepenthe", "Budget rule: how a step's prunings are divided.")
    strategy: str = key("prune", f"What a step does before it trains, or several joined by +: {', '.join(STRATEGIES)}.")
    max_drop: float = key(0.5, "Accuracy budget in points, on validation.")
    max_layer_share: float = key(1.0, "Share of its kept weights that a layer may lose in a step, at most.")
    weights: str | None = key(
        None,
        "Trained weights, safetensors or a state dict: the network is not trained before the first pruning.",
        otherwise="the network is trained first",
    )
    mode: Mode = key(
        "exact",
        "repad: also merge what then differs at the border, and train again. refit: also replace several layers "
        "between two rectifiers by fewer that are fitted on the data, and train again.",
    )
    patterns: bool = key(
        False, "Also count the joint patterns of signs: the linear pieces that every site uses on the data."
    )
    seed: int = key(0, "Of torch's generator, for weights and the order of the data.")


def groups(keys: type[Keys]) -> Iterator[tuple[str, list[str]]]:
    """The headings of keys, and the names under each."""
    seen = set[str]()
    for group in reversed(keys.__mro__):
        if issubclass(group, Keys) and (names := [name for name in group.model_fields if name not in seen]):
            yield (group.__doc__ or "").strip(), names
            seen.update(names)


def default_of(keys: type[Keys], name: str) -> str:
    """The default of a key in words; empty where there is nothing to say."""
    field = keys.model_fields[name]
    extra = field.json_schema_extra
    if isinstance(extra, dict) and extra.get("otherwise"):
        return str(extra["otherwise"])
    return "" if field.default is None or field.default is False or field.default == {} else f"{field.default}"


def parse(arguments: Iterable[str]) -> dict[str, Any]:
    """The values of a recipe's name or file, if one comes first, with those of every KEY=VALUE on top.

    Raises:
        LayerCollapseError: no such recipe, or a value without a key.
    """
    values: dict[str, Any] = {}
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if equals and name.replace("_", "").replace(".", "").replace("-", "").isalnum():
            top, _, inner = name.replace("-", "_").partition(".")
            if inner:
                values[top] = {**values.get(top, {}), inner: yaml().safe_load(value)}
            else:
                values[top] = None if value == "null" else value
        elif index:
            raise LayerCollapseError(f"recipe: expected KEY=VALUE after the first argument, got {argument!r}")
        else:
            values.update(read(argument))
    return values


def built_in() -> dict[str, str]:
    """The recipes of the package: their text by name."""
    folder = resources.files("layercollapse.cli") / "recipes"
    return {Path(f.name).stem: f.read_text("utf-8") for f in folder.iterdir() if f.name.endswith(SUFFIXES)}


def read(recipe: str) -> dict[str, Any]:
    """The values in a recipe's file, or in one of the package's recipes by its name.

    Raises:
        LayerCollapseError: there is no such recipe, or it is not YAML with names and values.
    """
    if Path(recipe).suffix in SUFFIXES:
        try:
            text = Path(recipe).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LayerCollapseError(f"recipe: expected a YAML file, got {recipe!r}: {error}") from error
    elif (known := built_in()) and recipe in known:
        text = known[recipe]
    else:
        raise LayerCollapseError(
            f"recipe: expected a file that ends in .yaml, or one of {', '.join(sorted(known))}, got {recipe!r}"
        )
    try:
        values = yaml().safe_load(text)
    except yaml().YAMLError as error:
        raise LayerCollapseError(f"recipe: expected YAML in {recipe}, got: {' '.join(str(error).split())}") from error
    if not isinstance(values, Mapping):
        raise LayerCollapseError(f"recipe: expected names and values in {recipe}, got {type(values).__name__}")
    return {str(name): value for name, value in values.items()}


def written(recipe: Recipe) -> str:
    """A recipe as YAML, with what each key means."""
    lines = ["# A recipe of layercollapse: `layercollapse run THIS_FILE [KEY=VALUE ...]`; null is the default."]
    for heading, names in groups(type(recipe)):
        lines += ["", f"# {heading}", ""]
        for name in names:
            field = type(recipe).model_fields[name]
            value, default = getattr(recipe, name), default_of(type(recipe), name)
            other = default and (value is None or value != field.default)
            about = f"{field.description}" + (f" Default: {default}." if other else "")
            lines += [f"# {line}" for line in textwrap.wrap(about, WIDTH)]
            lines += yaml().safe_dump({name: value}, sort_keys=False, allow_unicode=True).splitlines()
    return "\n".join(lines) + "\n"


def save(recipe: Recipe, folder: Path) -> None:
    """Write the recipe into the folder of its run."""
    write_text(folder / FILE, written(recipe))


def schema() -> str:
    """The JSON schema of recipes, as docs/recipe.schema.json has it."""
    return json.dumps(Recipe.model_json_schema(), indent=2) + "\n"


def yaml() -> Any:
    """PyYAML, of which only the safe half is used."""
    return require("yaml", "run")


if __name__ == "__main__":
    print(schema(), end="")
