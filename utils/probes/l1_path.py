"""L1-regularised logistic regression along a ladder of C, to its optimum.

The problem is scikit-learn's (``LogisticRegression`` with an L1 penalty), the intercept
unpenalised:

    F(w, b) = ||w||_1 + C * sum_i log(1 + exp(-s_i (x_i . w + b))),   s_i in {-1, +1}

It is solved from the strongest penalty to the weakest, each solution starting the next, by an
active-set Newton method: inside the orthant of the current signs F is smooth, so a Newton step on
the nonzero weights (and on those zero weights whose gradient exceeds the penalty) converges in a
handful of steps, however badly conditioned the columns are. That is what first-order solvers (saga)
and coordinate descent struggle with at large C. Related: Byrd et al. 2012, "A family of
second-order methods for convex l1-regularized optimization".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg.blas import dsymv, dsyrk
from scipy.linalg.lapack import dpotrf, dpotrs
from scipy.special import expit

KKT_TARGET = 1e-6  # the solver stops here
KKT_ACCEPTED = 1e-4  # a fit worse than this is not called converged
NEGLIGIBLE = 1e-13  # second derivatives this much smaller than the largest are left out
MAX_STEPS = 500  # Newton steps per C
MAX_INNER = 12  # steps on one quadratic model
MAX_STALLED = 5  # steps in a row without a measurable decrease
MAX_NEW_PER_STEP = 64  # zero weights that may join the active set in one step


@dataclass(frozen=True)
class L1Fit:
    """One solution: ``coef`` [n_columns], ``intercept``, and how far it is from optimal (``kkt``,
    in units of the penalty).
    """

    C: float
    coef: np.ndarray
    intercept: float
    objective: float
    kkt: float
    n_steps: int

    @property
    def converged(self) -> bool:
        return self.kkt <= KKT_ACCEPTED

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Scores [n_rows] for X [n_rows, n_columns]; higher means class 1."""
        return X @ self.coef + self.intercept


def objective(X: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: float, C: float) -> float:
    """F(coef, intercept) as defined above; X [n_rows, n_columns], y [n_rows] in {0, 1}."""
    z = X @ coef + intercept
    return float(np.abs(coef).sum() + C * np.logaddexp(0.0, np.where(y == 1, -z, z)).sum())


def kkt_violation(
    X: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: float, C: float
) -> float:
    """Largest violation of the optimality conditions, in units of the penalty (0 at the optimum).

    With g = C (X - its columns' means)^T (p - y): |g_j + sign(w_j)| where w_j != 0, max(|g_j| - 1,
    0) where w_j = 0, and
    |C sum(p - y)|. (At the optimum sum(p - y) is 0, and the means take nothing from g.)
    """
    residual = C * (expit(X @ coef + intercept) - y)
    gradient = (X - X.mean(axis=0)).T @ residual
    violation = np.where(coef != 0, np.abs(gradient + np.sign(coef)), np.abs(gradient) - 1)
    return float(max(violation.max(initial=0.0), abs(residual.sum()), 0.0))


def l1_logistic_path(
    X: np.ndarray, y: np.ndarray, Cs: np.ndarray, target: float = KKT_TARGET
) -> list[L1Fit]:
    """Fits for each C of ``Cs``, in the order of ``Cs``, each until it is within ``target`` of
    optimal or gets no further.

    X: [n_rows, n_columns] float; y: [n_rows] in {0, 1}, both classes present.
    """
    # Shifting a column changes only the (unpenalised) intercept, and a large mean hides what
    # varies: to the means' common zero. In Fortran's order, because active columns are taken out
    # again and again.
    mean = X.mean(axis=0, dtype=np.float64)
    X = np.asfortranarray(X - mean)
    y = np.asarray(y, dtype=np.float64)
    if not 0 < y.sum() < len(y):
        raise ValueError("both classes must be present in y")
    coef = np.zeros(X.shape[1])
    intercept = float(np.log(y.mean() / (1 - y.mean())))
    fits: dict[float, L1Fit] = {}
    for C in sorted({float(C) for C in Cs}):
        fits[C] = _solve(X, y, C, coef, intercept, target)
        coef, intercept = fits[C].coef, fits[C].intercept
    return [
        replace(
            fits[float(C)], intercept=fits[float(C)].intercept - float(mean @ fits[float(C)].coef)
        )
        for C in Cs
    ]


@dataclass(frozen=True)
class _Problem:
    """min over (w, b) of |w|_1 + C sum log(1 + exp(signed * (X w + b))).

    ``X``: [n_rows, n]; ``signed``: [n_rows], -1 for class 1 and 1 for class 0.
    """

    X: np.ndarray
    signed: np.ndarray
    C: float

    def loss(self, z: np.ndarray) -> float:
        """The second term at z = X w + b."""
        return self.C * np.logaddexp(0.0, self.signed * z).sum()


@dataclass(frozen=True)
class _Point:
    """Weights [n], intercept, z = X w + b [n_rows], and the loss there."""

    w: np.ndarray
    b: float
    z: np.ndarray
    loss: float


@dataclass(frozen=True)
class _Step:
    """A step on the ``active`` weights, whose ``columns`` of X these are, and on the intercept, in
    the orthant of ``signs``.
    """

    active: np.ndarray
    columns: np.ndarray
    signs: np.ndarray
    weights: np.ndarray
    intercept: float


def _solve(
    X: np.ndarray, y: np.ndarray, C: float, coef: np.ndarray, intercept: float, target: float
) -> L1Fit:
    signed = np.where(y == 1, -1.0, 1.0)
    problem = _Problem(X, signed, C)
    z = X @ coef + intercept
    point = _Point(coef.copy(), intercept, z, problem.loss(z))
    n_steps = 0
    max_violation = np.inf
    best = (np.inf, point)
    stalled = 0
    while True:
        w = point.w
        p = expit(point.z)
        # p - y without cancellation where p is near y
        residual = C * signed * expit(signed * point.z)
        gradient = X.T @ residual
        intercept_gradient = residual.sum()
        violation = np.where(w != 0, np.abs(gradient + np.sign(w)), np.abs(gradient) - 1)
        max_violation = float(max(violation.max(initial=0.0), abs(intercept_gradient), 0.0))
        if max_violation < best[0]:
            best = (max_violation, point)
        if max_violation <= target or n_steps >= MAX_STEPS or stalled >= MAX_STALLED:
            break
        n_steps += 1

        signs = np.sign(w)
        entering = np.flatnonzero((w == 0) & (np.abs(gradient) > 1 + target / 2))
        if len(entering) > MAX_NEW_PER_STEP:
            strongest = np.argsort(-np.abs(gradient[entering]), kind="stable")[:MAX_NEW_PER_STEP]
            entering = np.sort(entering[strongest])
        signs[entering] = -np.sign(gradient[entering])
        weights = C * p * (1 - p)
        step = _newton_direction(X, weights, gradient, intercept_gradient, signs, w)
        new = _line_search(problem, point, step)
        if new is None:
            stalled += 1
            point, moved = _coordinate_pass(problem, point)
            if not moved:
                break
        else:
            point, decrease = new
            small = 1e-13 * (point.loss + np.abs(point.w).sum())
            stalled = stalled + 1 if decrease <= small else 0
    max_violation, point = best
    F = objective(X, y, point.w, point.b, C)
    return L1Fit(C, point.w, point.b, F, max_violation, n_steps)


def _newton_direction(
    X: np.ndarray,
    weights: np.ndarray,
    gradient: np.ndarray,
    intercept_gradient: float,
    signs: np.ndarray,
    w: np.ndarray,
) -> _Step:
    """The step towards the minimum of F's quadratic model; ``weights`` [n_rows] are of its second
    derivatives.

    The model is minimised inside the orthant of ``signs``. A weight that a step would carry past
    zero stops there and is left out of the next, which the same second derivatives give: finding
    steps is cheap beside making those.
    """
    active = np.flatnonzero(signs)
    columns, sign, m = X[:, active], signs[active], len(active)
    hessian = _hessian(columns, weights)
    slope = np.append(gradient[active] + sign, intercept_gradient)
    place, step = np.append(w[active], 0.0), np.zeros(m + 1)
    free = np.ones(m + 1, dtype=bool)
    for _ in range(MAX_INNER):
        moving = np.flatnonzero(free)
        direction = np.zeros(m + 1)
        direction[moving] = -_solve_positive(
            hessian.copy(order="F") if free.all() else _square(hessian, moving), slope[moving]
        )
        backwards = free[:m] & (place[:m] == 0) & (direction[:m] * sign <= 0)
        if backwards.any():
            free[:m] &= ~backwards
            continue
        moved, change = _best_on_arc(hessian, slope, place, direction, sign)
        place, step, slope = place + moved, step + moved, slope + change
        held = free[:m] & (place[:m] == 0)
        if not held.any():
            break
        free[:m] &= ~held
    return _Step(active, columns, signs, step[:m], step[m])


def _hessian(columns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[n + 1, n + 1], its lower triangle: second derivatives for these columns [n_rows, n] and the
    intercept.
    """
    m = columns.shape[1]
    # rows that are fitted to the last digits bend nothing: at weak penalties these are half of them
    bent = weights > NEGLIGIBLE * weights.max()
    scaled = (
        np.sqrt(weights[bent])[:, None] * columns[bent]
        if bent.mean() < 0.8
        else np.sqrt(weights)[:, None] * columns
    )
    hessian = np.empty((m + 1, m + 1), order="F")
    if m:
        hessian[:m, :m] = dsyrk(1.0, scaled, trans=1, lower=1)  # a symmetric product, half the work
    hessian[m, :m] = weights @ columns
    hessian[m, m] = weights.sum()
    return hessian


def _square(hessian: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Rows and columns ``at`` of a matrix in Fortran's order; whole columns first, which is quicker
    than np.ix_.
    """
    return hessian[:, kept][kept]


def _best_on_arc(
    hessian: np.ndarray,
    slope: np.ndarray,
    place: np.ndarray,
    direction: np.ndarray,
    sign: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(step, change of the model's slope) of the best of some points along ``direction``, weights
    stopped at zero.

    Where stopping them helps nowhere, as far as the first weight that reaches zero: until there the
    model falls.
    """
    best = (0.0, np.zeros_like(direction), np.zeros_like(direction))
    t = 1.0
    while t > 1e-3:
        target = place + t * direction
        crossed = target[:-1] * sign < 0
        target[:-1][crossed] = 0.0
        step = target - place
        change = dsymv(1.0, hessian, step, lower=1)
        value = slope @ step + 0.5 * step @ change
        if value >= best[0] and best[0] < 0:
            break
        if value < best[0]:
            best = (value, step, change)
        if not crossed.any():
            break
        t *= 0.5
    if best[0] == 0.0:
        crossing = np.flatnonzero((place[:-1] + direction[:-1]) * sign < 0)
        if len(crossing):
            times = -place[crossing] / direction[crossing]
            step = times.min() * direction
            first = crossing[times == times.min()]
            step[first] = -place[first]
            return step, dsymv(1.0, hessian, step, lower=1)
    return best[1], best[2]


def _solve_positive(hessian: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Solve a positive semi-definite system (its lower triangle, which is written over), scaled to
    unit diagonal, with the smallest ridge that lets it factor.
    """
    scale = np.sqrt(np.maximum(np.diagonal(hessian), 1e-12))
    hessian /= scale[:, None]
    hessian /= scale[None, :]
    diagonal = np.arange(len(hessian))
    plain, ridge = hessian[diagonal, diagonal], 1e-13
    while ridge < 1:
        hessian[diagonal, diagonal] = plain + ridge
        factor, failed = dpotrf(hessian, lower=1)
        if not failed:
            return dpotrs(factor, slope / scale, lower=1)[0] / scale
        ridge *= 100
    return slope / scale**2  # not positive even so: each weight by itself


def _line_search(problem: _Problem, point: _Point, step: _Step) -> tuple[_Point, float] | None:
    """Backtrack along the step, projected on its orthant: (the new point, how much F fell), or None
    when nothing decreases F.

    Every nonzero weight is among the step's active ones.
    """
    penalty = np.abs(point.w).sum()
    start = point.loss + penalty
    old = point.w[step.active]
    sign = step.signs[step.active]
    t = 1.0
    for _ in range(40):
        trial = old + t * step.weights
        trial[trial * sign < 0] = (
            0.0  # a weight that would change sign stops at zero, and leaves the active set
        )
        z_trial = point.z + step.columns @ (trial - old) + t * step.intercept
        loss_trial = problem.loss(z_trial)
        penalty_trial = penalty + np.abs(trial).sum() - np.abs(old).sum()
        decrease = start - (loss_trial + penalty_trial)
        # Near the optimum a full step improves the gradient by more than F can resolve: let it
        # through once or twice (the caller keeps the best point seen and counts such steps).
        if np.isfinite(decrease) and (decrease > 0 or (t == 1.0 and decrease >= -1e-13 * start)):
            w = point.w.copy()
            w[step.active] = trial
            b = point.b + t * step.intercept
            return _Point(w, b, step.columns @ trial + b, loss_trial), decrease
        t *= 0.5
    return None


def _coordinate_pass(problem: _Problem, point: _Point) -> tuple[_Point, bool]:
    """One pass of coordinate-wise Newton steps, and whether it moved: slow, but it moves where the
    projected Newton step cannot.
    """
    X, signed, C = problem.X, problem.signed, problem.C
    w, b, z = point.w.copy(), point.b, point.z.copy()
    start = point.loss + np.abs(w).sum()
    for j in range(X.shape[1]):
        x = X[:, j]
        p = expit(z)
        g = C * (x @ (signed * expit(signed * z)))
        h = C * (x * x @ (p * (1 - p))) + 1e-12
        if w[j] == 0 and abs(g) <= 1:
            continue
        target = w[j] - g / h
        target = np.sign(target) * max(abs(target) - 1 / h, 0.0)
        delta = target - w[j]
        before = C * np.logaddexp(0.0, signed * z).sum() + abs(w[j])
        for _ in range(30):
            z_trial = z + delta * x
            if C * np.logaddexp(0.0, signed * z_trial).sum() + abs(w[j] + delta) < before:
                w[j] += delta
                z = z_trial
                break
            delta *= 0.5
    loss = C * np.logaddexp(0.0, signed * z).sum()
    moved = start - (loss + np.abs(w).sum()) > 0
    return _Point(w, b, X @ w + b, loss), bool(moved)
