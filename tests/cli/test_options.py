"""Options of the command line from the keys of a recipe: the same names, texts and defaults."""

from __future__ import annotations

from click.testing import CliRunner

from layercollapse.cli.commands import layercollapse, run
from layercollapse.cli.options import flag
from layercollapse.cli.recipe import Recipe, default_of, groups


def test_every_key_is_an_option_with_its_text_and_default() -> None:
    options = {parameter.name: parameter for parameter in run.params}
    values = run.make_context("run", []).params
    for name, field in Recipe.model_fields.items():
        assert options[name].opts == [flag(name)]
        assert values[name] is None
        assert options[name].help.startswith(field.description)
        assert default_of(Recipe, name) in options[name].help


def test_help_is_in_groups() -> None:
    shown = CliRunner().invoke(layercollapse, ["run", "--help"]).output
    places = [shown.index(f"\n{heading}:\n") for heading, _ in groups(Recipe)]
    assert places == sorted(places)
    assert places[0] < shown.index("--data ") < places[1] < shown.index("--model ") < places[2]
    assert all(shown.count(f"  {flag(name)} ") == 1 for name in Recipe.model_fields)
    assert shown.index("--max-drop X") > places[-1]
    assert shown.index("  --out") > shown.index("\nOptions:\n") > shown.index("--seed N")
