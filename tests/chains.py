"""A model that says a known chain of tokens, with calls of the calculator among them."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np

import tiny
from gchat.engine.engine import Engine
from gchat.model import GPTConfig
from gchat.tokenizer import train_bpe


@functools.cache
def tokenizer():
    return train_bpe(["the sum is what it is"], 280)


def special(name):
    return tokenizer().special(name)


def ids(text):
    return tokenizer().encode(text)


def config():
    made = GPTConfig(
        depth=1, dim=128, head_dim=16, hidden=32, seq_len=64, compute_dtype="float32"
    )  # fmt: skip
    return made.derive(tokenizer().vocab_size, tokenizer().padded_vocab_size)


def model_that_says(chain):
    """(graph, params) whose likeliest token after chain[i] is chain[i + 1], whatever was before."""
    graph, params = tiny.make(config())
    blocks = params["blocks"]
    blocks["attn"]["out"]["kernel"] = jnp.zeros_like(blocks["attn"]["out"]["kernel"])
    blocks["mlp"]["down"]["kernel"] = jnp.zeros_like(blocks["mlp"]["down"]["kernel"])
    table = np.asarray(params["embed"]["table"])
    head = np.zeros(params["head"]["kernel"].shape, np.float32)
    for token, following in itertools.pairwise(chain):
        head[:, following] += table[token]
    params["head"]["kernel"] = jnp.asarray(head)
    return graph, params


def engine_that_says(chain):
    made = model_that_says(chain)
    return Engine(
        *made, seq_len=64, stop_ids=(special("assistant_end"),), slots=2, piece=16,
        decode_bytes=tokenizer().decode_bytes,
    )  # fmt: skip


def chain_of(expression, after="!"):
    """The words of the model; the last forced tag, or the call's end, leads on to `after`."""
    call = [special("python_start"), *ids(expression), special("python_end")]
    said = [special("assistant_start"), *ids("so"), *call]
    return said, [*ids(after), special("assistant_end")]
