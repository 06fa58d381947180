"""Normal equations against direct solutions, batch by batch, and where there is no single solution."""

from __future__ import annotations

import pytest
import torch

from layercollapse.compiler.analysis.least_squares import NormalEquations


def summed(x: torch.Tensor, y: torch.Tensor, size: int = 1000) -> NormalEquations:
    equations = NormalEquations(x.shape[1], y.shape[1])
    for some, others in zip(x.split(size), y.split(size), strict=True):
        equations.add(some, others)
    return equations


def data(n: int = 500, p: int = 7, q: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, p, generator=generator, dtype=torch.float64) @ torch.randn(
        p, p, generator=generator, dtype=torch.float64
    )
    y = x @ torch.randn(p, q, generator=generator, dtype=torch.float64) + torch.randn(
        n, q, generator=generator, dtype=torch.float64
    )
    return x + 3, y - 2


def direct(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Weight, bias and R² by QR."""
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    solution = torch.linalg.lstsq(ones, y).solution
    errors = (y - ones @ solution).square().sum()
    return solution[:-1].T, solution[-1], float(1 - errors / (y - y.mean(0)).square().sum())


@pytest.mark.parametrize("size", [1000, 64, 1])
def test_a_fit_is_the_direct_solution_whatever_the_batches(size: int) -> None:
    x, y = data()
    equations = summed(x, y, size)
    fit = equations.fit()
    weight, bias, r2 = direct(x, y)
    torch.testing.assert_close(fit.weight, weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fit.bias, bias, rtol=1e-6, atol=1e-6)
    assert equations.explained(fit) == pytest.approx(r2, abs=1e-9)
    assert equations.samples == 500


def test_some_features_are_fitted_as_if_there_were_no_others() -> None:
    x, y = data()
    columns = torch.tensor([5, 0, 3])
    fit = summed(x, y, 64).fit(columns)
    weight, bias, r2 = direct(x[:, columns], y)
    torch.testing.assert_close(fit.weight, weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fit.bias, bias, rtol=1e-6, atol=1e-6)
    assert summed(x, y).explained(fit, columns) == pytest.approx(r2, abs=1e-9)


def test_what_is_explained_of_other_samples_is_counted_on_these() -> None:
    x, y = data()
    fitted = NormalEquations(7, 3)
    held = NormalEquations(7, 3, origin=fitted)
    fitted.add(x[:400], y[:400])
    held.add(x[400:], y[400:])
    fit = fitted.fit()
    errors = (y[400:] - x[400:] @ fit.weight.T - fit.bias).square().sum()
    expected = 1 - errors / (y[400:] - y[400:].mean(0)).square().sum()
    assert held.explained(fit) == pytest.approx(float(expected), abs=1e-9)
    both = fitted + held
    assert both.samples == 500
    torch.testing.assert_close(both.fit().weight, summed(x, y).fit().weight, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(both.fit().bias, summed(x, y).fit().bias, rtol=1e-8, atol=1e-8)


def test_features_far_from_zero_lose_no_digits() -> None:
    x, y = data()
    weight = direct(x, y)[0]
    torch.testing.assert_close(summed(x + 1e7, y - 1e7, 64).fit().weight, weight, rtol=1e-5, atol=1e-5)


def test_constant_and_repeated_features_have_a_fit_that_gives_the_same() -> None:
    x, y = data()
    more = torch.cat([x, torch.full((500, 1), 0.1, dtype=x.dtype), x[:, :2], torch.zeros(500, 1, dtype=x.dtype)], 1)
    fit = summed(more, y, 64).fit()
    weight, bias, r2 = direct(x, y)
    torch.testing.assert_close(more @ fit.weight.T + fit.bias, x @ weight.T + bias, rtol=1e-5, atol=1e-5)
    assert summed(more, y).explained(fit) == pytest.approx(r2, abs=1e-7)
    assert bool((fit.weight[:, [7, 10]] == 0).all())


def test_outputs_that_do_not_vary_are_a_bias() -> None:
    x, y = data()
    y = torch.full_like(y, 0.3)
    equations = summed(x, y, 64)
    fit = equations.fit()
    torch.testing.assert_close(fit.bias, y[0], rtol=1e-9, atol=1e-9)
    assert float(fit.weight.abs().max()) < 1e-9
    assert equations.explained(fit) == 1.0
    nothing = summed(torch.ones_like(x), data()[1])
    fit = nothing.fit()
    assert not bool(fit.weight.any())
    assert nothing.explained(fit) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_has_no_fit(value: float) -> None:
    x, y = data()
    y[17, 1] = value
    assert summed(x, y).fit() is None
    x, y = data()
    x[17, 1] = value
    assert summed(x, y).fit() is None
    assert NormalEquations(2, 2).fit() is None


def test_half_precision_is_summed_in_float64() -> None:
    x, y = (t.bfloat16() for t in data())
    torch.testing.assert_close(summed(x, y, 64).fit().weight, direct(x.double(), y.double())[0], rtol=1e-6, atol=1e-6)


def test_a_lower_rank_is_the_best_there_is() -> None:
    x, y = data(n=2000, p=6, q=5)
    equations = summed(x, y)
    fit = equations.fit()
    for rank in (1, 2, 4):
        low, up, down = equations.low_rank(fit, rank)
        torch.testing.assert_close(up.T @ up, torch.eye(rank, dtype=x.dtype))
        torch.testing.assert_close(low.weight, up @ down)
        # The best fitted values of a rank are the projection of the fitted values on their first singular vectors.
        given = x @ fit.weight.T
        given = given - given.mean(0)
        u, s, v = torch.linalg.svd(given, full_matrices=False)
        best = u[:, :rank] * s[:rank] @ v[:rank] + y.mean(0)
        torch.testing.assert_close(x @ low.weight.T + low.bias, best, rtol=1e-5, atol=1e-5)
    assert equations.explained(equations.low_rank(fit, 5)[0]) == pytest.approx(equations.explained(fit), abs=1e-9)
