"""The one engine for every token generated (paper section 6 and every sampling step of section 4): pages that prefixes share, a
scheduler, runners, sampling.

Evaluation, rejection sampling, reward data, chat and serving all call `Engine`; its results do not depend on what else is
in the batch.
"""

from herder.engine.constrain import Constraint
from herder.engine.engine import Engine
from herder.engine.request import Completion, Generation, Piece
from herder.engine.sample import Sampling
from herder.engine.speculate import PromptLookup

__all__ = ["Completion", "Constraint", "Engine", "Generation", "Piece", "PromptLookup", "Sampling"]
