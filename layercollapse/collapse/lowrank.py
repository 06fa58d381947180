"""Exact factors of matrices that have fewer independent rows than they could have, and the test that most have not.

A matrix counts as a product of rank r where the product of the factors differs from it by no more than the rounding
of a product in the dtype that the layer is emitted in. With ε the distance from 1 to the next number, and in every row
relative to its norm:

    ε / 2      at most, from storing the product in that dtype
    2 ε        from computing it, in float32 at the least: measured are 0.5, 0.8, 1.3 and 1.0 ε for two random float32
               factors of 512 rows and columns, and rank 4, 16, 64 and 256
    64 ε √n σ  of float64 instead, for a row and a column of n entries together: what the algorithm itself rounds. With
               rows of norm one the largest singular value σ is √rows where all are alike. Measured are up to 6 ε √n σ

Noise of 0.1 % is 8,000 ε of float32. Rows are measured after all columns have been brought to the same norm, so that a
column of small weights, which may read large values, counts as much as the others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Of a larger rank it is not found out: the test takes work of its cube, 0.1 s for this one on a core of an EPYC.
LARGEST = 1024
# Columns beyond the rank in question: of so many, one at least is a plain combination of those before.
_MARGIN = 16
# Of its norm, this part of a column at least is new in a generic matrix twice as long as it is wide, where 0.7 is
# expected; of a product stored in bfloat16, with rounding of 0.4 %, 0.03.
_NEW = 0.1


def factors(blocks: Tensor, most: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """The thinnest U and V with U V equal to every block but for rounding, or None where one needs more than `most`.

    Args:
        blocks: float64 (N, A, B).
        most: the largest rank of interest, below A and B.
        dtype: of the weights that are to come out; says what rounding is.

    Returns:
        Float64 (N, A, r) and (N, r, B), of one rank for all; the rows of V are orthonormal but for the scales of the
        columns, so that what flows between two layers made of them is as large as what goes in.
    """
    if not bool(blocks.isfinite().all()):
        return None
    even, rows, columns = _even(blocks)
    left, values, right = torch.linalg.svd(even, full_matrices=False)
    tolerance = _tolerance(dtype, blocks.shape[1] + blocks.shape[2], float(values.max()))
    left = left * values.unsqueeze(-2)
    # What is missing of every row without the last k columns, summed from the smallest on.
    missing = left.square().flip(-1).cumsum(-1).flip(-1).amax((0, 1))
    rank = max(1, int((missing > tolerance**2).sum()))
    if rank > most:
        return None
    return left[..., :rank] * rows.unsqueeze(-1), right[..., :rank, :] * columns.unsqueeze(-2)


def sample_size(rows: int, columns: int, most: int) -> tuple[int, int]:
    """How many rows and columns of a matrix `needs_more` is to see, to tell whether its rank is larger than `most`."""
    width = min(rows, columns, most + _MARGIN)
    length = min(max(rows, columns), 2 * width)
    return (length, width) if rows >= columns else (width, length)


def needs_more(sample: Tensor) -> bool:
    """Whether a part of a matrix, float64 of `sample_size`, shows that its rank is larger; False says nothing.

    Were it not, some of its columns would be combinations of those before, which a QR decomposition shows by small
    entries on the diagonal.
    """
    if sample.shape[0] < sample.shape[1]:
        sample = sample.T
    sample = (sample / _norms(sample, 1).unsqueeze(1)).float()  # twice as fast, and precise enough
    new = torch.geqrf(sample).a.diagonal().abs()
    return bool((new > _NEW * _norms(sample, 0)).all())


def _tolerance(dtype: torch.dtype, size: int, largest: float) -> float:
    """Relative to the norm of a row; `size` is the number of entries of a row and a column, `largest` is σ."""
    stored, own = torch.finfo(dtype).eps, torch.finfo(torch.float64).eps
    computed = own if dtype == torch.float64 else torch.finfo(torch.float32).eps
    return max(stored / 2 + 2 * computed, 64 * math.sqrt(size) * largest * own)


def _even(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix (..., A, B) with columns, then rows, brought to norm one; the norms (..., A) and (..., B) they had."""
    columns = _norms(matrix, -2)
    matrix = matrix / columns.unsqueeze(-2)
    rows = _norms(matrix, -1)
    return matrix / rows.unsqueeze(-1), rows, columns


def _norms(matrix: Tensor, dim: int) -> Tensor:
    norms = matrix.norm(dim=dim)
    return norms.masked_fill(norms == 0, 1.0)
