"""Files that are whole or not there, folders that can be written, and JSON that is JSON."""

import os
import stat

import pytest

from layercollapse._util.files import atomic, free_folder, read_json, writable_folder, write_json, write_text
from layercollapse.errors import LayerCollapseError


def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path):
    target = tmp_path / "file"
    write_text(target, "first, ∗")
    assert target.read_bytes() == "first, ∗".encode()

    def half():
        with atomic(target) as temporary:
            temporary.write_text("half")
            assert temporary.parent == tmp_path  # a rename within one file system
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert target.read_text(encoding="utf-8") == "first, ∗"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(os.name != "posix", reason="of permissions")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_those_of_an_ordinary_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "")
        assert os.umask(umask) == umask  # as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_json_comes_back_and_nan_is_no_json(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": [1, 2.5, None]})
    assert read_json(path, "run") == {"a": [1, 2.5, None]}
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="Out of range float"):
            write_json(path, [value])
    assert read_json(path, "run") == {"a": [1, 2.5, None]}


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe"])
def test_what_is_no_json_names_the_argument(tmp_path, content):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LayerCollapseError, match=r"^run: expected a JSON file at .*file\.json, got: "):
        read_json(path, "run")


def test_a_folder_is_made_and_tried(tmp_path):
    assert writable_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(LayerCollapseError, match=r"^folder: expected a folder that can be written, got .*file"):
        writable_folder(tmp_path / "file" / "below", "folder")


def test_the_first_free_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for expected in ("run", "run-2", "run-3"):
        folder = free_folder("run")
        assert folder.as_posix() == f"runs/{expected}"
        folder.mkdir(parents=True)
