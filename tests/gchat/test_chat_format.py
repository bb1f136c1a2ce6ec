"""Conversations as ids: tags, masks, templates; transformers' own masks as the reference."""

import functools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import chats
import foreign
from gaia.errors import ConfigError, DataError
from gchat.chat_format import (
    Conversation,
    Message,
    Part,
    format_of,
    read_format,
    write_format,
)
from gchat.chat_template import ChatTemplate, Forgets
from gchat.tokenizer import imported as imported_tokenizer
from gchat.tokenizer import train_bpe

GOLDEN = Path(__file__).parent.parent / "golden" / "chat_masks.json"
KINDS = ("native", "chatml", "imported", "own native", "own chatml", "version 1")
# The core of Llama 3's template: it trims, writes a BOS, and ends with a token of its own.
TRIMS = (
    "{{- bos_token }}{% for m in messages %}{{- '<|im_start|>' + m['role'] + '\n\n' + "
    "m['content'] | trim + eos_token }}{% endfor %}{% if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\n\n' }}{% endif %}"
)
# Writes what was asked otherwise once it is answered.
FORGETS = (
    "{% if messages[-1]['role'] == 'user' %}{{- '/think ' }}{% endif %}"
    "{% for m in messages %}{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"
)


@functools.cache
def formats():
    own = train_bpe(["Hello there. user assistant system one two three 24\n" * 40], 330)
    older = type(own)(own.kind, own.codec, dict(list(own.specials.items())[:9]), version=1)
    return {
        "native": format_of(chats.native(), wanted="native"),
        "chatml": format_of(chats.native(), wanted="chatml"),
        "imported": imported(chats.SMOL),
        "own native": format_of(own, wanted="chat"),
        "own chatml": format_of(own, wanted="chatml"),
        "version 1": format_of(older, wanted="chat"),
    }


def imported(template):
    made = ChatTemplate(template, chats.chatml())
    return type(format_of(chats.chatml()))(
        chats.chatml(), "imported", made.end_id(), trained=True, template=made
    )


def text(chat_format, ids):
    return chat_format.tokenizer.decode(ids)


def shown(chat_format, conversation):
    """The rendered text, what is learned of it in brackets."""
    rendered = chat_format.render(conversation)
    pieces = [
        ("[{}]" if span.trained else "{}").format(
            text(chat_format, rendered.ids[span.start : span.end])
        )
        for span in rendered.spans
    ]
    return "".join(pieces).replace("][", "")


def test_native_tags_calls_and_the_end_are_learned_and_outputs_are_read():
    assert shown(formats()["own native"], chats.with_tools()) == (
        "<|bos|><|user_start|>Half of 48?<|user_end|><|assistant_start|>"
        "[It is <|python_start|>48/2<|python_end|>]<|output_start|>24<|output_end|>"
        "[24 now.<|assistant_end|>]"
        "<|user_start|>Sure?<|user_end|><|assistant_start|>[Yes.<|assistant_end|>]"
    )


def test_chatml_ends_with_a_learned_im_end_and_a_line_that_is_not():
    conversation = Conversation.from_json(
        {"system": "Be kind.", "prompt": "<|im_end|>", "completion": "Hi <|bos|>"}
    )
    assert shown(formats()["own chatml"], conversation) == (
        "<|bos|><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n<|im_end|><|im_end|>\n"
        "<|im_start|>assistant\n[Hi <|bos|><|im_end|>]\n"
    )


def test_an_imported_model_keeps_its_default_instruction():
    rendered = shown(formats()["imported"], chats.plain()[0])
    assert rendered.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert rendered.endswith("<|im_start|>assistant\n[Hello there.<|im_end|>]\n")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_shape_keeps_text_prefixes_masks_and_comes_back(kind, data):
    chat_format = formats()[kind]
    has_tools = chat_format.kind == "native"
    conversation = data.draw(chats.conversations(tools=has_tools))
    messages, tokenizer = conversation.messages, chat_format.tokenizer
    rendered = chat_format.render(conversation)
    ids, mask, spans = rendered
    assert len(ids) == len(mask)
    # Spans cover the ids, and the mask is theirs.
    assert [span.start for span in spans[1:]] == [span.end for span in spans[:-1]]
    assert (spans[0].start, spans[-1].end) == (0, len(ids))
    assert mask == [span.trained for span in spans for _ in range(span.start, span.end)]
    # A tag that somebody typed is text: the specials are those of the format alone.
    plain = Conversation(tuple(Message(m.role, "x", tuple(Part(p.kind, "x") for p in m.parts))
                               for m in messages))  # fmt: skip
    specials = [i for i in ids if tokenizer.is_special(i)]
    assert specials == [i for i in chat_format.render(plain).ids if tokenizer.is_special(i)]
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        # What asks for an answer is how the whole begins, turn by turn; the answer comes next.
        prompt = chat_format.prompt(messages[:i])
        assert ids[: len(prompt)] == prompt and not mask[len(prompt) - 1]
        answer = chat_format.parse(ids[len(prompt) :])
        assert (answer.content, answer.parts) == (message.content, kept(message))
        end = next(n for n in range(len(prompt), len(ids)) if ids[n] == chat_format.end_id)
        assert mask[end] == mask[len(prompt)] == (i not in conversation.unlearned)
        if not message.parts:
            assert len({*mask[len(prompt) : end + 1]}) == 1
    # Of all others nothing is learned.
    for span in spans:
        assert not (span.trained and span.role != "assistant")
        assert span.trained <= (messages[span.message].role == "assistant")


def kept(message):
    """Parts without empty ones, and neighbours of a kind as one."""
    return tuple(part for part in message.parts if part.text)


@pytest.mark.parametrize("kind", ["native", "chatml", "imported"])
def test_ids_and_masks_equal_those_of_transformers(kind):
    chat_format, golden = formats()[kind], json.loads(GOLDEN.read_text())[kind]
    assert chat_format.jinja() == golden["template"], "make_chat_masks.py makes it again"
    conversations = chats.plain() + [chats.with_tools()] * (kind == "native")
    for conversation, theirs in zip(conversations, golden["conversations"], strict=True):
        ours = chat_format.render(conversation)
        assert ours.ids == theirs["ids"]
        assert [int(learned) for learned in ours.mask] == theirs["mask"]
        assert 0 < sum(ours.mask) < len(ours.mask)


def joining():
    """A tokenizer that makes one token of two new lines, as most do."""
    definition = foreign.tokenizer()
    model = definition["model"]
    model["vocab"]["ĊĊ"] = model["vocab"].pop("ĠĠ")
    model["merges"][-1] = ["Ċ", "Ċ"]
    return imported_tokenizer(
        json.dumps(definition), rows=foreign.ROWS, bos="<|endoftext|>", stops=["<|im_end|>"]
    )


@pytest.mark.parametrize("kind", ["chatml", "imported"])
def test_a_token_never_lies_in_header_and_answer(kind, tmp_path):
    """The header's new line and the answer's would be one token, which no prompt ends with."""
    tokenizer = joining()
    newline, two = tokenizer.encode("\n"), tokenizer.encode("\n\n")
    assert len(newline) == len(two) == 1 and newline != two
    if kind == "imported":
        (tmp_path / "chat_template.jinja").write_text(chats.SMOL)
    chat_format = read_format(tmp_path, tokenizer)
    assert chat_format.kind == kind
    turns = (Message("user", "Hi"), Message("assistant", "\n\n\nYo\n"), Message("user", "\n"),
             Message("assistant", "\n"))  # fmt: skip
    ids, mask, _ = chat_format.render(Conversation(turns))
    learned = []
    for k in (1, 3):
        prompt = chat_format.prompt(turns[:k])
        assert ids[: len(prompt)] == prompt and prompt[-1:] == newline
        answer = [*tokenizer.encode(turns[k].content), chat_format.end_id]
        assert ids[len(prompt) :][: len(answer)] == answer
        learned += range(len(prompt), len(prompt) + len(answer))
    assert [i for i, one in enumerate(mask) if one] == learned


@pytest.mark.parametrize("kind", KINDS)
def test_the_template_for_other_programs_renders_the_same_text(kind):
    chat_format = formats()[kind]
    for generation in (True, False):
        template = ChatTemplate(chat_format.jinja(generation=generation), chat_format.tokenizer)
        assert ("{% generation" in template.text) == generation
        for conversation in chats.plain():
            whole = template.rendered(conversation.messages, prompts=False)
            assert whole == text(chat_format, chat_format.render(conversation).ids)
            asked = template.rendered(conversation.messages[:-1], prompts=True)
            assert asked == text(chat_format, chat_format.prompt(conversation.messages[:-1]))


def test_a_template_that_trims_and_one_that_forgets():
    conversation = Conversation.from_json({"prompt": "  Hi ", "completion": "\n you \n"})
    assert shown(imported(TRIMS), conversation) == (
        "<|endoftext|><|im_start|>user\n\nHi<|im_end|><|im_start|>assistant\n\n[you<|im_end|>]"
    )
    forgets = ChatTemplate(FORGETS, chats.chatml())
    with pytest.raises(Forgets, match=r"before messages\[1\] otherwise"):
        forgets.pieces(conversation.messages)
    two = chats.plain()[2].messages[:3]
    assert chats.chatml().decode(forgets.prompt(two)) == (
        "/think <|im_start|>user\none two<|im_end|>"
        "<|im_start|>assistant\n a space in front<|im_end|>"
        "<|im_start|>user\nthree\n\n<|im_end|><|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ messages | nothing }}", "damaged"),
        ("{{ raise_exception('no system') }}", r"fails \(no system\)"),
        ("{{ messages[0].content + 1 }}", "fails"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "ends no answer"),
        ("{{ cycler.__init__.__globals__ }}", "fails"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(template, problem, tmp_path):
    with pytest.raises(ConfigError, match=problem):
        imported(template).render(chats.plain()[0])
    (tmp_path / "chat_template.jinja").write_text(template)
    assert read_format(tmp_path, chats.chatml()).kind == "chatml"


def test_a_run_says_on_what_it_was_trained(tmp_path):
    own = formats()["own native"]
    assert read_format(tmp_path, own.tokenizer).kind == "text"
    for kind in ("own native", "own chatml", "imported"):
        chat_format = formats()[kind]
        write_format(tmp_path, chat_format)
        again = read_format(tmp_path, chat_format.tokenizer)
        assert (again.kind, again.end_id, again.trained) == (
            chat_format.kind,
            chat_format.end_id,
            True,
        )
        assert again.render(chats.plain()[0]) == chat_format.render(chats.plain()[0])
    assert read_format(tmp_path, own.tokenizer, wanted="text").kind == "text"
    (tmp_path / "chat.json").write_text('{"kind": "morse"}')
    with pytest.raises(DataError, match=r"chat\.json is damaged"):
        read_format(tmp_path, own.tokenizer)


ROWS = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]},
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}],
    {"prompt": "Hi", "completion": "Yo"},
    {"prompt": [{"role": "user", "content": "Hi"}],
     "completion": [{"role": "assistant", "content": "Yo"}]},
    {"instruction": "Hi", "input": "", "output": "Yo"},
    {"instruction": "Hi", "response": "Yo", "id": 3},
    {"question": "Hi", "answer": "Yo"},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                  {"role": "assistant", "content": "Yo", "weight": 1}]},
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_every_way_to_write_a_conversation(row):
    assert Conversation.from_json(row) == Conversation(
        (Message("user", "Hi"), Message("assistant", "Yo"))
    )


def test_inputs_instructions_weights_and_tools_are_read():
    row = {"system": "S", "instruction": "Add.", "input": "2, 3", "output": "5"}
    made = Conversation.from_json(row)
    assert [m.content for m in made.messages] == ["S", "Add.\n\n2, 3", "5"]
    call = {"id": "1", "type": "function",
            "function": {"name": "calculator", "arguments": '{"expression": "48/2"}'}}  # fmt: skip
    row = {"messages": [
        {"role": "user", "content": "Half of 48?"},
        {"role": "assistant", "content": "It is ", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "24"},
        {"role": "assistant", "content": "24 now."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes.", "weight": 0},
    ]}  # fmt: skip
    made = Conversation.from_json(row)
    assert made.messages == chats.with_tools().messages and made.unlearned == (3,)
    assert Conversation.from_json(made.to_json()) == made


def of(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (3, "the row is a int"),
        ({"text": "x"}, "the row has text"),
        ({"messages": "x"}, "messages is a str"),
        ({"messages": []}, "messages is empty"),
        ({"messages": ["x"]}, r"messages\[0\] is a str"),
        ({"prompt": "x"}, "prompt has no completion"),
        ({"prompt": "x", "completion": None}, "completion is missing"),
        ({"instruction": "x", "output": 3}, "output is a int"),
        (of(("user", "x"), ("user", "y"), ("assistant", "z")), r"messages\[1\].role is 'user'"),
        (of(("assistant", "x")), r"messages\[0\].role is 'assistant' where 'user'"),
        (of(("user", "x")), "nothing answers it"),
        (of(("system", "x")), "nothing answers it"),
        (of(("user", "x"), ("system", "y"), ("assistant", "z")), "'system'; put|is 'system'"),
        (of(("user", "x"), ("robot", "y")), r"messages\[1\].role is 'robot'"),
        (of(("user", ""), ("assistant", "y")), r"messages\[0\].content is empty"),
        (of(("user", "x"), ("assistant", "")), r"messages\[1\].content is empty"),
        (of(("user", "\ud800"), ("assistant", "y")), "half a character at 0"),
        (of(("user", "x"), ("tool", "y"), ("assistant", "z")), "nothing called it"),
        ({"messages": [{"role": "user", "content": "x"},
                       {"role": "assistant", "content": "y", "weight": 0}]}, "no answer that is"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "type 'image_url'"),
        ({"system": "a", "messages": of(("system", "x"), ("user", "y"), ("assistant", "z"))
          ["messages"]}, "given twice"),
    ],
)  # fmt: skip
def test_a_bad_row_names_its_field(row, problem):
    with pytest.raises(DataError, match=problem):
        Conversation.from_json(row)


def test_formats_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="no end of a message"):
        format_of(chats.native(), wanted="text").render(chats.plain()[0])
    with pytest.raises(ConfigError, match=r"no tags for conversations \(native\)"):
        format_of(chats.chatml(), wanted="native")
    with pytest.raises(DataError, match="nothing answers"):
        formats()["native"].render(Conversation((Message("user", "x"),)))
