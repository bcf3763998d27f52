"""The compiled part of the probes: the L1 solver's Newton steps, and the AUC of its fits.

Compiled by numba at first use and kept on disk, so that only the first run of a machine waits for
it. All compiled functions stand in this file, because numba looks for changes in the file of a
function alone, and not in the files of what it calls. ``l1_path`` says what is solved.

Products and factorisations are scipy's own BLAS and LAPACK, called by their addresses: numba's
products are general ones, a symmetric one is half the work. Addresses are arguments and not
constants, because compiled functions with constant addresses cannot be kept.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import get_cython_function_address, intrinsic

NEGLIGIBLE = 1e-10  # second derivatives this much smaller than the largest are left out
MAX_STEPS = 500  # Newton steps per C
MAX_INNER = 12  # steps on one quadratic model
MAX_STALLED = 5  # steps in a row without a measurable decrease
MAX_NEW_PER_STEP = 64  # zero weights that may join the active set in one step
LONGEST = 8.0  # times a Newton step that a line search may go

ROUTINES = (("blas", "dsyrk"), ("blas", "dgemv"), ("blas", "dsymv"),
            ("lapack", "dpotrf"), ("lapack", "dpotrs"))  # fmt: skip
SYRK, GEMV, SYMV, POTRF, POTRS = range(len(ROUTINES))
LOWER, TRANSPOSED, PLAIN = range(3)  # places in LETTERS
LETTERS = np.array([ord(letter) for letter in "LTN"], dtype=np.int64)


def routines() -> np.ndarray:
    """int64 [n_routines + 3]: where each of ROUTINES is in this process, then LETTERS."""
    found = [
        get_cython_function_address(f"scipy.linalg.cython_{part}", name) for part, name in ROUTINES
    ]
    return np.array([*found, *LETTERS], dtype=np.int64)


def plain(array: np.ndarray, dtype: type) -> np.ndarray:
    """The array as compiled functions take it: of this type, in C's order, writable. Of every other
    kind numba would compile a version of its own.
    """
    return np.require(array, dtype, ["C", "W"])


def _fortran_call(typingctx: Any, address: Any, pointers: Any) -> Any:
    """Call the routine at ``address`` with ``pointers``, a tuple of int64, as Fortran passes
    arguments.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        n = len(signature.args[1])
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * n)
        function = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(function, [builder.extract_value(args[1], i) for i in range(n)])
        return context.get_dummy_value()

    return types.void(address, pointers), codegen


_call: Any = intrinsic(_fortran_call)


# Sizes and letters are 64 bits long: routines that take fewer read the lower ones, which come
# first. What is returned keeps the arrays alive during the call.


@njit(cache=True)
def gram(lapack: np.ndarray, A: np.ndarray, out: np.ndarray) -> float:
    """A^T A of A [n_rows, n] into the lower triangle of out [n, n], both in Fortran's order."""
    letters = lapack[len(ROUTINES) :]
    sizes = np.array([A.shape[1], A.shape[0], max(A.shape[0], 1), out.shape[0]])
    factors = np.array([1.0, 0.0])
    c, s, f = letters.ctypes.data, sizes.ctypes.data, factors.ctypes.data
    _call(
        lapack[SYRK],
        (c + 8 * LOWER, c + 8 * TRANSPOSED, s, s + 8, f, A.ctypes.data, s + 16, f + 8,
         out.ctypes.data, s + 24),
    )  # fmt: skip
    return letters[0] + sizes[0] + factors[0]


@njit(cache=True)
def times_transposed(lapack: np.ndarray, A: np.ndarray, x: np.ndarray, out: np.ndarray) -> float:
    """A^T x of A [n_rows, n] in Fortran's order into out [n]."""
    letters = lapack[len(ROUTINES) :]
    sizes = np.array([A.shape[0], A.shape[1], max(A.shape[0], 1), 1])
    factors = np.array([1.0, 0.0])
    c, s, f = letters.ctypes.data, sizes.ctypes.data, factors.ctypes.data
    _call(
        lapack[GEMV],
        (c + 8 * TRANSPOSED, s, s + 8, f, A.ctypes.data, s + 16, x.ctypes.data, s + 24, f + 8,
         out.ctypes.data, s + 24),
    )  # fmt: skip
    return letters[0] + sizes[0] + factors[0]


@njit(cache=True)
def symmetric_times(lapack: np.ndarray, A: np.ndarray, x: np.ndarray, out: np.ndarray) -> float:
    """A x into out of a symmetric A [n, n] in Fortran's order, its lower triangle given."""
    letters = lapack[len(ROUTINES) :]
    sizes = np.array([A.shape[0], A.shape[0], 1])
    factors = np.array([1.0, 0.0])
    c, s, f = letters.ctypes.data, sizes.ctypes.data, factors.ctypes.data
    _call(
        lapack[SYMV],
        (c + 8 * LOWER, s, f, A.ctypes.data, s + 8, x.ctypes.data, s + 16, f + 8, out.ctypes.data,
         s + 16),
    )  # fmt: skip
    return letters[0] + sizes[0] + factors[0]


@njit(cache=True)
def solve_positive(lapack: np.ndarray, A: np.ndarray, b: np.ndarray) -> bool:
    """Solve A x = b in place of b [n]; A [n, n] in Fortran's order, its lower triangle given, is
    written over. False where A is not positive definite; b is then as it was.
    """
    letters = lapack[len(ROUTINES) :]
    sizes = np.array([A.shape[0], A.shape[0], 1, 0])
    c, s = letters.ctypes.data, sizes.ctypes.data
    _call(lapack[POTRF], (c + 8 * LOWER, s, A.ctypes.data, s + 8, s + 24))
    if sizes[3] == 0:
        _call(
            lapack[POTRS],
            (c + 8 * LOWER, s, s + 16, A.ctypes.data, s + 8, b.ctypes.data, s + 8, s + 24),
        )
    return sizes[3] == 0 and letters[0] > 0


@njit(cache=True)
def _loss(z: np.ndarray, signed: np.ndarray) -> float:
    """The sum of log(1 + exp(signed z)) over rows [n_rows]."""
    total = 0.0
    for i in range(len(z)):
        t = signed[i] * z[i]
        total += max(t, 0.0) + math.log1p(math.exp(-abs(t)))
    return total


@njit(cache=True)
def _derivatives(
    z: np.ndarray, signed: np.ndarray, C: float, residual: np.ndarray, bend: np.ndarray
) -> None:
    """First and second derivatives of C times the loss by z, into residual and bend [n_rows]."""
    for i in range(len(z)):
        t = signed[i] * z[i]
        e = math.exp(-abs(t))
        share = 1.0 / (1.0 + e)
        # p - y without cancellation where p is near y
        residual[i] = C * signed[i] * (share if t > 0 else e * share)
        bend[i] = C * e * share * share


@njit(cache=True)
def _curvature(
    lapack: np.ndarray, X: np.ndarray, active: np.ndarray, bend: np.ndarray
) -> np.ndarray:
    """[m + 1, m + 1] in Fortran's order, its lower triangle: second derivatives for the active
    columns of X [n_rows, n] and, last, the intercept.
    """
    # rows that are fitted to the last digits bend nothing: at weak penalties these are half of them
    bent = np.flatnonzero(bend > NEGLIGIBLE * bend.max())
    m = len(active)
    scaled = np.empty((m + 1, len(bent))).T
    root = np.sqrt(bend[bent])
    for j in range(m):
        column, target = X[:, active[j]], scaled[:, j]
        for i in range(len(bent)):
            target[i] = root[i] * column[bent[i]]
    scaled[:, m] = root
    hessian = np.zeros((m + 1, m + 1)).T
    gram(lapack, scaled, hessian)
    return hessian


@njit(cache=True)
def _downhill(
    lapack: np.ndarray, hessian: np.ndarray, slope: np.ndarray, moving: np.ndarray
) -> np.ndarray:
    """-hessian^-1 slope for the weights ``moving``, 0 for the others: scaled to unit diagonal, with
    the smallest ridge that lets it factor.
    """
    n = len(moving)
    scale = np.empty(n)
    for j in range(n):
        scale[j] = math.sqrt(max(hessian[moving[j], moving[j]], 1e-12))
    direction = np.zeros(len(slope))
    ridge = 1e-13
    while ridge < 1:
        part = np.empty((n, n)).T
        for j in range(n):
            column, target = hessian[:, moving[j]], part[:, j]
            for i in range(j, n):
                target[i] = column[moving[i]] / scale[i] / scale[j]
            target[j] += ridge
        right = slope[moving] / scale
        if solve_positive(lapack, part, right):
            direction[moving] = -right / scale
            return direction
        ridge *= 100
    # not positive even so: each weight by itself
    direction[moving] = -slope[moving] / scale**2
    return direction


@njit(cache=True)
def _best_on_arc(
    lapack: np.ndarray,
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
    m = len(sign)
    best = 0.0
    best_step, best_change = np.zeros(m + 1), np.zeros(m + 1)
    t = 1.0
    while t > 1e-3:
        step = t * direction
        crossed = False
        for j in range(m):
            if (place[j] + step[j]) * sign[j] < 0:
                step[j] = -place[j]
                crossed = True
        change = np.empty(m + 1)
        symmetric_times(lapack, hessian, step, change)
        value = 0.0
        for j in range(m + 1):
            value += (slope[j] + 0.5 * change[j]) * step[j]
        if value >= best and best < 0:
            break
        if value < best:
            best, best_step, best_change = value, step, change
        if not crossed:
            break
        t *= 0.5
    if best == 0.0:
        first = np.inf
        for j in range(m):
            if (place[j] + direction[j]) * sign[j] < 0:
                first = min(first, -place[j] / direction[j])
        if first < np.inf:
            best_step = first * direction
            for j in range(m):
                if (place[j] + direction[j]) * sign[j] < 0 and -place[j] / direction[j] == first:
                    best_step[j] = -place[j]
            symmetric_times(lapack, hessian, best_step, best_change)
    return best_step, best_change


@njit(cache=True)
def _newton_step(
    lapack: np.ndarray, hessian: np.ndarray, slope: np.ndarray, old: np.ndarray, sign: np.ndarray
) -> np.ndarray:
    """The step [m + 1] towards the minimum of the quadratic model inside the orthant of ``sign``
    [m]; ``old``: the weights [m]; ``slope`` [m + 1].

    A weight that a step would carry past zero stops there and is left out of the next, which the
    same second derivatives give: finding steps is cheap beside making those.
    """
    m = len(old)
    place, step = np.append(old, 0.0), np.zeros(m + 1)
    free = np.ones(m + 1, dtype=np.bool_)
    for _ in range(MAX_INNER):
        direction = _downhill(lapack, hessian, slope, np.flatnonzero(free))
        backwards = False
        for j in range(m):
            if free[j] and place[j] == 0 and direction[j] * sign[j] <= 0:
                free[j] = False
                backwards = True
        if backwards:
            continue
        moved, change = _best_on_arc(lapack, hessian, slope, place, direction, sign)
        place, step, slope = place + moved, step + moved, slope + change
        held = False
        for j in range(m):
            if free[j] and place[j] == 0:
                free[j] = False
                held = True
        if not held:
            break
    return step


@njit(cache=True)
def _moved(
    X: np.ndarray, z: np.ndarray, active: np.ndarray, change: np.ndarray, shift: float
) -> np.ndarray:
    """z + X[:, active] change + shift, float64 [n_rows]."""
    moved = z + shift
    for j in range(len(active)):
        if change[j] != 0:
            column, by = X[:, active[j]], change[j]
            for i in range(len(moved)):
                moved[i] += by * column[i]
    return moved


@njit(cache=True)
def _line_search(
    X: np.ndarray, signed: np.ndarray, C: float, w: np.ndarray, z: np.ndarray,
    active: np.ndarray, sign: np.ndarray, step: np.ndarray,
) -> tuple[float, float, float]:  # fmt: skip
    """(the length taken, how much F fell, from what): along the step, projected on its orthant, w
    is moved in place; length 0 where nothing decreases F.

    Backwards where the step is too long, forwards where F falls further: after a change of C by a
    factor the tail of the loss asks for two or three times a Newton step.
    """
    m = len(active)
    old = w[active]
    start = C * _loss(z, signed) + np.abs(old).sum()
    best_t, best_fall = 0.0, 0.0
    best = old
    t = 1.0
    for _ in range(40):
        trial = old + t * step[:m]
        for j in range(m):
            # a weight that would change sign stops at zero, and leaves the active set
            if trial[j] * sign[j] < 0:
                trial[j] = 0.0
        moved = _moved(X, z, active, trial - old, t * step[m])
        fall = start - (C * _loss(moved, signed) + np.abs(trial).sum())
        if best_t > 0:  # going forwards
            if not fall > best_fall:
                break
            best_t, best_fall, best = t, fall, trial
            t *= 2
        # Near the optimum a full step improves the gradient by more than F can resolve: let it
        # through once or twice (the caller keeps the best point seen and counts such steps).
        elif math.isfinite(fall) and (fall > 0 or (t == 1.0 and fall >= -1e-13 * start)):
            best_t, best_fall, best = t, fall, trial
            if t < 1 or not fall > 1e-9 * start:
                break
            t = 2.0
        else:
            t *= 0.5
        if t > LONGEST:
            break
    for j in range(m):
        w[active[j]] = best[j]
    return best_t, best_fall, start


@njit(cache=True)
def _coordinate_pass(
    X: np.ndarray, signed: np.ndarray, C: float, w: np.ndarray, z: np.ndarray
) -> bool:
    """One pass of coordinate-wise Newton steps on w and z in place, and whether it moved: slow, but
    it moves where the projected Newton step cannot.
    """
    start = C * _loss(z, signed) + np.abs(w).sum()
    residual, bend = np.empty(len(z)), np.empty(len(z))
    for j in range(X.shape[1]):
        x = X[:, j]
        _derivatives(z, signed, C, residual, bend)
        g, h = 0.0, 1e-12
        for i in range(len(z)):
            g += x[i] * residual[i]
            h += x[i] * x[i] * bend[i]
        if w[j] == 0 and abs(g) <= 1:
            continue
        target = w[j] - g / h
        target = math.copysign(max(abs(target) - 1 / h, 0.0), target)
        delta = target - w[j]
        before = C * _loss(z, signed) + abs(w[j])
        for _ in range(30):
            trial = z + delta * x
            if C * _loss(trial, signed) + abs(w[j] + delta) < before:
                w[j] += delta
                z[:] = trial
                break
            delta *= 0.5
    return start - (C * _loss(z, signed) + np.abs(w).sum()) > 0


@njit(cache=True)
def _worst(w: np.ndarray, gradient: np.ndarray, residual_sum: float) -> float:
    """The largest violation of the optimality conditions, in units of the penalty."""
    worst = abs(residual_sum)
    for j in range(len(w)):
        if w[j] != 0:
            worst = max(worst, abs(gradient[j] + (1.0 if w[j] > 0 else -1.0)))
        else:
            worst = max(worst, abs(gradient[j]) - 1)
    return worst


@njit(cache=True)
def _solve(
    lapack: np.ndarray, X: np.ndarray, signed: np.ndarray, C: float, w: np.ndarray, b: float,
    target: float,
) -> tuple[float, float, float, int]:  # fmt: skip
    """(intercept, objective, violation, steps) of the fit at C from w [n] and b, w in place."""
    z = _moved(X, np.zeros(len(signed)), np.arange(len(w)), w, b)
    residual, bend, gradient = np.empty(len(z)), np.empty(len(z)), np.empty(len(w))
    n_steps = stalled = 0
    best_violation, best_w, best_b = np.inf, w.copy(), b
    while True:
        _derivatives(z, signed, C, residual, bend)
        times_transposed(lapack, X, residual, gradient)
        total = residual.sum()
        violation = _worst(w, gradient, total)
        if violation < best_violation:
            best_violation, best_b = violation, b
            best_w[:] = w
        if violation <= target or n_steps >= MAX_STEPS or stalled >= MAX_STALLED:
            break
        n_steps += 1

        signs = np.sign(w)
        excess = np.where(w == 0, np.abs(gradient), 0.0)
        entering = np.flatnonzero(excess > 1 + target / 2)
        if len(entering) > MAX_NEW_PER_STEP:
            order = np.argsort(-excess[entering], kind="mergesort")
            entering = entering[order[:MAX_NEW_PER_STEP]]
        for j in entering:
            signs[j] = -1.0 if gradient[j] > 0 else 1.0
        active = np.flatnonzero(signs)
        sign = signs[active]
        slope = np.append(gradient[active] + sign, total)
        hessian = _curvature(lapack, X, active, bend)
        step = _newton_step(lapack, hessian, slope, w[active], sign)
        t, fall, before = _line_search(X, signed, C, w, z, active, sign, step)
        if t > 0:
            b += t * step[-1]
            z = _moved(X, np.zeros(len(z)), active, w[active], b)
            stalled = stalled + 1 if fall <= 1e-13 * before else 0
        else:
            stalled += 1
            if not _coordinate_pass(X, signed, C, w, z):
                break
            z = _moved(X, np.zeros(len(z)), np.arange(len(w)), w, b)
    w[:] = best_w
    z = _moved(X, np.zeros(len(signed)), np.arange(len(w)), w, best_b)
    return best_b, C * _loss(z, signed) + np.abs(w).sum(), best_violation, n_steps


@njit(cache=True)
def ladder(
    lapack: np.ndarray, X: np.ndarray, y: np.ndarray, rising: np.ndarray, target: float
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Fits for each C of ``rising``, each from the one before.

    X: float64 [n_rows, n]; y: [n_rows] in {0, 1}. Returns weights and intercept [n_C, n + 1], and
    [n_C, 3]: objective, violation, steps.
    """
    n_rows, n = X.shape
    # Shifting a column changes only the (unpenalised) intercept, and a large mean hides what
    # varies: to the means' common zero. In Fortran's order, because columns are what is taken out.
    centred, mean = np.empty((n, n_rows)).T, np.zeros(n)
    for i in range(n_rows):
        for j in range(n):
            mean[j] += X[i, j]
    mean /= n_rows
    for i in range(n_rows):
        for j in range(n):
            centred[i, j] = X[i, j] - mean[j]
    signed = np.empty(n_rows)
    n_positive = 0
    for i in range(n_rows):
        signed[i] = -1.0 if y[i] == 1 else 1.0
        n_positive += y[i] == 1
    w, b = np.zeros(n), math.log(n_positive / (n_rows - n_positive))
    fits, told = np.empty((len(rising), n + 1)), np.empty((len(rising), 3))
    for i in range(len(rising)):
        b, objective, violation, n_steps = _solve(lapack, centred, signed, rising[i], w, b, target)
        fits[i, :n] = w
        fits[i, n] = b
        for j in range(n):
            fits[i, n] -= mean[j] * w[j]
        told[i, 0], told[i, 1], told[i, 2] = objective, violation, n_steps
    return fits, told


@njit(cache=True)
def _pairwise_sum(values: np.ndarray) -> float:
    """The sum as numpy takes it, to the last bit: of up to 128 values in eight strands."""
    n = len(values)
    if n < 8:
        total = 0.0
        for i in range(n):
            total += values[i]
        return total
    if n > 128:
        half = n // 2
        half -= half % 8
        return _pairwise_sum(values[:half]) + _pairwise_sum(values[half:])
    r = values[:8].copy()
    i = 8
    while i < n - n % 8:
        for j in range(8):
            r[j] += values[i + j]
        i += 8
    total = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]))
    while i < n:
        total += values[i]
        i += 1
    return total


@njit(cache=True)
def auc(y: np.ndarray, scores: np.ndarray) -> float:
    """See ``scores.roc_auc``; NaN for one class."""
    n = len(y)
    n_positive = 0
    for i in range(n):
        n_positive += y[i] == 1
    n_negative = n - n_positive
    if n_positive == 0 or n_negative == 0:
        return np.nan
    order = np.argsort(-scores, kind="mergesort")
    # the curve: hits and false alarms after the last row of each distinct score
    hits, alarms = np.empty(n), np.empty(n)
    n_points = n_hits = 0
    for i in range(n):
        n_hits += y[order[i]] == 1
        if i == n - 1 or scores[order[i]] != scores[order[i + 1]]:
            hits[n_points], alarms[n_points] = n_hits, i + 1 - n_hits
            n_points += 1
    # points on a straight line between their neighbours change the sum only by rounding
    areas = np.empty(n_points)
    last_hits = last_alarms = 0.0
    n_areas = 0
    for i in range(n_points):
        inside = 0 < i < n_points - 1
        if inside and (
            hits[i + 1] - hits[i] == hits[i] - hits[i - 1]
            and alarms[i + 1] - alarms[i] == alarms[i] - alarms[i - 1]
        ):
            continue
        width = alarms[i] / n_negative - last_alarms / n_negative
        areas[n_areas] = width * (hits[i] / n_positive + last_hits / n_positive) / 2.0
        n_areas += 1
        last_hits, last_alarms = hits[i], alarms[i]
    return _pairwise_sum(areas[:n_areas])


@njit(cache=True)
def fold_aucs(
    lapack: np.ndarray, X: np.ndarray, y: np.ndarray, train: np.ndarray, val: np.ndarray,
    rising: np.ndarray, target: float,
) -> np.ndarray:  # fmt: skip
    """Validation AUC of a fold's fits at each C of ``rising``.

    X: float64 [n_rows, n] in C's order; y: [n_rows] in {0, 1}; train, val: row indices.
    """
    fits, _ = ladder(lapack, X[train], y[train], rising, target)
    aucs, labels = np.empty(len(rising)), y[val]
    for i in range(len(rising)):
        aucs[i] = auc(labels, scores_of(X, val, fits[i]))
    return aucs


@njit(cache=True)
def scores_of(X: np.ndarray, rows: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Scores [n] of rows of X [n_rows, n_columns] by weights and intercept [n_columns + 1]; equal
    rows have equal scores.
    """
    scores = np.empty(len(rows))
    for i in range(len(rows)):
        row = X[rows[i]]
        total = 0.0
        for j in range(len(row)):
            total += row[j] * fit[j]
        scores[i] = total + fit[-1]
    return scores


@njit(cache=True)
def spread(
    starts: np.ndarray, columns: np.ndarray, values: np.ndarray, place: np.ndarray, out: np.ndarray
) -> None:
    """Values of sparse rows into the columns of ``out`` [n_rows, n_wanted]: of column c into
    ``place[c]``, nowhere where that is negative. The value that stands last counts.

    starts: int64 [n_rows + 1]; columns: int32 [n_values]; values: float32 or float64 [n_values].
    """
    for row in range(len(starts) - 1):
        for i in range(starts[row], starts[row + 1]):
            to = place[columns[i]]
            if to >= 0:
                out[row, to] = values[i]
