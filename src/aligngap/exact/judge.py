"""The judge that the online arm hears: Bradley-Terry with a score that is linear in the features it sees.

A judge sees the first few features of a response, or (`TABLE`) knows each response by name only, as a tabular policy
does. It is fitted by logistic regression: on drawn labels by gradient descent from zero, stopped where the loss on the
held-out labels is least; on the whole distribution (`labels=None`) by Newton's method to its optimum.
"""

from __future__ import annotations

import numpy as np

from aligngap.exact.worlds import Floats, Labels, World, ends_of_pairs, sigmoid
from aligngap.types import RunFailed

#: what a judge that knows responses by name only is said to see
TABLE = 0

#: steps of gradient descent at most; the least held-out loss is looked for among them
STEPS = 2000


def seen(world: World, sees: int) -> Floats:
    """What a judge looks at, [P, K, D]: the first `sees` features, or for `TABLE` one indicator for each response."""
    if sees == TABLE:
        p, k, _ = world.features.shape
        return np.eye(p * k).reshape(p, k, p * k)
    return world.features[..., :sees]


def fit_judge(world: World, labels: Labels | None, sees: int) -> Floats:
    """The fitted judge's scores [P, K]; it prefers by Bradley-Terry's rule (`worlds.preference`)."""
    x = seen(world, sees)
    first, second = ends_of_pairs(x.shape[1])
    difference = (x[:, first] - x[:, second]).reshape(-1, x.shape[-1])
    if labels is None:
        weights = _newton(difference, world.data_weights.ravel(), (world.data_weights * world.truth).ravel())
    else:
        kept, kept_wins = labels.held_out.ravel(), labels.held_out_wins.ravel()
        counts, wins = labels.counts.ravel() - kept, labels.wins.ravel() - kept_wins
        weights = _stopped(difference, counts, wins, kept, kept_wins)
    return np.asarray(x @ weights, dtype=np.float64)


def _loss(logit: Floats, counts: Floats, wins: Floats) -> float:
    """Mean of -log p(label): log(1 + e^z) counts - z wins, over all counts."""
    return float((counts * np.logaddexp(0.0, logit) - wins * logit).sum() / max(1.0, counts.sum()))


def _stopped(x: Floats, counts: Floats, wins: Floats, kept: Floats, kept_wins: Floats) -> Floats:
    some = counts > 0
    near, n = x[some], counts[some]
    total = n.sum()
    weights, best = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    least = _loss(x @ weights, kept, kept_wins)
    curvature = float(np.linalg.eigvalsh((near * (n / total)[:, None]).T @ near / 4.0)[-1]) if len(near) else 1.0
    for _ in range(STEPS):
        weights = weights + near.T @ (wins[some] - n * sigmoid(near @ weights)) / (total * curvature)
        loss = _loss(x @ weights, kept, kept_wins)
        if loss < least:
            least, best = loss, weights
    return best


def _newton(x: Floats, n: Floats, wins: Floats) -> Floats:
    weights = np.zeros(x.shape[1])
    for _ in range(100):
        p = sigmoid(x @ weights)
        gradient = x.T @ (wins - n * p)
        if float(np.abs(gradient).max()) < 1e-12:
            return weights
        weights = weights + np.linalg.lstsq((x * (n * p * (1 - p))[:, None]).T @ x, gradient, rcond=1e-12)[0]
    raise RunFailed("the judge's fit to the whole distribution did not converge in 100 steps of Newton's method")
