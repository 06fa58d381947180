"""Linear least squares from sums over samples that are seen once: the normal equations, in float64.

For features x (P,) and outputs y (Q,) the sums over samples of x xᵀ, y xᵀ, x, y and y² determine the weights that fit
best, and how well any weights fit: memory is P² numbers, however many samples there are. What is summed are differences
to the mean of the first batch, so that features far from zero lose no digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# What is added to the diagonal, as a part of its mean: where features are sums of others many weights fit as well, and
# these are the smallest.
_RIDGE = 1e-9
# Relative differences as small as this are rounding errors.
_ROUNDING = 64 * torch.finfo(torch.float64).eps
# Samples are added in blocks of so many numbers, 32 MiB in float64.
_BLOCK = 1 << 22


@dataclass(frozen=True, eq=False)
class Fit:
    """``y = weight @ x + bias``.

    Attributes:
        weight: float64, (Q, P).
        bias: float64, (Q,).
    """

    weight: Tensor
    bias: Tensor


class NormalEquations:
    """Sums over samples of P features and Q outputs.

    Args:
        features: P.
        outputs: Q.
        origin: of another one, with which this one is to be added: the same differences are summed.
    """

    def __init__(self, features: int, outputs: int, origin: NormalEquations | None = None) -> None:
        self.samples = 0
        self._origin: tuple[Tensor, Tensor] | None = None
        self._like = origin
        self._x, self._y = torch.zeros(features, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64)
        self._xx = torch.zeros(features, features, dtype=torch.float64)
        self._yx = torch.zeros(outputs, features, dtype=torch.float64)
        self._yy = torch.zeros(outputs, dtype=torch.float64)

    @property
    def features(self) -> int:
        """P."""
        return len(self._x)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take samples: features (N, P) and outputs (N, Q), of any floating-point dtype."""
        if not len(x):
            return
        if x.device.type not in ("cpu", "cuda"):  # not every accelerator has float64
            x, y = x.cpu(), y.cpu()
        origin = [part.to(x.device) for part in self._shift(x, y)]
        rows = max(1, _BLOCK // max(1, self.features))
        sums: list[Tensor] = []
        for some, others in zip(x.split(rows), y.split(rows), strict=True):
            u, v = some.double() - origin[0], others.double() - origin[1]
            new = [u.sum(0), v.sum(0), u.T @ u, v.T @ u, v.square().sum(0)]
            sums = [a.add_(b) for a, b in zip(sums, new, strict=True)] if sums else new
        for total, more in zip((self._x, self._y, self._xx, self._yx, self._yy), sums, strict=True):
            total.add_(more.cpu())
        self.samples += len(x)

    def _shift(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        holder = self if self._like is None else self._like
        if holder._origin is None:
            holder._origin = x.double().mean(0).cpu(), y.double().mean(0).cpu()
        return holder._origin

    def __add__(self, other: NormalEquations) -> NormalEquations:
        """The sums over the samples of both, one of which has the other as its `origin`."""
        total = NormalEquations(self.features, len(self._y), self._like or self)
        for name in ("samples", "_x", "_y", "_xx", "_yx", "_yy"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def fit(self, columns: Tensor | None = None) -> Fit | None:
        """The weights that fit best with some of the features; None where sums are not finite.

        Args:
            columns: int64, the features that are used, or None for all. Weights are (Q, len(columns)).
        """
        (x, yx, xx), origin = self._of(columns), self._origins(columns)
        if origin is None or not bool(xx.isfinite().all() & yx.isfinite().all()):
            return None
        mean_x, mean_y = x / self.samples, self._y / self.samples
        variances = (xx.diagonal() - x * mean_x).clamp(min=0)
        # Of a feature that is constant, rounding errors are left, which are no directions.
        varies = (variances > _ROUNDING * xx.diagonal()) & (variances > self.samples * (_ROUNDING * origin[0]).square())
        covariance = (xx - torch.outer(x, mean_x)) * varies * varies[:, None]
        both = (yx - torch.outer(self._y, mean_x)) * varies
        weight = _solved(covariance, both)
        return Fit(weight, mean_y + origin[1] - weight @ (mean_x + origin[0]))

    def explained(self, fit: Fit, columns: Tensor | None = None) -> float:
        """The share of the outputs' variance over these samples that a fit explains, R²: 1 is all of it.

        Of all outputs together: 1 less the sum of their squared errors over that of their squared differences to their
        means. Below 0 where the means alone are better. A fit that gives outputs that do not vary explains all.
        """
        (x, yx, xx), origin = self._of(columns), self._origins(columns)
        if origin is None:
            return float("nan")
        # Errors are v - W u - c, for the differences u and v to the origins.
        c = fit.bias - origin[1] + fit.weight @ origin[0]
        through = fit.weight @ xx
        errors = self._yy - 2 * (fit.weight * yx).sum(1) + (through * fit.weight).sum(1)
        errors = errors - 2 * c * (self._y - fit.weight @ x) + self.samples * c.square()
        left, total = float(errors.clamp(min=0).sum()), float((self._yy - self._y.square() / self.samples).sum())
        rounding = 1e-14 * float(self._yy.sum() + self.samples * origin[1].square().sum())
        if total <= rounding:
            return 1.0 if left <= 4 * rounding else 0.0
        return 1.0 - left / total

    def low_rank(self, fit: Fit, rank: int, columns: Tensor | None = None) -> tuple[Fit, Tensor, Tensor]:
        """The best weights of some rank: those of a fit, on the directions of the outputs in which it varies most.

        This is reduced-rank regression (Izenman 1975), all outputs weighing the same.

        Returns:
            The fit with ``weight = up @ down``, up (Q, rank) with orthonormal columns, and down (rank, P).
        """
        (x, _, xx), origin = self._of(columns), self._origins(columns)
        assert origin is not None
        mean = x / self.samples
        given = fit.weight @ (xx - torch.outer(x, mean)) @ fit.weight.T
        up = torch.linalg.eigh((given + given.T) / 2).eigenvectors[:, -rank:].flip(1)
        # An eigenvector has either sign: its largest entry is made positive, so that layers are always the same.
        up = up * up.gather(0, up.abs().argmax(0, keepdim=True)).sign()
        down = up.T @ fit.weight
        weight = up @ down
        return Fit(weight, fit.bias + (fit.weight - weight) @ (mean + origin[0])), up, down

    def _of(self, columns: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The sums of x (P,), y xᵀ (Q, P) and x xᵀ (P, P) for some of the features."""
        if columns is None:
            return self._x, self._yx, self._xx
        return self._x[columns], self._yx[:, columns], self._xx[columns][:, columns]

    def _origins(self, columns: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """What features and outputs are the differences to."""
        origin = (self if self._like is None else self._like)._origin
        return origin if origin is None or columns is None else (origin[0][columns], origin[1])


def _solved(covariance: Tensor, both: Tensor) -> Tensor:
    """``both @ covariance⁻¹`` with as small a ridge as makes that stable."""
    scale = float(covariance.diagonal().mean())
    if scale <= 0.0:
        return torch.zeros_like(both)
    ridge = _RIDGE * scale
    while True:
        factor, failed = torch.linalg.cholesky_ex(covariance + ridge * torch.eye(len(covariance), dtype=torch.float64))
        if not int(failed):
            return torch.cholesky_solve(both.T, factor).T
        ridge *= 100
