"""Post-training (paper 4): supervised fine-tuning on dialogues."""

from herder.posttrain.sft import FineTuneConfig, SupervisedFineTuning, fine_tune

__all__ = ["FineTuneConfig", "SupervisedFineTuning", "fine_tune"]
