"""Makes chat_masks.json: what transformers makes of our chat templates, ids and masks.

    PYTHONPATH=tests:. PYTHON tests/golden/make_chat_masks.py

PYTHON is that of a venv with transformers 5 and our requirements/test.txt (jinja2, hypothesis,
tiktoken, numpy); make_import.py says how such a one is made. The test needs none of it.
"""

import json
import tempfile
from pathlib import Path

import transformers

import chats
from gchat.chat_format import format_of, read_format

OUT = Path(__file__).with_name("chat_masks.json")


def theirs(tokenizer_json: str, template: str, rows: list[dict]) -> dict:
    """Ids and mask of transformers' `apply_chat_template`."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tokenizer.json").write_text(tokenizer_json)
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")
    made = tokenizer.apply_chat_template(
        rows, chat_template=template, tokenize=True, return_dict=True,
        return_assistant_tokens_mask=True, add_special_tokens=False,
    )  # fmt: skip
    return {"ids": made["input_ids"], "mask": made["assistant_masks"]}


def main() -> None:
    """Writes the file."""
    import foreign

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "chat_template.jinja").write_text(chats.SMOL)
        imported = read_format(folder, chats.chatml())
    own, small = chats.definition(), json.dumps(foreign.tokenizer())
    formats = {
        "native": (format_of(chats.native(), wanted="native"), own),
        "chatml": (format_of(chats.native(), wanted="chatml"), own),
        "imported": (imported, small),
    }
    golden = {"transformers": transformers.__version__}
    for name, (chat_format, definition) in formats.items():
        template = chat_format.jinja()
        conversations = chats.plain() + [chats.with_tools()] * (name == "native")
        rows = [conversation.to_json()["messages"] for conversation in conversations]
        golden[name] = {
            "template": template,
            "conversations": [theirs(definition, template, one) for one in rows],
        }
    OUT.write_text(json.dumps(golden, separators=(",", ":")).replace("},{", "},\n{") + "\n")


if __name__ == "__main__":
    main()
