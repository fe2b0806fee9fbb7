"""The Llama 3 model in plain PyTorch (paper 3.2, table 3; facts of RoPE scaling from the published 3.1 configuration).

Nothing here knows of parallelism, compilation or quantization: those are applied from outside, through the seams
`attend` and `select` of `Llama.forward`.
"""

from herder.model.count import Count
from herder.model.llama import Llama, initial_weight
from herder.model.shapes import SHAPES, LlamaConfig, RopeScaling

__all__ = ["SHAPES", "Count", "Llama", "LlamaConfig", "RopeScaling", "initial_weight"]
