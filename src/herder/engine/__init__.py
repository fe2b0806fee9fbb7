"""The one engine for every token generated (paper section 6 and every sampling step of section 4): cache, batches, sampling.

Evaluation, rejection sampling, reward data, chat and serving all call `Engine`; its results do not depend on what else is
in the batch.
"""

from herder.engine.engine import Completion, Engine, Piece
from herder.engine.sample import Sampling

__all__ = ["Completion", "Engine", "Piece", "Sampling"]
