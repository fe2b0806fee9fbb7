"""Pre-training (paper 3.2 and 3.4): the tokenizer and token shards of a curated corpus, and the base model."""

from herder.pretrain.base import PretrainConfig, pretrain
from herder.pretrain.stages import present, ramp
from herder.pretrain.tokens import TokenizeConfig, TokenizerConfig, tokenize, train_tokenizer

__all__ = ["PretrainConfig", "TokenizeConfig", "TokenizerConfig", "present", "pretrain", "ramp", "tokenize", "train_tokenizer"]
