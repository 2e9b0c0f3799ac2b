"""The learning rate as a function of the step."""

from __future__ import annotations

import math


def cosine_lr(step: int, *, num_steps: int, initial: float) -> float:
    """Cosine annealing from ``initial`` to 0 (Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts).

    Args:
        step: Steps done so far, in [0, num_steps].
        num_steps: Steps of the whole training, over the maximum number of epochs.
        initial: Learning rate of the first step.
    """
    return 0.5 * initial * (1 + math.cos(math.pi * step / num_steps))
