"""How text is cut into pieces before merging (paper section 3.2), as one regular expression for each known way.

Hugging Face files and GGUF files tell it differently: the first as a chain of pre-tokenizers, the second as a name. The one
design decision: a chain becomes one expression that cuts in the same places, or it is refused in a sentence.
"""

from __future__ import annotations

import re

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 cuts text."""
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Digits are cut out first and each part between them is cut by GPT2's expression on its own. So whitespace before a digit ends
# its part, and is taken whole where GPT2 would leave the last space to the next word.
DIGITS_GPT2 = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
NUMBERS_GPT2 = DIGITS_GPT2.replace(r"\p{N}|", r"\p{N}+|", 1)

EXHAUSTIVE = {LLAMA3, QWEN2, GPT2, DIGITS_GPT2, NUMBERS_GPT2}
"""Expressions that leave no character of any text over."""

GGUF_WHOLE_PIECES = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}
"""Names for which llama.cpp takes a piece that is a token as that token, whatever the merges say."""
GGUF_NAMES = {
    **dict.fromkeys(sorted(GGUF_WHOLE_PIECES), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), QWEN2),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jina-es", "jina-de"), GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), DIGITS_GPT2),
}
"""`tokenizer.ggml.pre` -> expression, as llama.cpp's table of pre-tokenizers has it."""

_GAP = r"))[\s\S])+"
# Where Hugging Face's engine (Oniguruma) and tiktoken's (Rust) read the same expression differently.
_DIFFERS = re.compile(
    r"\{\d+(?:,\d*)?\}\+|\(\?[a-z]*[a-hj-z][a-z-]*[:)]|(?<![\[\\])[\^$]|\\[hHRXKGZzAbB]|\[\[:|&&|\(\?<?[~>P]"
)


_LOOKS = re.compile(r"\(\?(?:[=!>]|<[=!]|P=)|\(\?[a-z]+\)|\\[1-9gk]|(?:[?*+]|\{\d+(?:,\d*)?\})\+")
"""Look-around, atomic groups, possessive repeats, back-references, flags for all that follows."""


def grouped(pattern: str) -> str:
    """The same expression with neighbouring alternatives that look nowhere put into one group: cuts are the same, and found a
    third faster. tiktoken's engine hands what looks nowhere to a faster one, and only a group is handed over as a whole."""
    out: list[str] = []
    together: list[str] = []
    for alternative in [*alternatives(pattern), None]:
        if alternative is not None and not _LOOKS.search(alternative):
            together.append(alternative)
            continue
        if together:
            out.append(f"(?:{'|'.join(together)})")
        together = []
        if alternative is not None:
            out.append(alternative)
    return pattern if re.search(r"\(\?[a-z]+\)", pattern) else "|".join(out)


def alternatives(pattern: str) -> list[str]:
    """The alternatives of an expression's top level, in order."""
    found, start, depth, inside, at = [], 0, 0, 0, 0
    while at < len(pattern):
        c = pattern[at]
        if c == "\\":
            at += 1
        elif c == "[":
            inside += 1
            at += len(re.match(r"\^?\]?", pattern[at + 1 :])[0])  # a bracket that comes first stands for itself
        elif c == "]" and inside:
            inside -= 1
        elif not inside and c in "()":
            depth += 1 if c == "(" else -1
        elif c == "|" and not inside and not depth:
            found.append(pattern[start:at])
            start = at + 1
        at += 1
    return [*found, pattern[start:]]


def from_chain(chain: dict | None) -> str:
    """The expression of a tokenizer.json's `pre_tokenizer`. Raises ValueError for a chain that no expression here matches."""
    steps = chain.get("pretokenizers", []) if chain and chain.get("type") == "Sequence" else [chain] if chain else []
    kinds = [step.get("type") for step in steps]
    if kinds and kinds[-1] == "ByteLevel" and not steps[-1].get("add_prefix_space", True):
        own = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and own:
            return GPT2
        if kinds == ["Digits", "ByteLevel"] and own:
            return DIGITS_GPT2 if steps[0].get("individual_digits") else NUMBERS_GPT2
        if kinds == ["Split", "ByteLevel"] and not own:
            return _from_split(steps[0])
    raise ValueError(f"its pre-tokenizer ({', '.join(map(str, kinds)) or 'none'}) is not one that herder can express")


def _from_split(step: dict) -> str:
    pattern, behavior = (step.get("pattern") or {}).get("Regex"), (step.get("behavior"), bool(step.get("invert")))
    if not isinstance(pattern, str) or behavior not in {("Isolated", False), ("Removed", True)}:
        raise ValueError(
            f"its pre-tokenizer splits by {step.get('pattern')} ({behavior[0]}), which herder cannot express"
        )
    if pattern in EXHAUSTIVE or pattern.endswith(_GAP):
        return pattern
    if found := _DIFFERS.search(pattern):
        raise ValueError(f"its splitting expression holds {found[0]!r}, which other engines read in another way")
    # What no match covers is dropped by tiktoken and by "Removed"; where it stays a piece, the expression has to match it.
    return pattern if behavior[0] == "Removed" else f"{pattern}|(?:(?!(?:{pattern}{_GAP}"


def to_chain(pattern: str) -> dict:
    """The `pre_tokenizer` of a tokenizer.json that cuts as tiktoken does by this expression."""
    whole = pattern in EXHAUSTIVE or pattern.endswith(_GAP)
    split = {"behavior": "Isolated", "invert": False} if whole else {"behavior": "Removed", "invert": True}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}, **split}, plain]}


def from_gguf(name: str | None) -> str:
    """The expression of a GGUF's `tokenizer.ggml.pre`. Raises ValueError for a name that is not known here."""
    if name not in GGUF_NAMES:
        raise ValueError(
            f"its pre-tokenizer is {name!r}; herder knows {', '.join(GGUF_NAMES)}; give the original tokenizer.json instead"
        )
    return GGUF_NAMES[name]
