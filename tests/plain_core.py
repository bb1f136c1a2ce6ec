"""CORE as its description reads, one example at a time, with nothing of the product's harness.

Few-shot text, spans and the choice are written out again here; only the task table is shared.
"""

import random

import numpy as np


def outcomes(task, items, encode, bos, log_probs, seq_len, limit=None):
    """(right or wrong, choice or None) of each item.

    Args:
        items: in the order of the file.
        encode: text -> list of ids.
        log_probs: list of ids -> [T, V] log-probabilities of what follows each.
    """
    items = list(items)
    random.Random(1337).shuffle(items)
    items = items[:limit]
    return [
        outcome(task, items, i, encode, bos, log_probs, seq_len) for i in range(len(items))
    ]


def outcome(task, items, index, encode, bos, log_probs, seq_len):
    item = items[index]
    shown = []
    if task.shots:
        others = [i for i in range(len(items)) if i != index]
        for i in random.Random(1234 + index).sample(others, task.shots):
            shown.append(items[i])
    text = ""
    for example in shown:
        text += question(task, example, example.get("gold")) + "\n\n"
    if task.kind == "language_modeling":
        prompt = text + item["context"].strip() + task.delimiter
        whole = [bos, *encode(prompt + item["continuation"])]
        alone = [bos, *encode(prompt.strip())]
        begin = next((i for i, (a, b) in enumerate(zip(alone, whole)) if a != b), len(alone))
        tokens, begin = crop(whole, begin, seq_len)
        log_p = log_probs(tokens)
        guesses = [int(np.argmax(log_p[t - 1])) for t in range(begin, len(tokens))]
        return guesses == tokens[begin:], None
    count = len(item["choices" if task.kind == "multiple_choice" else "context_options"])
    sequences = [[bos, *encode(text + question(task, item, c))] for c in range(count)]
    if task.kind == "multiple_choice":
        shared = 0
        while all(len(s) > shared and s[shared] == sequences[0][shared] for s in sequences):
            shared += 1
        begins = [shared] * count
    else:
        shared = 0
        while all(s[-1 - shared] == sequences[0][-1 - shared] for s in sequences):
            shared += 1
        begins = [len(s) - shared for s in sequences]
    losses = []
    for sequence, begin in zip(sequences, begins):
        tokens, begin = crop(sequence, begin, seq_len)
        log_p = log_probs(tokens)
        nats = [-log_p[t - 1, tokens[t]] for t in range(begin, len(tokens))]
        losses.append(sum(nats) / len(nats) if nats else float("nan"))
    choice = losses.index(min(losses))
    return choice == item["gold"], choice


def question(task, item, gold):
    """A question with one of its answers."""
    if task.kind == "multiple_choice":
        return item["query"] + task.delimiter + item["choices"][gold]
    if task.kind == "schema":
        return item["context_options"][gold] + task.delimiter + item["continuation"]
    return item["context"].strip() + task.delimiter + item["continuation"]


def crop(tokens, begin, seq_len):
    """The last tokens, and where the answer begins in them."""
    cut = max(0, len(tokens) - seq_len)
    return tokens[cut:], begin - cut
