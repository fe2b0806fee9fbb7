"""The chat dialects as Jinja templates, for tools that build prompts from strings (`transformers`, vLLM, llama.cpp).

A template renders text that such a tool then tokenizes as a whole; the ids are those of `ChatFormat` for dialogues whose
contents spell no control token and do not begin with white space that holds a line break (the header's own line break
would merge with it). The one design decision: templates are put together from the rows of `DIALECTS`, so a dialect cannot
mean one thing here and another there. They take `messages`, `tools`, `add_generation_prompt` and `date_string`.
"""

from __future__ import annotations

import json
import keyword
from string import Template

from herder.tokenizer.calls import BUILTIN_SEARCH, FORMS
from herder.tokenizer.dialects import CUTOFF, DIALECTS, ENVIRONMENT, HF_DATE, HF_NOTE, Dialect, note_opening

# Blocks trim the template's own white space on both sides ("{%- -%}"), so that they may be laid out and read.

_TEXT = """
{%- macro text(content) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- else -%}
    {%- for part in content or [] -%}
      {%- if part.type != "text" -%}{{- raise_exception("a part of a message is not text") -}}{%- endif -%}
      {{- part.text -}}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(functions=[], builtins=[], lines=[], noted=false, end="") -%}
{%- set system = messages[0] if messages[0].role == "system" else none -%}
"""

_NO_TOOLS = """
{%- if tools -%}{{- raise_exception("dialect " + $name + " has no tools") -}}{%- endif -%}
"""

_SORT_TOOLS = """
{%- for tool in tools or [] -%}
  {%- if tool.function is defined -%}
    {%- set ns.functions = ns.functions + [tool] -%}
  {%- elif tool.type in $builtins -%}
    {%- set ns.builtins = ns.builtins + [tool.type] -%}
  {%- else -%}
    {{- raise_exception("a tool is neither a function nor built in") -}}
  {%- endif -%}
{%- endfor -%}
{%- macro declared() -%}
  {{- $note -}}
  {%- for tool in ns.functions -%}
    {{- tool.function | tojson -}}
    {%- if not loop.last -%}{{- "\\n" -}}{%- endif -%}
  {%- endfor -%}
{%- endmacro -%}
"""

_SYSTEM = """
{%- set own = system and text(system.content)[:$environment_length] == $environment -%}
{%- if ns.builtins and not own -%}
  {%- set listed = ns.builtins | reject("equalto", "code_interpreter") | join(", ") -%}
  {%- set ns.lines = [$environment] + (["Tools: " + listed] if listed else []) -%}
{%- endif -%}
{%- if date_string is defined and not own -%}
  {%- set ns.lines = ns.lines + ["Cutting Knowledge Date: " + $cutoff, "Today Date: " + date_string] -%}
{%- endif -%}
{%- set opening = ns.lines | join("\\n") -%}
$in_system
{%- if system or opening or $system -%}
  {{- $open + "system" + $close + opening + ("\\n\\n" if (system or $system) and opening else "") -}}
  {{- (text(system.content) if system else $system) + $end -}}
{%- endif -%}
"""

_HF_SYSTEM = """
{%- if builtin_tools is defined -%}{%- set ns.builtins = builtin_tools -%}{%- endif -%}
{{- $open + "system" + $close -}}
{%- if ns.builtins or ns.functions -%}{{- $environment + "\\n" -}}{%- endif -%}
{%- if ns.builtins -%}
  {{- "Tools: " + (ns.builtins | reject("equalto", "code_interpreter") | join(", ")) + "\\n\\n" -}}
{%- endif -%}
{{- "Cutting Knowledge Date: " + $cutoff + "\\nToday Date: " -}}
{{- (date_string if date_string is defined else $hf_date) + "\\n\\n" -}}
{{- (text(system.content) | trim if system else "") + $end -}}
{%- if ns.functions and (messages[1] if system else messages[0]).role != "user" -%}
  {{- raise_exception("tools are defined but there is no user message that they could stand before") -}}
{%- endif -%}
"""

_MESSAGES = """
{%- for message in messages -%}
{%- if message.role not in $roles -%}{{- raise_exception("a message has an unknown role") -}}{%- endif -%}
{%- if not (loop.first and system) -%}
  {%- set ns.end = $end -%}
  $before_user
  {{- $open + $roles[message.role] + $close -}}
  $in_user
  {%- if message.tool_calls -%}
    $calls
  $result
  {%- else -%}
    {{- (text(message.content) + ("\\n\\n" + message.context if message.context else ""))$trim -}}
  {%- endif -%}
  $stop
  {{- ns.end -}}
{%- endif -%}
{%- endfor -%}
$noted
{%- if add_generation_prompt -%}{{- $open + "assistant" + $close -}}{%- endif -%}
"""

_IN_SYSTEM = """
{%- if ns.functions -%}
  {%- set opening = opening + ("\\n\\n" if opening else "") + declared() -%}
{%- endif -%}
"""

_NOTED = """
{%- if ns.functions and not ns.noted -%}
  {{- raise_exception("tools are defined but there is no user message that they could stand before") -}}
{%- endif -%}
"""

_BEFORE_USER = """
{%- if message.role == "user" and ns.functions and not ns.noted -%}
  {%- set ns.noted = true -%}
  {{- $open + "user" + $close + declared() + $end -}}
{%- endif -%}
"""

_IN_USER = """
{%- if message.role == "user" and ns.functions and not ns.noted -%}
  {%- set ns.noted = true -%}
  {{- $hf_note -}}
  {%- for tool in ns.functions -%}{{- tool | tojson(indent=4) + "\\n\\n" -}}{%- endfor -%}
{%- endif -%}
"""

_RESULT = """
  {%- elif message.role in ["tool", "ipython"] -%}
    {{- text(message.content) | tojson -}}
"""

_STOP = """
{%- if message.role == "assistant" and message.stop_reason is defined -%}
  {%- set ns.end = $eom if message.stop_reason == "end_of_message" else $end -%}
{%- endif -%}
"""

_NO_CALLS = """{{- raise_exception("dialect " + $name + " has no tool calls") -}}"""

_CALLS = """
    {%- set function = message.tool_calls[0].function -%}
    {%- set builtin = $is_builtin -%}
    {%- if message.tool_calls | length > 1 and (builtin or not $parallel) -%}
      {{- raise_exception("dialect " + $name + " writes one call a message") -}}
    {%- endif -%}
    {%- if text(message.content) -%}
      {%- if not $beside -%}{{- raise_exception("a message has text beside its tool call") -}}{%- endif -%}
      {{- text(message.content) + "\\n" -}}
    {%- endif -%}
    {%- if builtin -%}
      {%- if function.arguments is not mapping -%}
        {{- raise_exception("give the arguments of a built-in tool as an object, not as text") -}}
      {%- endif -%}
      $write_builtin
      {%- set ns.end = $eom -%}
    {%- else -%}
      $environment_calls
      {%- for call in message.tool_calls -%}
        {%- set function = call.function -%}
        $write
      {%- endfor -%}
    {%- endif -%}
"""

_WRITE_BUILTIN = """
      {%- if function.name == "code_interpreter" -%}
        {{- $tag + function.arguments.code -}}
      {%- else -%}
        {{- $tag + function.name + '.call(query="' + escaped(function.arguments.query) + '")' -}}
      {%- endif -%}
"""

_HF_WRITE_BUILTIN = """
      {{- $tag + function.name + ".call(" -}}
      {%- for key, value in function.arguments | items -%}
        {{- key + '="' + escaped(value) + '"' + (", " if not loop.last else "") -}}
      {%- endfor -%}
      {{- ")" -}}
"""

_ESCAPED = """
{%- macro escaped(value) -%}
  {%- for c in value -%}
    {%- if c == '"' or (c == "\\\\" and (loop.last or value[loop.index] in ['"', "\\\\"])) -%}{{- "\\\\" -}}{%- endif -%}
    {{- c -}}
  {%- endfor -%}
{%- endmacro -%}
"""

_ENVIRONMENT_CALLS = """
      {%- if ns.builtins or own -%}{{- $tag -}}{%- set ns.end = $eom -%}{%- endif -%}
"""
_HF_ENVIRONMENT_CALLS = """
      {%- if ns.builtins -%}{%- set ns.end = $eom -%}{%- endif -%}
"""

_ARGUMENTS = "(function.arguments if function.arguments is string else (function.arguments or {}) | tojson$ascii)"
_WRITE = {
    "json": (
        """{{- '{"type": "function", "name": ' + (function.name | tojson(ensure_ascii=true)) -}}"""
        f"""{{{{- ', "parameters": ' + {_ARGUMENTS.replace("$ascii", "(ensure_ascii=true)")} + '}}' -}}}}"""
    ),
    "bare_json": (
        """{{- '{"name": ' + (function.name | tojson) -}}"""
        f"""{{{{- ', "parameters": ' + {_ARGUMENTS.replace("$ascii", "")} + '}}' -}}}}"""
    ),
    "function_tag": (
        f"""{{{{- "<function=" + function.name + ">" + {_ARGUMENTS.replace("$ascii", "(ensure_ascii=true)")} -}}}}"""
        """{{- "</function>" -}}"""
    ),
    "tool_call": (
        """{{- "<tool_call>\\n" + '{"name": ' + (function.name | tojson) -}}"""
        f"""{{{{- ', "arguments": ' + {_ARGUMENTS.replace("$ascii", "")} + "}}\\n</tool_call>" -}}}}"""
        """{{- "\\n" if not loop.last -}}"""
    ),
    "python_list": """
        {%- if function.arguments is string -%}
          {{- raise_exception("give the arguments of a pythonic call as an object, not as text") -}}
        {%- endif -%}
        {{- ("[" if loop.first else ", ") + function.name + "(" -}}
        {{- python_arguments(function.arguments or {}) + ")" + ("]" if loop.last else "") -}}
""",
}

_PYTHON = """
{%- macro python(value) -%}
  {%- if value is string -%}
    {{- value | tojson -}}
  {%- elif value is mapping -%}
    {{- "{" -}}
    {%- for key, inner in value | items -%}
      {{- (key | tojson) + ": " + python(inner) + (", " if not loop.last else "") -}}
    {%- endfor -%}
    {{- "}" -}}
  {%- elif value is sequence -%}
    {{- "[" -}}
    {%- for inner in value -%}{{- python(inner) + (", " if not loop.last else "") -}}{%- endfor -%}
    {{- "]" -}}
  {%- elif value is none -%}
    {{- "None" -}}
  {%- elif value is boolean -%}
    {{- "True" if value else "False" -}}
  {%- else -%}
    {{- value -}}
  {%- endif -%}
{%- endmacro -%}
{%- macro python_arguments(arguments) -%}
  {%- set found = namespace(plain=[], rest=[], ok=true) -%}
  {%- for key, value in arguments | items -%}
    {%- set found.ok = key != "" and key not in $keywords and key[:1] not in "0123456789" -%}
    {%- for c in key -%}
      {%- if c not in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789" -%}
        {%- set found.ok = false -%}
      {%- endif -%}
    {%- endfor -%}
    {%- if found.ok -%}
      {%- set found.plain = found.plain + [key + "=" + python(value)] -%}
    {%- else -%}
      {%- set found.rest = found.rest + [(key | tojson) + ": " + python(value)] -%}
    {%- endif -%}
  {%- endfor -%}
  {{- (found.plain + (["**{" + found.rest | join(", ") + "}"] if found.rest else [])) | join(", ") -}}
{%- endmacro -%}
"""


def chat_template(dialect: str, calls: str | None = None, system: str = "") -> str:
    """The Jinja text of a dialect; `calls` names the form of custom calls as in `ChatFormat`, `system` is the default message.

    `tools` and messages are as in `ChatFormat.encode`, but the arguments of built-in and pythonic calls must be objects:
    a template cannot read JSON. Where arguments are text they are written as they are. A `context` and content in
    several parts give the same text as `ChatFormat`, whose ids differ where tokens would merge across the joint.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"dialect {dialect!r} is unknown; choose one of {', '.join(DIALECTS)}")
    row = DIALECTS[dialect]
    if calls is not None and calls not in row.forms:
        raise ValueError(f"dialect {dialect} does not write calls as {calls!r}")
    form = calls or (row.forms[0] if row.forms else None)
    body = [_TEXT, _SORT_TOOLS if row.forms else _NO_TOOLS]
    body += [_PYTHON] if form == "python_list" else []
    body += [_ESCAPED] if row.builtins else []
    body += ["{{- $begin -}}"] if row.begin else []
    body += [_HF_SYSTEM if row.hugging_face else _SYSTEM, _MESSAGES]
    text, fragments = "".join(body), _fragments(row, form, system)
    while "$" in text:  # fragments hold fragments
        text = Template(text).substitute(fragments)
    return "\n".join(line for line in text.splitlines() if line.strip())


def _fragments(row: Dialect, form: str | None, system: str) -> dict[str, str]:
    """What each $name of the template stands for: Jinja literals, and pieces of template."""
    shape = FORMS.get(form)
    is_builtin = "function.name in " + ("ns.builtins" if row.hugging_face else "$builtins")
    environment_calls = (
        _HF_ENVIRONMENT_CALLS if row.hugging_face else _ENVIRONMENT_CALLS if shape and shape.tagged else ""
    )
    literals = {
        "name": row.name,
        "system": system,
        "begin": row.begin,
        "open": row.open,
        "close": (row.close or "") + row.after_role,
        "end": row.end + row.after_end,
        "eom": (row.end_of_message or row.end) + row.after_end,
        "tag": row.tag,
        "environment": ENVIRONMENT,
        "environment_length": len(ENVIRONMENT),
        "cutoff": CUTOFF,
        "hf_date": HF_DATE,
        "hf_note": HF_NOTE,
        "note": note_opening(form) if form else "",
        "roles": row.headers,
        "builtins": ["code_interpreter", *BUILTIN_SEARCH] if row.builtins else [],
        "keywords": keyword.kwlist,
        "parallel": bool(shape and shape.parallel),
        "beside": bool(shape and shape.beside),
    }
    return {name: json.dumps(value) for name, value in literals.items()} | {
        "trim": " | trim" if row.hugging_face else "",
        "in_system": _IN_SYSTEM if row.functions_in == "system" else "",
        "before_user": _BEFORE_USER if row.functions_in == "message" and form else "",
        "noted": _NOTED if row.functions_in == "message" and form else "",
        "result": _RESULT if row.hugging_face else "",
        "in_user": _IN_USER if row.functions_in == "question" else "",
        "stop": _STOP if row.end_of_message else "",
        "calls": _CALLS if form else _NO_CALLS,
        "is_builtin": is_builtin if row.builtins else "false",
        "write_builtin": (_HF_WRITE_BUILTIN if row.hugging_face else _WRITE_BUILTIN) if row.builtins else "",
        "environment_calls": environment_calls,
        "write": _WRITE[form] if form else "",
    }
