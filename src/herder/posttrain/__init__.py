"""Post-training (paper 4): dialogues, and supervised fine-tuning on them."""

from herder.posttrain.conversations import (
    ConversationConfig,
    conversations_manifest,
    import_dialogues,
    read_conversations,
)
from herder.posttrain.dialogues import OPEN, DialogueConfig, make_dialogues
from herder.posttrain.lora import LoraConfig
from herder.posttrain.sft import FineTuneConfig, SupervisedFineTuning, fine_tune

__all__ = [
    "OPEN",
    "ConversationConfig",
    "DialogueConfig",
    "FineTuneConfig",
    "LoraConfig",
    "SupervisedFineTuning",
    "conversations_manifest",
    "fine_tune",
    "import_dialogues",
    "make_dialogues",
    "read_conversations",
]
