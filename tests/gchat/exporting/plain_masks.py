"""Ids and masks by transformers, from an exported folder's own tokenizer and template.

    PYTHON plain_masks.py FOLDER CONVERSATIONS.jsonl

A line of CONVERSATIONS is a list of messages; for each comes out {"ids": [...], "mask": [...],
"prompts": ids of what asks for each answer, "answers": ids of each answer's own text}.
"""

import json
import sys
from pathlib import Path


def main():
    import transformers  # pyright: ignore[reportMissingImports]

    tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
    for line in Path(sys.argv[2]).read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)
        made = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        out = {"ids": made["input_ids"], "mask": made["assistant_masks"]}
        answers = [k for k, one in enumerate(messages) if one["role"] == "assistant"]
        out["prompts"] = [
            tokenizer.apply_chat_template(
                messages[:k], tokenize=True, return_dict=False, add_generation_prompt=True
            )
            for k in answers
        ]
        # A list as content holds calls of tools, which are no text.
        texts = [messages[k]["content"] for k in answers]
        out["answers"] = [
            tokenizer(text, add_special_tokens=False)["input_ids"] if isinstance(text, str) else []
            for text in texts
        ]
        print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main()
