"""The record of a run, for the tests of what is made from it."""

from layercollapse.compiler.analysis.outline import Part
from layercollapse.report.record import Record, Region, Side, Step, Verdict

SITES = ["relu", "layer1.0.relu", "layer1.0.relu#2"]


def make_record(steps=3, finished=True):
    record = Record(
        settings={"data": "digits", "model": "resnet18", "max_drop": 0.5, "rule": "nepenthe", "ignore": []},
        environment={"device": "a processor", "threads": "2", "torch": "2.13.0"},
        sites=list(SITES),
        channels=[8, 8, 8],
        steps=[
            Step(
                step=number,
                density=0.5**number,
                top1_validation=97.0 + number,
                sites_collapsed=min(number, 3),
                entropy=[0.0 if site < number else 0.625 - 0.125 * number for site in range(3)],
                mixed=[0 if site < number else 5 for site in range(3)],
                seconds=1.5,
                histograms=[[number, 8 - number, *9 * [0]]] * 3,
            )
            for number in range(steps)
        ],
        chosen=steps - 1,
        dense_top1=97.25,
    )
    if finished:
        record.before = Side(97.25, 18, 701178, 13_000_000, 2.70, {"1": 2.0, "64": 20.0})
        record.after = Side(97.75, 14, 350589, 13_000_000, 1.35, {"1": 1.0, "64": 25.0})
        record.max_abs_error, record.identical, record.compared = 3.2e-6, 359, 360
        record.verdicts = [
            Verdict("relu", "relu", "collapsed", "exact", "every weight before it is pruned"),
            Verdict("layer1.0.relu", "relu", "collapsed", "empirical", ""),
            Verdict("layer1.0.relu#2", "relu", "kept", "", "5 of 8 neurons <mixed> & so on"),
        ]
        record.parts_before = [Part("conv1", "3x3, 1 → 8", 72, 720), Part("relu", "relu"), Part("fc", "8 → 10", 80, 80)]
        record.parts_after = record.parts_before[::2]
        record.forms, record.form = (
            {"the model as it came": 2.0, "every region as it is fastest": 1.0},
            "every region as it is fastest",
        )
        record.regions = [
            Region(["a", "b"], "layers kept in sequence", {"every pass applied": 0.5, "layers kept in sequence": 0.25})
        ]
    return record
