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
from layercollapse.cli.keys import Keys, key, named_values, one_of, several
from layercollapse.compiler.driver.check import MODES
from layercollapse.errors import LayerCollapseError, require
from layercollapse.integrations.logs import LOGS
from layercollapse.prune.budget import GLOBAL, RULES
from layercollapse.strategies import STRATEGIES
from layercollapse.zoo import data as data_sources
from layercollapse.zoo.data.split import FRACTIONS
from layercollapse.zoo.data.text import TOKENS
from layercollapse.zoo.data.transforms import CROPS, NORMALIZE
from layercollapse.zoo.models import sources as model_sources
from layercollapse.zoo.models.transformers import WIDTHS
from layercollapse.zoo.optimizers import OPTIMIZERS, SCHEDULES

if TYPE_CHECKING:
    Crop: TypeAlias = str
    Optimizer: TypeAlias = str
    Schedule: TypeAlias = str
    Rule: TypeAlias = str
    Mode: TypeAlias = str
    Epochs: TypeAlias = tuple[int, ...]
    Logs: TypeAlias = tuple[str, ...]
    Arguments: TypeAlias = dict[str, Any]
else:
    Crop, Optimizer, Schedule = one_of(CROPS), one_of(OPTIMIZERS), one_of(SCHEDULES)
    Rule, Mode = one_of([*RULES, GLOBAL]), one_of(MODES)
    Epochs, Logs, Arguments = several(int), several(one_of(LOGS)), named_values()

FILE = "recipe.yaml"
SUFFIXES = (".yaml", ".yml")
WIDTH = 100


class DataKeys(Keys):
    """Data"""

    data: str = key("mnist5k", f"What to train on: {data_sources.forms()}.")
    validation_share: float | None = key(
        None,
        "Share of the training data to choose by, where the data have no validation part.",
        otherwise=f"{FRACTIONS[1]}; 1/12 of idx",
        gt=0,
        lt=1,
    )
    test_share: float | None = key(
        None,
        "Share of the training data to report on, where the data have no test part.",
        otherwise=f"{FRACTIONS[2]}",
        gt=0,
        lt=1,
    )
    input: str | None = key(
        None, "Image files: what the network gets, as 3x224x224; 1 is grey.", otherwise="as the images are"
    )
    resize: int | None = key(
        None, "Image files: the shorter side before the crop.", otherwise="as little as covers the input", ge=1
    )
    crop: Crop | None = key(
        None,
        "Image files: where a training image is cropped; resized is a random part, resized. Others are at the center.",
        otherwise=CROPS[0],
    )
    normalize: str | None = key(
        None,
        f"Image files: data (mean and deviation of the training images), {', '.join(NORMALIZE)}, or MEAN/DEVIATION, "
        "each with a comma between the channels.",
        otherwise="data",
    )
    text: str | None = key(None, "Texts: the column; two with a comma between for pairs.", otherwise="text")
    label: str | None = key(None, "Texts: the column of the labels.", otherwise="label")
    tokens: int | None = key(None, "Texts: tokens kept of each, at most.", otherwise=f"{TOKENS}", ge=3)
    tokenizer: str | None = key(
        None,
        "Texts: a tokenizer.json, or the folder of a model.",
        otherwise="that of an hf: model, else the words of the training texts",
    )
    workers: int | None = key(
        None, "Image files: processes that decode.", otherwise="one for each processor, four at most", ge=0
    )


class ModelKeys(DataKeys):
    """Model"""

    model: str = key("resnet18", f"The network: {model_sources.forms()}.")
    width: int | None = key(
        None,
        "Channels of the first stage, or of a transformer's blocks, of the built-in networks.",
        otherwise=f"{model_sources.WIDTH}; " + ", ".join(f"{width} of {name}" for name, width in WIDTHS.items()),
    )
    model_args: Arguments = key({}, "Arguments for the network, as model_args.hidden_act=relu.")
    init: str | None = key(
        None,
        "Weights to begin with, safetensors or a state dict; those that do not fit (of another head) stay as they are.",
        otherwise="random, or those in the folder of an hf: model",
    )


class TrainingKeys(ModelKeys):
    """Training"""

    epochs: int = key(5, "Passes over the data of every training.", ge=1)
    batch_size: int | None = key(
        None, "Samples per optimizer step.", otherwise="64 for fewer than 20,000 samples, else 128", ge=1
    )
    optimizer: Optimizer | None = key(
        None,
        "What trains.",
        otherwise="sgd, but adamw for transformers and for networks from elsewhere without batch norms",
    )
    lr: float | None = key(
        None,
        "Learning rate, the highest of the schedule.",
        otherwise=", ".join(f"{values.lr:g} for {name}" for name, values in OPTIMIZERS.items())
        + "; a tenth of it for pretrained weights",
        gt=0,
    )
    momentum: float | None = key(None, "Of sgd.", otherwise="0.9", ge=0, lt=1)
    weight_decay: float | None = key(
        None,
        "On every parameter.",
        otherwise=", ".join(f"{values.weight_decay:g} for {name}" for name, values in OPTIMIZERS.items()),
        ge=0,
    )
    schedule: Schedule | None = key(
        None, "Of the learning rate.", otherwise=f"milestones if there are any, else {SCHEDULES[0]}"
    )
    milestones: Epochs = key((), "Epochs after which the learning rate is a tenth, with commas between.")
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
    train_first: bool | None = key(
        None, "Whether to train before the first pruning.", otherwise="yes, but with weights"
    )
    mode: Mode = key(
        "exact",
        "repad: also merge what then differs at the border, and train again. refit: also replace several layers "
        "between two rectifiers by fewer that are fitted on the data, and train again.",
    )
    patterns: bool = key(
        False, "Also count the joint patterns of signs: the linear pieces that every site uses on the data."
    )
    log: Logs = key(
        (),
        f"Where every step is written as well, in the run's folder: {', '.join(LOGS)}, or both with a comma between.",
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
    return "" if field.default is None or field.default is False or field.default in ((), {}) else f"{field.default}"


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
            plain = list(value) if isinstance(value, tuple) else value
            lines += yaml().safe_dump({name: plain}, sort_keys=False, allow_unicode=True).splitlines()
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
