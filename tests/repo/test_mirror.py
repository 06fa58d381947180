"""`tests/` mirrors the package: what tests a module is found by the module's name."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

from checkout import ROOT

PACKAGE, TESTS = ROOT / "layercollapse", ROOT / "tests"
SMALL = 40  # lines of code, without docstrings, comments and empty lines

# Module -> what goes through it in the place of a test of its name.
ELSEWHERE = {
    "zoo/models/mobilenet.py": "zoo/models/test_models.py has a row for each network",
    "zoo/models/resnet.py": "zoo/models/test_models.py has a row for each network",
}
# Folders of tests of what is no package of layercollapse/.
OTHERS = {"csrc", "cuda", "helpers", "integration", "kernels", "repo", "without_hypothesis"}
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def code_lines(text: str) -> int:
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        named = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if named and ast.get_docstring(node, clean=False) is not None:
            lines.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def mirrored(module: Path) -> Path:
    """The test of a module, and of a package in the package's own folder; see `test_names_by_hand`."""
    parts = [part.strip("_") for part in module.with_suffix("").parts]
    if parts[-1] == "init":
        parts[-1] = parts[-2] if len(parts) > 1 else PACKAGE.name
    return Path(*parts[:-1], f"test_{parts[-1]}.py")


MODULES = {path.relative_to(PACKAGE): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_module_with_logic_has_the_test_of_its_name() -> None:
    missing = {
        module.as_posix(): f"tests/{mirrored(module).as_posix()}"
        for module, text in MODULES.items()
        if code_lines(text) >= SMALL and not (TESTS / mirrored(module)).is_file()
    }
    assert {module: test for module, test in missing.items() if module not in ELSEWHERE} == {}
    assert set(ELSEWHERE) - set(missing) == set(), "these have a test of their name, or are gone"


def test_every_test_in_a_folder_of_a_package_has_its_module() -> None:
    """But those of an op, which every backend has (`ops/test_sign_histogram.py`, and of lists of tensors)."""
    from layercollapse import ops

    expected = {mirrored(module) for module in MODULES}
    named = {path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    astray = {path for path in named - expected if path.parts[0] not in OTHERS}
    public = {f"test_{name.strip('_')}.py" for name in (*ops.__all__, "sign_lists")}
    assert {path for path in astray if path.parent != Path("ops") or path.name not in public} == set()


def test_lines_of_code_by_hand() -> None:
    text = '"""Two\nlines."""\n\nimport os  # here\n\n# a comment\ndef f():\n    """Says."""\n    return """a\nb"""\n'
    assert code_lines(text) == 4
    assert code_lines('"""Alone."""\n') == 0


def test_names_by_hand() -> None:
    for module, test in (
        ("_util/files.py", "util/test_files.py"),
        ("zoo/data/__init__.py", "zoo/data/test_data.py"),
        ("__main__.py", "test_main.py"),
        ("__init__.py", "test_layercollapse.py"),
        ("compiler/ir/graph.py", "compiler/ir/test_graph.py"),
    ):
        assert mirrored(Path(module)).as_posix() == test
