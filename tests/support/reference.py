"""RMSProp's equations in NumPy float64: an oracle that shares no code or algorithm with ours."""

import numpy as np


def rmsprop(
    grads,
    learning_rate=1e-3,
    decay=0.9,
    eps=1e-8,
    initial_scale=0.0,
    eps_in_sqrt=False,
    centered=False,
    momentum=None,
    nesterov=False,
    bias_correction=False,
    lr_in_momentum=True,
    weight_decay=None,
    decoupled_weight_decay=False,
    params=0.0,
):
    """The updates for the stream `grads` (one a step, along axis 0), in float64 or complex128."""
    grads = np.asarray(grads)  # astype copies: coupled decay is added in place
    grads = grads.astype(np.complex128 if np.iscomplexobj(grads) else np.float64)
    params = params + np.zeros_like(grads[0])
    buffer = np.zeros_like(grads[0])
    updates = np.zeros_like(grads)
    for t in range(1, len(grads) + 1):
        if weight_decay is not None and not decoupled_weight_decay:
            grads[t - 1] = grads[t - 1] + weight_decay * params
        g = grads[t - 1]
        so_far = decay if np.ndim(decay) == 0 else decay[:t]
        s = second_moment(grads[:t], so_far, initial_scale, centered, bias_correction)
        d = np.sqrt(s + eps) if eps_in_sqrt else np.sqrt(s) + eps
        eta = learning_rate(t - 1) if callable(learning_rate) else learning_rate
        u = np.divide(g, d, out=np.zeros_like(g), where=d > 0)  # 0/0 is 0
        if momentum is not None:
            u = eta * u if lr_in_momentum else u
            buffer = momentum * buffer + u
            u = momentum * buffer + u if nesterov else buffer
        if momentum is None or not lr_in_momentum:
            u = eta * u
        if weight_decay is not None and decoupled_weight_decay:
            u = u + eta * weight_decay * params
        updates[t - 1] = -u
        params = params - u
    return updates


def second_moment(seen, decay, initial_scale=0.0, centered=False, bias_correction=False):
    """The average of |g|² over the gradients so far, or their variance, as explicit sums.

    `decay` is a number, or one number per gradient. `first` is the weight of the start (s₀, and a
    mean of 0). EMA(g²) − |EMA(g)|² is written as a sum of squares, its equal: as a difference it
    would lose all of float64's digits where the variance is nearly 0. The variance of a single
    gradient is 0; there the corrected average is |g|², uncentered.
    """
    decays = np.broadcast_to(np.asarray(decay, float), len(seen))
    kept = np.append(np.cumprod(decays[:0:-1])[::-1], 1.0)  # of each gradient, at the end
    weights, first = (1 - decays) * kept, decays[0] * kept[0]
    if bias_correction:
        weights, first = weights / weights.sum(), first / weights.sum()
        centered = centered and len(seen) > 1
    average = lambda x: np.tensordot(weights, x, axes=1)
    if not centered:
        return average(abs(seen) ** 2) + first * initial_scale
    mean = average(seen)
    start = 0.0 if bias_correction else first * abs(mean) ** 2
    return average(abs(seen - mean) ** 2) + start + first * initial_scale
