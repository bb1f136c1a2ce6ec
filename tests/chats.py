"""Tokenizers, templates and conversations for tests of the chat format."""

import functools
import json

from hypothesis import strategies as st

import foreign
from gchat import tokenizer as tokenizers
from gchat.chat_format import Conversation, Message, Part
from gchat.vocab.specials import SPECIALS

# The template of SmolLM2-Instruct (tokenizer_config.json of HuggingFaceTB/SmolLM2-135M-Instruct).
SMOL = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' "
    "}}{% endif %}"
)
NATIVE = [*foreign.SPECIALS, *(name for name in SPECIALS if name not in foreign.SPECIALS)]


def definition() -> str:
    """A tokenizer.json with every special token: ChatML's, ours, and GPT-2's separator."""
    base = foreign.tokenizer()
    first = len(foreign.tokens())
    for i, name in enumerate(NATIVE[len(foreign.SPECIALS) :], first):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        base["added_tokens"].append({"id": i, "content": name, "special": True} | flags)
    return json.dumps(base)


@functools.cache
def native() -> tokenizers.Tokenizer:
    """A tokenizer with our tags and ChatML's, whose twin transformers can read."""
    return tokenizers.imported(definition(), rows=foreign.ROWS, bos="<|bos|>", stops=())


@functools.cache
def chatml() -> tokenizers.Tokenizer:
    """A tokenizer as an imported chat model brings it."""
    return tokenizers.imported(
        json.dumps(foreign.tokenizer()),
        rows=foreign.ROWS,
        bos="<|endoftext|>",
        stops=["<|im_end|>"],
    )


TOOLS = Message(
    "assistant",
    "It is 24 now.",
    (Part("text", "It is "), Part("call", "48/2"), Part("output", "24"), Part("text", "24 now.")),
)
PLAIN = (
    (("user", "Hi"), ("assistant", "Hello there.")),
    (("system", "Be kind."), ("user", "héllo 東京 🙂"), ("assistant", "\n\n  indented\n")),
    (
        ("user", "one two"), ("assistant", " a space in front"),
        ("user", "three\n\n"), ("assistant", "3."), ("user", "?"), ("assistant", "!"),
    ),
)  # fmt: skip


def plain() -> list[Conversation]:
    """Conversations without tags in their text, as transformers can render them."""
    return [Conversation(tuple(Message(*turn) for turn in turns)) for turns in PLAIN]


def with_tools() -> Conversation:
    """A conversation whose first answer calls the calculator."""
    turns = (Message("user", "Half of 48?"), TOOLS, Message("user", "Sure?"))
    return Conversation((*turns, Message("assistant", "Yes.")))


_TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            [*SPECIALS, "<|im_", "end|>", "<|", "|>", "assistant\n", "\n", " ", "{{ x }}"]
        ),
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=5,
).map("".join)


@st.composite
def conversations(draw, *, tools: bool = False, turns: int = 4):
    """Conversations of every shape, whose texts hold tags and halves of tags."""
    messages = [Message("system", draw(_TEXTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, turns))):
        messages.append(Message("user", draw(_TEXTS)))
        if tools and draw(st.booleans()):
            first, call, output, last = (draw(_TEXTS) for _ in range(4))
            parts = (Part("text", first), Part("call", call), Part("output", output),
                     Part("text", last))  # fmt: skip
            messages.append(Message("assistant", first + last, parts))
        else:
            messages.append(Message("assistant", draw(_TEXTS)))
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    unlearned = draw(st.sets(st.sampled_from(answers), max_size=len(answers) - 1))
    return Conversation(tuple(messages), tuple(sorted(unlearned)))
