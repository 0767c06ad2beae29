"""The training of the LSTM by RMSProp, in steps, that the tuning examples share."""

from _characters import evaluate, first, step

import rmsprop_jax as rj

# With `centered`, the divisor is √variance + ε. The variance of a nearly constant gradient goes to
# 0, and the step to η g/ε, which is huge with the default 1e-8. Graves 2013 and DQN therefore use
# 1e-4 and 0.01 (inside the root). 1e-6 is below the usual gradients of this model (the median |g|
# was 3e-5 at the start, and 2e-4 after 300 steps), so this ε does not slow the training down.
EPS = 1e-6


def trainer(model, eps=lambda hp: EPS):
    """Return the training of `model`. Its state is the parameters and the optimizer state."""

    def optimizer(hp):
        return rj.rmsprop(
            hp["learning_rate"], decay=hp["decay"], eps=eps(hp), centered=hp["centered"]
        )

    def init(hp, key, text, validation):
        return first(model, optimizer(hp), key)

    def train_step(hp, state, key, text, validation):
        *state, loss = step(model, optimizer(hp), *state, key, text)
        return tuple(state), {"loss": loss}

    def score(hp, state, key, text, validation):
        return {"validation": evaluate(model, state[0], validation)}

    return rj.Training(init, train_step, score)
