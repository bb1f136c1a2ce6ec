"""Ids and masks by transformers, from an exported folder's own tokenizer and template.

    PYTHON plain_masks.py FOLDER CONVERSATIONS.jsonl

A line of CONVERSATIONS is a list of messages; {"ids": [...], "mask": [...]} comes out for each.
"""

import json
import sys
from pathlib import Path


def main():
    import transformers  # pyright: ignore[reportMissingImports]

    tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
    for line in Path(sys.argv[2]).read_text(encoding="utf-8").splitlines():
        made = tokenizer.apply_chat_template(
            json.loads(line), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        print(json.dumps({"ids": made["input_ids"], "mask": made["assistant_masks"]}), flush=True)


if __name__ == "__main__":
    main()
