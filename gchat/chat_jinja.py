"""Chat templates in Jinja that render what `gchat.chat_format` does, for other programs."""

import json

_ROLES = (
    "{%- if message.role not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('unknown role ' + message.role) -}}{%- endif -%}"
)


def chatml(begins: str, system: str | None, *, generation: bool) -> str:
    """The template of ChatML: `<|im_start|>ROLE`, a new line, the text, `<|im_end|>`.

    Args:
        begins: text of the special token before the first message, or none.
        system: instruction of conversations that bring none.
        generation: put answers into `{% generation %}`.
    """
    start, end = _blocks(generation)
    lines = [_quoted(begins)] if begins else []
    if system is not None:
        own = _quoted(f"<|im_start|>system\n{system}<|im_end|>\n")
        lines.append(f"{{%- if messages[0].role != 'system' -%}}{own}{{%- endif -%}}")
    lines += [
        "{%- for message in messages -%}",
        _ROLES,
        "{{- '<|im_start|>' + message.role + '\\n' -}}",
        "{%- if message.role == 'assistant' -%}",
        f"{start}{{{{- message.content + '<|im_end|>' -}}}}{end}{{{{- '\\n' -}}}}",
        "{%- else -%}{{- message.content + '<|im_end|>\\n' -}}{%- endif -%}",
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}",
    ]
    return "\n".join(lines) + "\n"


def native(*, merges: bool, generation: bool) -> str:
    """The template of our own tags.

    Args:
        merges: a system message becomes the beginning of the first question.
        generation: put what is learned of answers into `{% generation %}`.
    """
    start, end = _blocks(generation)
    lines = ["{{- '<|bos|>' -}}"]
    first, instruction = "{%- set turns = messages -%}", ""
    if merges:
        first = (
            "{%- set merged = messages|length > 1 and messages[0].role == 'system' -%}\n"
            "{%- set turns = messages[1:] if merged else messages -%}"
        )
        instruction = (
            "{%- if merged and loop.first -%}{{- messages[0].content + '\\n\\n' -}}{%- endif -%}"
        )
    lines += [
        first,
        "{%- for message in turns -%}",
        _ROLES,
        "{%- if message.role == 'assistant' -%}",
        "{{- '<|assistant_start|>' -}}",
        "{%- if message.content is string -%}",
        f"{start}{{{{- message.content -}}}}{end}",
        "{%- else -%}{%- for part in message.content -%}",
        f"{{%- if part.type == 'text' -%}}{start}{{{{- part.text -}}}}{end}",
        "{%- elif part.type in ['call', 'python'] -%}",
        f"{start}{{{{- '<|python_start|>' + part.text + '<|python_end|>' -}}}}{end}",
        "{%- else -%}{{- '<|output_start|>' + part.text + '<|output_end|>' -}}{%- endif -%}",
        "{%- endfor -%}{%- endif -%}",
        f"{start}{{{{- '<|assistant_end|>' -}}}}{end}",
        "{%- else -%}",
        "{{- '<|' + message.role + '_start|>' -}}",
        instruction,
        "{{- message.content + '<|' + message.role + '_end|>' -}}",
        "{%- endif -%}",
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}{{- '<|assistant_start|>' -}}{%- endif -%}",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _blocks(generation: bool) -> tuple[str, str]:
    return ("{% generation %}", "{% endgeneration %}") if generation else ("", "")


def _quoted(text: str) -> str:
    """A Jinja expression that puts out a text."""
    return "{{- " + json.dumps(text, ensure_ascii=False) + " -}}"
