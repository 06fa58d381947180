"""Those whom a run tells."""

import pytest

from layercollapse import LayerCollapseError
from layercollapse.pipeline.events import Event, Listeners
from records import make_record

EVENT = Event("train", 0, make_record(0, finished=False))


class Heard:
    def __init__(self, fails=False):
        self.events, self.closed, self.fails = [], 0, fails

    def __call__(self, event):
        self.events.append(event)

    def close(self):
        self.closed += 1
        if self.fails:
            raise OSError("no space left")


def test_all_are_told_and_closed():
    alone, seen, one, other = Heard(), [], Heard(fails=True), Heard()
    for progress in (None, alone, [one, seen.append, other]):
        told = Listeners(progress)
        told(EVENT)
        if progress is None or progress is alone:
            told.close()
    with pytest.warns(UserWarning, match="closing Heard stopped with .*no space left"):
        told.close()
    assert alone.events == seen == one.events == other.events == [EVENT]
    assert alone.closed == one.closed == other.closed == 1


@pytest.mark.parametrize("progress", ["bar", [print, 3], 3])
def test_what_cannot_be_told(progress):
    with pytest.raises(LayerCollapseError, match="progress: expected a function of an event, or several, got"):
        Listeners(progress)
