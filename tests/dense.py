"""The contrastive losses with the whole matrix of logits, in numpy and f64, written from their formulas."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


class Dense(NamedTuple):
    """A loss and its gradients."""

    loss: float
    za: Matrix
    zb: Matrix
    scale: float
    bias: float


def dense(
    za: NDArray[np.floating],
    zb: NDArray[np.floating],
    scale: float,
    bias: float = 0.0,
    *,
    kind: str = "softmax",
    label_smoothing: float = 0.0,
    decoupled: bool = False,
    ids: NDArray[np.integer] | None = None,
    ids_b: NDArray[np.integer] | None = None,
    equal: str = "ignore",
    valid: NDArray[np.floating] | None = None,
    direction: str = "both",
) -> Dense:
    """See jclip.losses.contrastive."""
    batch = len(za)
    za, zb = za.astype(np.float64), zb.astype(np.float64)
    weight = np.ones(batch) if valid is None else valid.astype(np.float64)
    za, zb = (np.where(weight[:, None] > 0, z, 0) for z in (za, zb))
    ids = np.arange(batch) if ids is None else ids
    cosines = za @ zb.T
    same, diagonal = ids[:, None] == (ids if ids_b is None else ids_b)[None], np.eye(batch, dtype=bool)
    both = (weight > 0)[:, None] & (weight > 0)[None]
    positive = both & (same if equal == "positive" else diagonal)
    candidate = both & (np.ones_like(same) if equal == "positive" else diagonal | ~same)
    total = weight.sum()
    if total == 0:
        return Dense(0.0, 0 * za, 0 * zb, 0.0, 0.0)
    what = (positive, candidate, weight, label_smoothing)
    if kind == "softmax":
        loss, slope = softmax(scale * (cosines - 1), *what, decoupled, direction)
        cosines = cosines - 1 if decoupled else cosines
    else:
        loss, slope = sigmoid(scale * cosines + bias, *what)
    loss, slope = loss / total, slope / total
    return Dense(loss, scale * slope @ zb, scale * slope.T @ za, float((slope * cosines).sum()), float(slope.sum()))


def softmax(
    logits: Matrix, positive: Matrix, candidate: Matrix, weight: Matrix, smoothing: float, decoupled: bool, direction: str
) -> tuple[float, Matrix]:
    """Half the weighted cross-entropy of every row and of every column, or all of that of every row, and its gradient."""
    loss, slope = 0.0, np.zeros_like(logits)
    directions, half = ((False, True), 0.5) if direction == "both" else ((False,), 1.0)
    for transpose in directions:
        x, p, c = (m.T if transpose else m for m in (logits, positive, candidate))
        for i in np.flatnonzero(weight):
            among = np.flatnonzero(c[i])
            positives = p[i].sum()
            target = (1 - smoothing) * p[i, among] / positives if positives else np.zeros(len(among))
            target = target + smoothing / len(among)
            counted = ~p[i, among] if decoupled else np.ones(len(among), bool)
            share, total = np.zeros(len(among)), 0.0
            if counted.any():
                top = x[i, among][counted].max()
                total = top + np.log(np.exp(x[i, among][counted] - top).sum())
                share[counted] = np.exp(x[i, among][counted] - total)
            loss += half * weight[i] * (total - (target * x[i, among]).sum())
            (slope.T if transpose else slope)[i, among] += half * weight[i] * (share - target)
    return loss, slope


def sigmoid(logits: Matrix, positive: Matrix, candidate: Matrix, weight: Matrix, smoothing: float) -> tuple[float, Matrix]:
    """The weighted binary cross-entropy of all pairs, and its gradient in the logits."""
    share = np.where(candidate, (weight[:, None] + weight[None]) / 2, 0)
    target = (1 - smoothing) * positive + smoothing / 2
    losses = (1 - target) * np.logaddexp(0, logits) + target * np.logaddexp(0, -logits)
    slope = (1 - target) * np.exp(-np.logaddexp(0, -logits)) - target * np.exp(-np.logaddexp(0, logits))
    return float((share * losses).sum()), share * slope
