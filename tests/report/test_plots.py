"""The plot in the page."""

import re

from layercollapse.report import plots
from records import make_record


def test_plot_takes_its_colours_from_the_page():
    svg = plots.accuracy_and_sparsity(make_record().steps, 2, 96.5)
    assert svg.startswith("<svg")
    assert "var(--accent)" in svg
    assert not re.search("|".join(plots.VARIABLES), svg)
    assert svg == plots.accuracy_and_sparsity(make_record().steps, 2, 96.5)  # no date, no random names
