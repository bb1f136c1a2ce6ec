"""Choices of a model by transformers, one item at a time, in a Python with torch and transformers.

    PYTHON plain_choices.py FOLDER/MODEL.gguf ITEMS.jsonl

A line of ITEMS has "messages" and "letters". The model's own chat template makes the prompt, the
whole of it is forwarded alone, and the letter with the highest logit comes out: {"chosen": 2}.
"""

import json
import sys
from pathlib import Path


def main():
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    file, items = Path(sys.argv[1]), Path(sys.argv[2])
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
    model = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).eval()
    for line in items.read_text().splitlines():
        item = json.loads(line)
        text = tokenizer.apply_chat_template(
            item["messages"], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        letters = [tokenizer(x, add_special_tokens=False).input_ids[0] for x in item["letters"]]
        best = max(range(len(letters)), key=lambda i: float(logits[letters[i]]))
        nats = torch.log_softmax(logits.double(), -1)[letters].tolist()
        print(json.dumps({"chosen": best, "nats": nats}), flush=True)


if __name__ == "__main__":
    main()
