"""For people who train with `transformers.Trainer`, and go on with `pipeline` and `generate`.

trainer = Trainer(model, arguments, train_dataset=data, callbacks=[LayerCollapseCallback(amount=0.5)])
trainer.train()                               # prunes after each epoch but the last, keeps zeros, collapses
small = as_pretrained(callback.result, model)  # a PreTrainedModel: pipeline(...), generate, save_pretrained
"""

from __future__ import annotations

import copy
import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from layercollapse.compiler.backend.serialize import load, save
from layercollapse.compiler.driver.result import CollapseResult
from layercollapse.errors import LayerCollapseError, require
from layercollapse.graph.arguments import needed_and_refused
from layercollapse.graph.watch import unwrapped
from layercollapse.integrations.schedule import PruningSchedule

if TYPE_CHECKING:
    import transformers
else:
    transformers = require("transformers", "integrations")

# What `generate`, pipelines and trainers pass to every model, and what it means in a collapsed one.
_PASSED: dict[str, tuple[Any, ...]] = {
    "return_dict": (None, True),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "use_cache": (None, False),
    "past_key_values": (None,),
    "logits_to_keep": (None, 0),
    "num_items_in_batch": (None,),
}


class LayerCollapseCallback(PruningSchedule, transformers.TrainerCallback):
    """Prunes at the ends of epochs, keeps pruned weights at zero, and collapses the model when the training ends.

    The zeros are in the trainer's checkpoints, and a training that is resumed goes on with them.

    Args:
        amount: what to remove at each step; see `layercollapse.integrations.schedule.PruningSchedule` for all arguments
            and attributes.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Capture the model; a checkpoint's zeros count as pruned."""
        self.begin(kwargs["model"], kwargs.get("train_dataloader"), zeros=state.global_step > 0)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prune, if enough epochs are left to train on."""
        self.epoch_ends(round(state.epoch), round(state.num_train_epochs))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Collapse what was trained, on the main process."""
        self.end(main=state.is_world_process_zero)


def as_pretrained(result: CollapseResult | nn.Module, model: nn.Module) -> Any:
    """A collapsed model as a `PreTrainedModel` of the original's class, for pipelines, `generate` and `Trainer`.

    Args:
        result: a `CollapseResult`, or its model, trained on or not.
        model: the original, or another model of its class and configuration; it is not changed.

    Returns:
        A model with the original's configuration and methods, and the collapsed one in the place of its layers. Only
        what needs these layers (input embeddings to resize, heads to prune) does not work. `generate` takes
        ``use_cache=False``. ``save_pretrained(folder)`` writes what `layercollapse.load`, torch alone and
        `from_pretrained` of this module read.

    Raises:
        LayerCollapseError: the model is no `PreTrainedModel`, or the other no collapsed model.
    """
    model, example = unwrapped(model), None
    if isinstance(result, CollapseResult):
        result, example = result.model, result.example_inputs
    if not isinstance(model, transformers.PreTrainedModel):
        raise LayerCollapseError(f"model: expected a PreTrainedModel of transformers, got {type(model).__name__}")
    if not isinstance(result, torch.fx.GraphModule):
        raise LayerCollapseError(f"result: expected a CollapseResult or its model, got {type(result).__name__}")
    return _wrapped(result, type(model), model, example)


def _wrapped(small: torch.fx.GraphModule, kind: type, like: Any, example: Any) -> Any:
    signature = inspect.signature(small.forward)
    needed, refused = needed_and_refused(small)
    names = [name for name in signature.parameters if name not in refused]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        for name in [name for name in kwargs if name not in names]:
            value = kwargs.pop(name)
            if not any(value is same for same in _PASSED.get(name, ())) and value is not None:
                raise LayerCollapseError(
                    f"{name}: this collapsed model was made without it, got {value!r}; collapse it again with example "
                    f"inputs that have {name!r}"
                )
        kwargs.update(zip(names, args, strict=False))
        words = kwargs.get("input_ids")
        if words is not None and "attention_mask" in needed and kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = torch.ones_like(words)  # `generate` leaves out a mask of ones
        return self.collapsed(**kwargs)

    def save_pretrained(self: Any, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        if self.collapsed_example is None:
            raise LayerCollapseError("model: expected one that was wrapped with its CollapseResult, to export it")
        save(self.collapsed, save_directory, self.collapsed_example)
        self.config.save_pretrained(save_directory)
        if self.can_generate():
            self.generation_config.save_pretrained(save_directory)

    self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[self_parameter, *(signature.parameters[name] for name in names)]
    )
    methods = {"forward": forward, "save_pretrained": save_pretrained, "__module__": kind.__module__}
    wrapper: Any = object.__new__(type(kind.__name__, (kind,), methods))
    wrapper.__dict__.update(like.__dict__)
    for own in ("_modules", "_parameters", "_buffers"):
        wrapper.__dict__[own] = {}
    wrapper._non_persistent_buffers_set = set()
    wrapper.config = copy.deepcopy(like.config)
    wrapper.config.architectures = [kind.__name__]
    wrapper.generation_config = copy.deepcopy(getattr(like, "generation_config", None))
    wrapper.collapsed, wrapper.collapsed_example = small, example
    return wrapper.eval()


def from_pretrained(folder: str | os.PathLike[str]) -> Any:
    """What ``as_pretrained(...).save_pretrained(folder)`` wrote, as that; nothing in the files is executed.

    Raises:
        LayerCollapseError: the folder has no collapsed model, or no configuration of a class of transformers.
    """
    path = Path(folder)
    small = load(path)
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise LayerCollapseError(f"folder: expected one with a config.json of transformers, got {error}") from error
    name = (config.architectures or [""])[0]
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise LayerCollapseError(f"folder: expected an architecture of transformers in config.json, got {name!r}")
    with torch.device("meta"):
        like = kind(config)
    if (path / "generation_config.json").is_file() and like.can_generate():
        like.generation_config = transformers.GenerationConfig.from_pretrained(path, local_files_only=True)
    return _wrapped(small, kind, like, None)
