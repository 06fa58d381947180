"""Text in columns."""

from layercollapse._util.columns import aligned


def test_by_hand():
    rows = [("name", "n"), ("a", "10"), ("long one", "7")]
    assert aligned(rows, (1,)) == ["name       n", "a         10", "long one   7"]
    assert aligned(rows, ()) == ["name      n", "a         10", "long one  7"]
    assert aligned(rows, (1,), rule=True)[1:3] == ["--------  --", "a         10"]
    assert aligned([], (0,)) == []
