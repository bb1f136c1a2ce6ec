"""A prepared data set of a few thousand tokens, made once a session."""

import pytest

import runs


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Train and validation shards with a trained BPE of 300 ids, beside its tokenizer.json."""
    return runs.make_data(tmp_path_factory.mktemp("data"), vocab_size=300)
