"""The training of docs/scaling.md runs."""

import pytest

import pages


@pytest.mark.long
def test_the_training_of_the_page(tmp_path):
    (block,) = pages.blocks("scaling.md")
    pages.run(block, tmp_path)
    assert (tmp_path / "run" / "report.html").exists()
