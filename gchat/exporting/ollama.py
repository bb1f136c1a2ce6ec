"""Ollama's Modelfile: the file or folder, the chat template in Go's syntax, stops, the context.

Ollama puts the tokenizer's BOS in front itself, so templates here begin behind it. Format:
github.com/ollama/ollama/blob/main/docs/modelfile.md
"""

from gchat.chat_format import ChatFormat
from gchat.exporting.vocabulary import Ends
from gchat.tokenizer import Tokenizer

_CHATML = (
    "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n"
)
_NATIVE = (
    "{{ range .Messages }}<|{{ .Role }}_start|>{{ .Content }}<|{{ .Role }}_end|>{{ end }}"
    "<|assistant_start|>"
)
# Tokenizers of version 1 have no tags of a system message: it begins the first question.
_MERGED = (
    '{{ $system := "" }}{{ range .Messages }}{{ if eq .Role "system" }}{{ $system = .Content }}'
    "{{ else }}<|{{ .Role }}_start|>{{ if $system }}{{ $system }}\n\n"
    '{{ $system = "" }}{{ end }}{{ .Content }}<|{{ .Role }}_end|>{{ end }}{{ end }}'
    "<|assistant_start|>"
)
_PLAIN = "{{ .Prompt }}"


def template(chat: ChatFormat) -> str | None:
    """The chat template in Go's syntax; None where only the model's own template knows it."""
    if chat.kind == "text":
        return _PLAIN
    if chat.kind == "native":
        has_system = "<|system_start|>" in chat.tokenizer.specials
        return _NATIVE if has_system else _MERGED
    own = None if chat.template is None else chat.template.default_system()
    return _CHATML if chat.kind == "chatml" and own is None else None


def modelfile(model: str, tokenizer: Tokenizer, chat: ChatFormat, ends: Ends, context: int) -> str:
    """Text of a Modelfile.

    Args:
        model: path of the GGUF file, or of the folder, as seen from the Modelfile.
        tokenizer: of the run.
        chat: format that the run was trained on.
        ends: of the run.
        context: positions that the model was made for.
    """
    lines = [f"FROM {model}"]
    text = template(chat)
    if text is None:
        lines.append("# The chat template is the model's own, which Ollama reads from the file.")
    else:
        lines.append(f'TEMPLATE """{text}"""')
    lines += [f'PARAMETER stop "{tokenizer.decode([i])}"' for i in ends.stops]
    lines += [f"PARAMETER num_ctx {context}", "PARAMETER temperature 0.8"]
    return "\n".join(lines) + "\n"
