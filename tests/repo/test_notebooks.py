"""The notebooks of docs/notebooks run, and are kept with what they print."""

import pytest

from checkout import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    if "transformers" in path.read_text(encoding="utf-8"):
        pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()


def test_notebooks_have_their_outputs():
    assert [path.stem for path in NOTEBOOKS] == ["cnn", "text"]
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        text = "".join(output.get("text", "") for cell in code for output in cell.outputs)
        assert "rectifiers collapsed" in text
        assert str(ROOT) not in path.read_text(encoding="utf-8")
