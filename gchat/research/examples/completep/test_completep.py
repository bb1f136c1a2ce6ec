"""Branches by depth: the plain model at the reference, half of each branch at twice of it."""

import numpy as np

import tiny
from gchat.model import DEPTH_REFERENCE, Block


def test_a_branch_is_added_by_its_share(monkeypatch):
    from flax import nnx

    for depth, share in ((DEPTH_REFERENCE, 1.0), (2 * DEPTH_REFERENCE, 0.5)):
        assert Block(tiny.gpt_config(depth=depth), rngs=nnx.Rngs(0)).share == share
    graph, params = tiny.make(tiny.gpt_config(depth=4))
    tokens = tiny.tokens(1, 16)
    got = np.asarray(tiny.logits(graph, params, tokens))
    for name, layer in (("attn", "out"), ("mlp", "down")):
        params["blocks"][name][layer]["kernel"] = 0.5 * params["blocks"][name][layer]["kernel"]
    whole = nnx.graphdef(nnx.eval_shape(lambda: _with_share(1.0)))
    folded = np.asarray(tiny.logits(whole, params, tokens))
    real = np.isfinite(got)
    np.testing.assert_allclose(got[real], folded[real], atol=1e-4)  # so it could be exported


def _with_share(share):
    from flax import nnx

    from gchat.model import GPT

    model = GPT(tiny.gpt_config(depth=4), rngs=nnx.Rngs(0))
    model.blocks.share = share
    return model
