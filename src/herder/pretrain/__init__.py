"""Pre-training (paper 3.2 and 3.4): tokenizer and token shards of a curated corpus, the base model in stages, longer contexts
behind gates, annealing with averaging, and the probe that ranks data sets."""

from herder.pretrain.anneal import AnnealConfig, anneal
from herder.pretrain.average import Averaged, average
from herder.pretrain.base import PretrainConfig, pretrain
from herder.pretrain.best import BestConfig, select_best
from herder.pretrain.context import ContextConfig, Gate, extend_context
from herder.pretrain.needle import NeedleConfig, NeedleScore, needle_test
from herder.pretrain.probe import ProbeConfig, probe
from herder.pretrain.stages import present, ramp
from herder.pretrain.tokens import TokenizeConfig, TokenizerConfig, tokenize, train_tokenizer

__all__ = [
    "AnnealConfig",
    "Averaged",
    "BestConfig",
    "ContextConfig",
    "Gate",
    "NeedleConfig",
    "NeedleScore",
    "PretrainConfig",
    "ProbeConfig",
    "TokenizeConfig",
    "TokenizerConfig",
    "anneal",
    "average",
    "extend_context",
    "needle_test",
    "present",
    "pretrain",
    "probe",
    "ramp",
    "select_best",
    "tokenize",
    "train_tokenizer",
]
