"""What the search for the best form of a network ends with."""

from __future__ import annotations

from dataclasses import dataclass, field

from layercollapse.compiler.analysis.obstacles import Kept
from layercollapse.compiler.driver.refit import Refitted
from layercollapse.compiler.tuning.autotune import Choice
from layercollapse.compiler.tuning.variants import Form, Variant
from layercollapse.graph.agreement import Agreement


@dataclass(frozen=True)
class Outcome:
    """The best form, and what led to it.

    Attributes:
        form: the form that was chosen.
        agreement: how it compares with the model on the data.
        missed: site that was tried and kept -> by how much the outputs missed the tolerance without it.
        rolled_back: layers that the tolerance keeps as they came, or as two.
        times: form, or the input, -> time in ms; empty where nothing was timed.
        choices: how the regions are written that there was more than one way to write.
        refitted: the regions that fitted layers have replaced.
    """

    form: Form
    agreement: Agreement
    missed: dict[str, str]
    rolled_back: tuple[Kept, ...] = ()
    times: dict[Variant, float] = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()
    refitted: tuple[Refitted, ...] = ()
