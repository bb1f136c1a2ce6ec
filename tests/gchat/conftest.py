"""A prepared data set of a few thousand tokens, made once a session."""

import numpy as np
import pytest

TEXT = (
    "the a small model reads and writes text one token at time because every byte counts so that "
    "loss falls while steps go on over data from many old books with simple words in plain order"
)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Train and validation shards with a trained BPE of 300 ids, beside its tokenizer.json."""
    return make_data(tmp_path_factory.mktemp("data"), vocab_size=300)


def make_data(folder, *, vocab_size, documents=120, seed=0):
    from gaia.records import write_shards
    from gchat.tokenizer import train_bpe

    rng = np.random.default_rng(seed)
    texts = [
        " ".join(rng.choice(TEXT.split(), size=rng.integers(20, 90))) for _ in range(documents)
    ]
    tokenizer = train_bpe(texts, vocab_size)
    ids = [np.array([tokenizer.bos_id, *tokenizer.encode(text)]) for text in texts]
    write_shards(folder, ids[10:], ids[:10], tokenizer.info, shard_tokens=2000)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
