"""How likely each arm is the best one, from what is known of their means: Thompson's shares, computed instead of drawn.

P(k is best) = ∫ f_k(x) Π_{j≠k} F_j(x) dx, on one grid that is dense where any arm's density is. Integrals over a cell
use values and slopes at its ends (h/2 (f₀+f₁) + h²/12 (f₀'−f₁'), the corrected trapezoid), whose error falls with h⁴.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_POINTS = 64  # of each arm; shares are then right to 1e-5, see the tests
_REACH = 9.0  # standard deviations to each side, beyond which a normal density is 1e-18 of its peak
_TAIL = 36.0  # an exponential tail e^-x is 1e-16 there
_LARGEST_REACH = 1e5  # of Student's t with few degrees of freedom, in scales


def best_of_betas(successes: Sequence[float], failures: Sequence[float]) -> list[float]:
    """The chance of each arm to have the largest mean, when means have Beta(successes, failures) distributions.

    Both parameters are above 0 and may be fractions. The sum is 1.

    In log odds θ the density is σ(θ)ᵃ(1−σ(θ))ᵇ: smooth and with one peak for every a and b.
    """
    a, b = np.asarray(successes, dtype=float)[:, None], np.asarray(failures, dtype=float)[:, None]
    centre, scale = np.log(a / b), np.sqrt((a + b) / (a * b))
    grid = _grid(centre, scale, _REACH + _TAIL / (a * scale), _REACH + _TAIL / (b * scale))
    # log σ(θ) and log(1−σ(θ)), exact for large |θ|
    softplus = np.logaddexp(0.0, grid)
    log_density = a * (grid - softplus) - b * softplus
    log_density -= a * (centre - np.logaddexp(0.0, centre)) - b * np.logaddexp(0.0, centre)  # 0 at the peak
    density = np.exp(log_density)
    slope = density * (a - (a + b) * np.exp(grid - softplus))
    return _shares(grid, density, slope)


def best_of_students(degrees: Sequence[float], means: Sequence[float], scales: Sequence[float]) -> list[float]:
    """The chance of each arm to have the largest mean, when means have Student's t distributions, moved and scaled.

    Degrees of freedom are at least 1, scales above 0. The sum is 1.
    """
    nu, centre, scale = (np.asarray(values, dtype=float)[:, None] for values in (degrees, means, scales))
    # Neither where they lie nor their unit matters to who is best; numbers around 1 cannot overflow.
    limits = np.finfo(float)
    unit = min(max(float(scale.max()), float(np.ptp(centre)), float(limits.tiny)), float(limits.max))
    centre, scale = (centre - centre.min()) / unit, np.maximum(scale / unit, 1e-12)
    # P(|t| > r) ≲ r^-ν for large r: 1e-7 beyond it
    reach = np.minimum(np.maximum(_REACH, 10.0 ** (7.0 / nu)), _LARGEST_REACH)
    grid = _grid(centre, scale, reach, reach)
    standard = (grid - centre) / scale
    density = np.exp(-(nu + 1) / 2 * np.log1p(standard**2 / nu)) / scale
    slope = -density * (nu + 1) * standard / (nu + standard**2) / scale
    return _shares(grid, density, slope)


def _grid(centre: Floats, scale: Floats, left: Floats, right: Floats) -> Floats:
    """Ascending points, dense at each arm's centre and ever wider apart towards `left` and `right` scales from it."""
    steps = np.linspace(0.0, 1.0, _POINTS)
    ends = np.arcsinh(left), np.arcsinh(right)
    return np.sort((centre + scale * np.sinh(steps * (ends[0] + ends[1]) - ends[0])).ravel())


def _shares(grid: Floats, density: Floats, slope: Floats) -> list[float]:
    """Integrals over the grid of unnormalised densities, `(arms, points)`, with their slopes."""
    widths = np.diff(grid)
    below = _cumulated(density, slope, widths)
    mass = below[:, -1:]
    density, slope, below = density / mass, slope / mass, below / mass
    # Below its own F of 1e-14 an arm adds nothing that could be seen, and rounding makes the ratio there meaningless.
    begun = below > 1e-14
    below = np.where(begun, below, 1.0)
    ratio, slope = np.where(begun, density / below, 0.0), np.where(begun, slope / below, 0.0)
    product = np.where(begun, below, 0.0).prod(axis=0)
    together = ratio.sum(axis=0)
    best = product * ratio
    best_slope = product * (slope + ratio * (together - ratio))
    cells = widths / 2 * (best[:, :-1] + best[:, 1:]) + widths**2 / 12 * (best_slope[:, :-1] - best_slope[:, 1:])
    shares = np.maximum(cells.sum(axis=1), 0.0)
    total = float(shares.sum())
    if not (math.isfinite(total) and total > 0):
        return [1.0 / len(shares)] * len(shares)
    return [float(share) for share in shares / total]


def _cumulated(values: Floats, slopes: Floats, widths: Floats) -> Floats:
    cells = widths / 2 * (values[:, :-1] + values[:, 1:]) + widths**2 / 12 * (slopes[:, :-1] - slopes[:, 1:])
    result = np.zeros_like(values)
    np.cumsum(np.maximum(cells, 0.0), axis=1, out=result[:, 1:])
    return result
