"""One training of the LSTM by RMSProp, in steps: what the examples that tune it try."""

from _characters import evaluate, first, step

import rmsprop_jax as rj

# With `centered` the denominator is √variance + ε, and the variance of a nearly constant gradient
# goes to 0: the step is then g/ε, huge with the default 1e-8. Graves 2013 and DQN take 1e-4 and
# 0.01 (inside the root) for that. 1e-6 is below this model's usual gradients (seen: median |g| 3e-5
# at the start, 2e-4 after 300 steps), so it does not slow the learning down.
EPS = 1e-6


def trainer(model, eps=lambda hp: EPS):
    """One training of `model`; its state is the parameters and the optimiser's state."""

    def optimizer(hp):
        return rj.rmsprop(
            hp["learning_rate"], decay=hp["decay"], eps=eps(hp), centered=hp["centered"]
        )

    def begin(hp, key, text, validation):
        return first(model, optimizer(hp), key)

    def go_on(hp, state, key, text, validation):
        *state, loss = step(model, optimizer(hp), *state, key, text)
        return tuple(state), {"loss": loss}

    def score(hp, state, key, text, validation):
        return {"validation": evaluate(model, state[0], validation)}

    return rj.Training(begin, go_on, score)
