"""R²M and task arithmetic written straight from the paper's equations, in NumPy and float64.

Nothing here shares code or algebra with the package: the whole task matrix is factorised, residuals are truncated
one matrix at a time, and the kept parts (not the discarded tails) are averaged.
"""

import numpy as np


def leaves(tree, prefix=""):
    for key in sorted(tree):
        path = f"{prefix}{key}"
        if isinstance(tree[key], dict):
            yield from leaves(tree[key], path + "/")
        else:
            yield path, np.asarray(tree[key], np.float64)


def vector(tree):
    return np.concatenate([leaf.ravel() for _, leaf in leaves(tree)])


def truncated(path, leaf, ratio):
    if not any(part in ("attn", "mlp") for part in path.split("/")) or not path.endswith("kernel"):
        return leaf
    out = np.empty_like(leaf)
    for index in np.ndindex(*leaf.shape[:-2]):
        u, s, vt = np.linalg.svd(leaf[index], full_matrices=False)
        rank = 0 if ratio == 0 else max(1, int(ratio * len(s)))
        out[index] = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return out


def layers(tree):
    """Where every layer of every leaf lies in :func:`vector`."""
    position = 0
    for path, leaf in leaves(tree):
        for size in [leaf[0].size] * len(leaf) if path.startswith("layers/") else [leaf.size]:
            yield slice(position, position + size)
            position += size


def r2m(theta0, thetas, *, rank, alpha, k=1, centering="centered", origin="theta0", eta="eff", per_leaf=False):
    start = vector(theta0)
    tau = np.stack([vector(theta) for theta in thetas]) - start
    mean = tau.mean(axis=0)
    matrix = tau - mean if centering == "centered" else tau
    _, _, vt = np.linalg.svd(matrix, full_matrices=False)
    core = vt[:k].T @ (vt[:k] @ mean)

    kept = []
    for row in tau - mean:
        pieces, position = [], 0
        for path, leaf in leaves(theta0):
            piece = row[position : position + leaf.size].reshape(leaf.shape)
            pieces.append(truncated(path, piece, rank).ravel())
            position += leaf.size
        kept.append(np.concatenate(pieces))
    residual = np.empty_like(mean)
    for place in list(layers(theta0)) if per_leaf else [slice(None)]:
        parts = [row[place] for row in kept]
        norms = np.linalg.norm(parts, axis=1)
        residual[place] = np.mean([norms.mean() * x / norm for x, norm in zip(parts, norms, strict=True)], axis=0)
    scale = alpha * np.linalg.norm(core)
    if eta == "eff":
        scale /= np.linalg.norm(residual)
    return start + (core if origin == "theta0" else mean) + scale * residual


def ties(theta0, thetas, *, density, scale, variant):
    """As the authors' code goes: sort, threshold, elect, disjoint mean."""
    start = vector(theta0)
    tau = np.stack([vector(theta) for theta in thetas]) - start
    kept = max(1, int(tau.shape[1] * density))
    least = np.sort(np.abs(tau), axis=1)[:, -kept][:, None]
    trimmed = np.where(np.abs(tau) >= least, tau, 0)
    sign = np.sign(trimmed.sum(axis=0))
    sign[sign == 0] = np.sign(sign.sum())
    agree = np.where(sign > 0, trimmed * (trimmed > 0), trimmed * (trimmed < 0))
    if variant == "paper":
        return start + tau.mean(axis=0) + scale * agree.sum(axis=0)
    return start + scale * agree.sum(axis=0) / np.maximum((agree != 0).sum(axis=0), 1)


def cart(theta0, thetas, *, rank, scale, reduce):
    mean = np.mean([vector(theta) for theta in thetas], axis=0)
    total = np.zeros_like(mean)
    for theta in thetas:
        pieces, position = [], 0
        for path, leaf in leaves(theta0):
            piece = (vector(theta) - mean)[position : position + leaf.size].reshape(leaf.shape)
            pieces.append(truncated(path, piece, rank).ravel())
            position += leaf.size
        total += np.concatenate(pieces)
    return mean + scale * total / (len(thetas) if reduce == "mean" else 1)
