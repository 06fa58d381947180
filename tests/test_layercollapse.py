"""The names of the package."""

from __future__ import annotations

import subprocess
import sys

import pytest

import layercollapse


def test_every_public_name_is_there_and_in_order() -> None:
    assert layercollapse.__all__ == sorted(layercollapse.__all__)
    assert [name for name in layercollapse.__all__ if not hasattr(layercollapse, name)] == []
    with pytest.raises(AttributeError, match="module 'layercollapse' has no attribute 'nothing'"):
        _ = layercollapse.nothing


def test_what_few_need_is_imported_when_it_is_asked_for() -> None:
    script = (
        "import sys, layercollapse as lc; print('layercollapse.zoo' in sys.modules); print(lc.models.MODELS.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120)
    first, second = done.stdout.splitlines()
    assert first == "False"
    assert "resnet18" in second
