"""For people who train with Lightning.

callback = LayerCollapse(amount=0.5, out="small")
trainer = lightning.Trainer(max_epochs=6, callbacks=[callback])
trainer.fit(module, loader)      # prunes after each epoch but the last, keeps zeros, collapses
callback.result.model            # shallower and dense, called as the module is
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from layercollapse.errors import require
from layercollapse.integrations.schedule import PruningSchedule

if TYPE_CHECKING:
    from lightning.pytorch import Callback
elif importlib.util.find_spec("lightning") is None and importlib.util.find_spec("pytorch_lightning") is not None:
    Callback = require("pytorch_lightning", "integrations").Callback
else:
    Callback = require("lightning.pytorch", "integrations").Callback


class LayerCollapse(PruningSchedule, Callback):
    """Prunes at the ends of epochs, keeps pruned weights at zero, and collapses the module when the training ends.

    The masks are part of the trainer's checkpoints, and a training that is resumed goes on with them.

    Args:
        amount: what to remove at each step; see `layercollapse.integrations.schedule.PruningSchedule` for all arguments
            and attributes. Without `example_inputs`, those are the module's `example_input_array` or the first two
            samples of the training data.
    """

    _masks: dict[str, Any] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Capture the module, and keep zeros from here on."""
        if self._example is None:
            self._example = pl_module.example_input_array
        pruner = self.begin(pl_module, trainer.train_dataloader)
        if self._masks is not None:
            pruner.load_state_dict(self._masks)
            self._masks = None

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Prune, if enough epochs are left to train on."""
        last = trainer.max_epochs
        self.epoch_ends(trainer.current_epoch + 1, None if last is None or last < 0 else last)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Collapse what was trained, on the main process."""
        self.end(main=trainer.is_global_zero)

    def state_dict(self) -> dict[str, Any]:
        """The masks, for the trainer's checkpoint."""
        return {} if self.pruner is None else {"pruner": self.pruner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The masks of a checkpoint, for the training that begins."""
        self._masks = state_dict.get("pruner")
