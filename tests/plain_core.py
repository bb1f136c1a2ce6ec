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
    return [outcome(task, items, i, encode, bos, log_probs, seq_len) for i in range(len(items))]


def outcome(task, items, index, encode, bos, log_probs, seq_len):
    made = sequences(task, items, index, encode, bos, seq_len)
    return judge(task, items[index], made, [log_probs(tokens) for tokens, _ in made])


def sequences(task, items, index, encode, bos, seq_len):
    """(tokens, where the answer begins in them) of each choice; one for language modelling."""
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
        begin = 0
        while begin < len(alone) and alone[begin] == whole[begin]:
            begin += 1
        return [crop(whole, begin, seq_len)]
    count = len(item["choices" if task.kind == "multiple_choice" else "context_options"])
    rows = [[bos, *encode(text + question(task, item, c))] for c in range(count)]
    shared = 0
    if task.kind == "multiple_choice":
        while all(len(s) > shared and s[shared] == rows[0][shared] for s in rows):
            shared += 1
        return [crop(s, shared, seq_len) for s in rows]
    while all(s[-1 - shared] == rows[0][-1 - shared] for s in rows):
        shared += 1
    return [crop(s, len(s) - shared, seq_len) for s in rows]


def judge(task, item, made, log_p):
    """(right or wrong, choice) from the log-probabilities [T, V] of each sequence."""
    if task.kind == "language_modeling":
        ((tokens, begin),), (log_p_TV,) = made, log_p
        guesses = [int(np.argmax(log_p_TV[t - 1])) for t in range(begin, len(tokens))]
        return guesses == tokens[begin:], None
    losses = []
    for (tokens, begin), log_p_TV in zip(made, log_p, strict=True):
        nats = [-log_p_TV[t - 1, tokens[t]] for t in range(begin, len(tokens))]
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
