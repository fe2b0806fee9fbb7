"""Text to ids and back (paper section 3.2): byte-level BPE, and the chat formats built from ids."""

from herder.tokenizer.bpe import PATTERN, StreamDecoder, Tokenizer, special_names, train
from herder.tokenizer.chat import DIALECTS, ChatFormat, RoleSpan, Turn

__all__ = [
    "DIALECTS",
    "PATTERN",
    "ChatFormat",
    "RoleSpan",
    "StreamDecoder",
    "Tokenizer",
    "Turn",
    "special_names",
    "train",
]
