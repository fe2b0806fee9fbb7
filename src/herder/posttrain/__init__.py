"""Post-training (paper 4): dialogues, and supervised fine-tuning on them."""

from herder.posttrain.dialogues import OPEN, DialogueConfig, make_dialogues
from herder.posttrain.lora import LoraConfig
from herder.posttrain.sft import FineTuneConfig, SupervisedFineTuning, fine_tune

__all__ = [
    "OPEN",
    "DialogueConfig",
    "FineTuneConfig",
    "LoraConfig",
    "SupervisedFineTuning",
    "fine_tune",
    "make_dialogues",
]
