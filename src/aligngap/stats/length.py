"""Length-controlled win rate: what a policy would win if its responses were as long as the opponent's.

As AlpacaEval-LC (Dubois et al. 2024, arXiv 2404.04475, section 3): a logistic regression of the win on the difference
in length, as tanh(difference / its standard deviation), with the length term set to zero: sigmoid of the intercept.
Their term for the difficulty of a prompt is left out (it takes many models to fit; here every checkpoint stands alone).
A tie is half a win, so this is a fractional logit (Papke & Wooldridge 1996, J. Appl. Econometrics 11: 619-632), and its
errors are the robust ones.

What is returned is one pseudo-value a prompt, the estimate plus the prompt's influence on it (infinitesimal jackknife:
Jaeckel 1972; Efron 1982, chapter 6): their mean is the estimate, their standard error the delta method's, and a
bootstrap of their mean is the linearised bootstrap of the regression. So frontiers, cross-fitting and comparisons at
equal KL run on them as they run on wins, pairing included.

A length bias that acts on something else than the difference, or a policy whose better responses are longer for good
reasons, is not told apart: the control removes both.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from aligngap.stats.clouds import Cloud, Clouds, Matrix, keep, mean_of
from aligngap.stats.estimate import NAN, FloatArray

#: a weak Gaussian prior on the length coefficient (standard deviation 10 logits at one standard deviation of length):
#: it matters only where wins are perfectly separated by length, and keeps the estimate finite there
PRIOR_SD = 10.0
#: at least this many prompts must have responses no longer, and this many no shorter, than the opponent's
SUPPORT = 5
ITERATIONS = 30


def pseudo_values(win: npt.ArrayLike, gap: npt.ArrayLike) -> FloatArray:
    """Pseudo-values [C, P] of the length-controlled win rate from wins and length differences [C, P]; nan undefined.

    Entries that are nan in either are left out of the fit. A checkpoint is undefined where an equal length is not among
    those seen (fewer than SUPPORT prompts on either side), since it would be extrapolated. Equal lengths throughout, or
    nothing but wins or losses, need no regression: the plain win rate stands.
    """
    y, d = np.asarray(win, dtype=np.float64), np.asarray(gap, dtype=np.float64)
    ok = np.isfinite(y) & np.isfinite(d)
    n = np.maximum(ok.sum(axis=1), 1)
    y, d = np.where(ok, y, 0.0), np.where(ok, d, 0.0)
    centre = d.sum(axis=1) / n
    sd = np.sqrt(((d - centre[:, None]) ** 2 * ok).sum(axis=1) / n)
    z = np.tanh(d / np.where(sd > 0, sd, 1.0)[:, None]) * ok
    plain = y.sum(axis=1) / n
    out = np.where(ok, y, NAN)
    supported = ((d <= 0) & ok).sum(axis=1) >= SUPPORT
    supported &= ((d >= 0) & ok).sum(axis=1) >= SUPPORT
    out[~supported] = NAN
    fitted = supported & (np.abs(z).max(axis=1, initial=0.0) > 0) & (plain > 0) & (plain < 1)
    if fitted.any():
        out[fitted] = np.where(ok[fitted], fit(y[fitted], z[fitted], ok[fitted]), NAN)
    return out


def fit(y: FloatArray, z: FloatArray, ok: np.ndarray) -> FloatArray:
    """Pseudo-values [C, P] of sigmoid(a) in logit P(win) = a + b z, by damped Newton for all rows at once."""
    n = ok.sum(axis=1)
    mean = np.clip(y.sum(axis=1) / n, 0.5 / n, 1 - 0.5 / n)
    a, b = np.log(mean / (1 - mean)), np.zeros(len(y))
    ridge = 1.0 / PRIOR_SD**2
    for _ in range(ITERATIONS):
        p = expit(a[:, None] + b[:, None] * z)
        w = p * (1 - p) * ok
        r = (y - p) * ok
        haa, hab, hbb = w.sum(1) + 1e-9, (w * z).sum(1), (w * z * z).sum(1) + ridge
        ga, gb = r.sum(1), (r * z).sum(1) - ridge * b
        det = haa * hbb - hab**2
        step_a, step_b = (hbb * ga - hab * gb) / det, (haa * gb - hab * ga) / det
        damp = np.minimum(1.0, 2.0 / np.maximum(np.maximum(np.abs(step_a), np.abs(step_b)), 1e-12))
        a, b = a + damp * step_a, b + damp * step_b
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < 1e-8:
            break
    p = expit(a[:, None] + b[:, None] * z)
    w, r = p * (1 - p) * ok, (y - p) * ok
    haa, hab, hbb = w.sum(1) + 1e-9, (w * z).sum(1), (w * z * z).sum(1) + ridge
    det = haa * hbb - hab**2
    level = expit(a)
    slope = n * level * (1 - level) / det
    influence = slope[:, None] * (hbb[:, None] - hab[:, None] * z) * r
    centred = influence - (influence * ok).sum(1, keepdims=True) / n[:, None]  # the prior moves the mean by about 1/n
    return np.asarray(level[:, None] + centred)


def expit(x: FloatArray) -> FloatArray:
    """1 / (1 + exp(-x)), elementwise, without overflow."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -40, 40))))


def control_length(clouds: Clouds) -> Clouds:
    """The same checkpoints by length-controlled win rate; those where it is undefined are dropped, and counted."""
    items: list[Cloud] = []
    lost = total = 0
    for cloud in clouds.items:
        ours, theirs = cloud.by_prompt.get("length_tokens"), cloud.by_prompt.get("opponent_length_tokens")
        total += len(cloud.x)
        if cloud.win_by_prompt is None or ours is None or theirs is None:
            lost += len(cloud.x)
            continue
        values: Matrix = pseudo_values(cloud.win_by_prompt, ours - theirs).astype(np.float32)
        defined = np.asarray(np.isfinite(values).any(axis=1))
        lost += int((~defined).sum())
        if not defined.any():
            continue
        mine = values[defined]
        se: FloatArray = np.nanstd(mine, axis=1, ddof=1, dtype=np.float64) / np.sqrt(np.isfinite(mine).sum(axis=1))
        kept = keep(replace(cloud, win_by_prompt=values), defined)
        items.append(replace(kept, win=mean_of(mine), win_se=se))
    why = "too few responses on one side of equal length, or lengths not recorded"
    said = f"{lost} of {total} checkpoints have no length-controlled win rate: {why}."
    return Clouds(tuple(items), (said,) if lost and items else ())
