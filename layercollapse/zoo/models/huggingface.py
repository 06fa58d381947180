"""Models of transformers from a folder or a configuration on disk, `hf:FOLDER`; nothing is fetched, no code is run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layercollapse.errors import LayerCollapseError, require
from layercollapse.graph.export import reason
from layercollapse.zoo.data.split import Text
from layercollapse.zoo.models.wanted import Built, Wanted

CONFIG = "config.json"
IMAGE = 224  # pixels on a side, where a configuration does not say
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def build(path: str, wanted: Wanted) -> Built:
    """A classifier of texts or of images, as the data are: the folder's weights, and a head for the data's classes.

    Args:
        path: a folder with a config.json and, if it is a trained model, model.safetensors; or a config.json alone.
        wanted: what the data ask for.

    Raises:
        LayerCollapseError: transformers is not installed, there is no such model, or none of its kind classifies so.
    """
    spec = f"hf:{path}"
    wanted.without_width(spec)
    transformers = require("transformers", "text")
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if not (folder / CONFIG).is_file() and not Path(path).is_file():
        raise LayerCollapseError(f"model: expected a folder with {CONFIG}, or such a file, got {path}")
    kind = transformers.AutoModelForSequenceClassification
    changes = dict(wanted.args)
    if wanted.text is None:
        channels, height, width = wanted.images(spec)
        kind = transformers.AutoModelForImageClassification
        changes = {"image_size": height if height == width else (height, width), "num_channels": channels, **changes}
    trained = Path(path).is_dir() and any((folder / name).is_file() for name in WEIGHTS)
    try:
        config = transformers.AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, num_labels=wanted.num_classes
        )
        if unknown := [key for key in wanted.args if not hasattr(config, key)]:
            raise LayerCollapseError(
                f"model_args: expected keys of {type(config).__name__}, got {', '.join(unknown)} for {spec}"
            )
        for key, value in changes.items():
            if hasattr(config, key):  # not every network has a size of images
                setattr(config, key, value)
        if not trained:
            return Built(kind.from_config(config, trust_remote_code=False))
        with _quiet(transformers.logging):
            model = kind.from_pretrained(
                path,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # the head of other classes
            )
    except LayerCollapseError:
        raise
    except Exception as error:
        raise LayerCollapseError(f"model: {spec} stopped with {reason(error)}") from error
    if wanted.text is not None and model.get_input_embeddings().weight.shape[0] < wanted.text.vocabulary:
        raise LayerCollapseError(
            f"tokenizer: expected at most {model.get_input_embeddings().weight.shape[0]} tokens for {spec}, got "
            f"{wanted.text.vocabulary}: --tokenizer names the one that the model was trained with"
        )
    return Built(model, pretrained=True)


def assumed(path: str, shape: tuple[int, int, int] | None, tokens: int, args: dict[str, Any]) -> Wanted:
    """What the configuration of a model says of its inputs, where there are no data.

    Args:
        path: as for `build`.
        shape: of images, if the user says it.
        tokens: of a text, at most.
        args: arguments for the model.

    Raises:
        LayerCollapseError: transformers is not installed, or there is no configuration.
    """
    transformers = require("transformers", "text")
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise LayerCollapseError(f"model: expected a folder with {CONFIG}, or such a file, got {path}") from error
    if shape is not None or hasattr(config, "image_size") or not hasattr(config, "vocab_size"):
        size = getattr(config, "image_size", IMAGE)
        height, width = (size, size) if isinstance(size, int) else size
        return Wanted(config.num_labels, shape or (getattr(config, "num_channels", 3), height, width), args=args)
    pad = getattr(config, "pad_token_id", None) or 0
    # RoBERTa's positions count from behind the padding's number.
    most = min(tokens, getattr(config, "max_position_embeddings", tokens) - pad - 1)
    return Wanted(config.num_labels, text=Text(None, config.vocab_size, pad, max(3, most)), args=args)


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """The block without the table of weights that a classifier has and the folder has not: its head, as it must be."""
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def tokenizer(path: str) -> str | None:
    """Where the tokenizer of a model is; None where its folder has none."""
    names = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
    return path if Path(path).is_dir() and any((Path(path) / name).is_file() for name in names) else None
