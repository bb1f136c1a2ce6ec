"""The norm of the embedding: the table's size does not matter, and a normed table has it."""

import numpy as np

import tiny


def test_the_tables_size_does_not_matter_and_it_folds_into_the_table():
    graph, params = tiny.make(tiny.gpt_config(norm_eps=1e-12))
    tokens = tiny.tokens(2, 16)
    got = np.asarray(tiny.logits(graph, params, tokens))
    table = params["embed"]["table"]
    params["embed"]["table"] = 7 * table
    real = np.isfinite(got)
    np.testing.assert_allclose(
        np.asarray(tiny.logits(graph, params, tokens))[real], got[real], atol=1e-4
    )
    params["embed"]["table"] = table / np.sqrt(np.mean(np.square(table), 1, keepdims=True))
    np.testing.assert_allclose(
        np.asarray(tiny.logits(graph, params, tokens))[real], got[real], atol=1e-4
    )
