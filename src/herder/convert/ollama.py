"""An Ollama Modelfile beside an exported GGUF: where the model lies, how a dialogue is written, where a reply ends.

Ollama renders prompts with Go templates. The template here is made of the same row of `DIALECTS` that `ChatFormat` encodes
by; the begin token is left out, because Ollama's tokenizer places it. The template declares no tools, and Ollama says so to
who asks for them: function calls need the assistant of `herder serve`, which reads calls from ids.
"""

from __future__ import annotations

from herder.tokenizer import DIALECTS, Tokenizer
from herder.tokenizer.dialects import CUTOFF, HF_DATE, Dialect, announcement

FIRST_LINE = "# An Ollama model, written by herder."


def modelfile(gguf: str, tokenizer: Tokenizer) -> str:
    """The Modelfile of the GGUF file named `gguf` in the same folder; without a chat dialect, it has no template.

    Raises ValueError for a file name that a Modelfile cannot spell.
    """
    if not gguf.isprintable() or gguf != gguf.strip():
        raise ValueError(f"the file name {gguf!r} has characters that a Modelfile cannot hold; give a plain name")
    lines = [f"{FIRST_LINE} In this folder: ollama create NAME -f THIS_FILE", f"FROM ./{gguf}"]
    if dialect := DIALECTS.get(tokenizer.dialect):
        lines.append(f'TEMPLATE """{go_template(dialect)}"""')
        if tokenizer.conventions.system and '"""' not in tokenizer.conventions.system:
            lines.append(f'SYSTEM """{tokenizer.conventions.system}"""')
        lines += [f'PARAMETER stop "{name}"' for name in dialect.stops if name in tokenizer.special]
    return "\n".join([*lines, ""])


def go_template(dialect: Dialect) -> str:
    """The dialect as a Go template over Ollama's .Messages and .System: each message, then the opening of the reply. A last
    message of the assistant is left open, to be continued."""
    role = "{{ .Role }}"
    for ours, written in dialect.headers.items():
        if ours != written:
            role = f'{{{{ if eq .Role "{ours}" }}}}{written}{{{{ else }}}}{role}{{{{ end }}}}'
    message = (
        _opening(dialect, role)
        + "{{ .Content }}{{ if not (and $last $reply) }}"
        + _literal(dialect.end + dialect.after_end)
    )
    message += "{{ end }}{{ if and $last (not $reply) }}" + _opening(dialect, "assistant") + "{{ end }}"
    variables = '{{ $last := eq (len (slice $.Messages $i)) 1 }}{{ $reply := eq .Role "assistant" }}'
    if not dialect.hugging_face:
        return f"{{{{ range $i, $_ := .Messages }}}}{variables}{message}{{{{ end }}}}"
    # The published template has one system message, always, that begins with dates.
    dates = announcement(dialect, (), HF_DATE, CUTOFF, functions=False)
    system = _opening(dialect, "system") + _literal(f"{dates}\n\n") + "{{ .System }}" + _literal(dialect.end)
    rest = f'{{{{ if ne .Role "system" }}}}{message}{{{{ end }}}}'
    return f"{system}{{{{ range $i, $_ := .Messages }}}}{variables}{rest}{{{{ end }}}}"


def _opening(dialect: Dialect, role: str) -> str:
    """What stands before a message's content; `role` is a role or an action that gives one."""
    return _literal(dialect.open) + role + _literal((dialect.close or "") + dialect.after_role)


def _literal(text: str) -> str:
    """Text that a Go template writes as it is."""
    return text.replace("{{", '{{ "{{" }}')
