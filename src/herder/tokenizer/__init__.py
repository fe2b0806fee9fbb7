"""Text to ids and back (paper section 3.2): byte-level BPE, and the chat formats built from ids."""

from herder.tokenizer.bpe import PATTERN, StreamDecoder, Tokenizer, special_names
from herder.tokenizer.chat import ChatFormat, RoleSpan, Turn
from herder.tokenizer.dialects import DIALECTS
from herder.tokenizer.template import chat_template
from herder.tokenizer.training import train

__all__ = [
    "DIALECTS",
    "PATTERN",
    "ChatFormat",
    "RoleSpan",
    "StreamDecoder",
    "Tokenizer",
    "Turn",
    "chat_template",
    "special_names",
    "train",
]
