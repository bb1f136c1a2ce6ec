"""Numbers that carry over from depth 12, where they were found: the batch, rates, the decay."""

import math

from gaia.errors import ConfigError
from gaia.optim import OptimConfig
from gchat.model_config import GPTConfig
from gchat.model_shape import matmul_params


def batch_rows(model: GPTConfig, tokens: int, tokens_per_param: float) -> int:
    """Rows of a step: B ∝ D^0.383 from 2^19 tokens at depth 12.

    Power Lines (arXiv 2505.13738), with nanochat's measured reference point.
    """
    reference = _tokens_at_depth_12(model, tokens_per_param)
    batch_tokens = 2 ** round(math.log2(2**19 * (tokens / reference) ** 0.383))
    return max(1, batch_tokens // model.seq_len)


def rates(
    optim: OptimConfig, model: GPTConfig, batch_tokens: int, steps: int, tokens_per_param: float
) -> tuple[OptimConfig, str]:
    """The optimizer with its rates and decay for a derived model and a run of `steps` steps, and a
    sentence that says what was done.

    Raises:
        ConfigError: a rule does not go with the model, or has nothing to scale from.
    """
    if optim.width_rule == "mup":
        _check_mup(model)
    shorter = 1.0
    if optim.decay_rule == "horizon":
        # A run that is cut short is a trial, and no reason to decay without bound.
        planned = tokens_per_param * matmul_params(model)
        tokens = max(steps * batch_tokens, planned)
        shorter = _tokens_at_depth_12(model, tokens_per_param) / tokens
    return optim.scaled(batch_tokens, model.sizes.dim, shorter=shorter, tied=model.tied)


def _tokens_at_depth_12(model: GPTConfig, tokens_per_param: float) -> float:
    """Tokens of a run at depth 12 with this vocabulary and as many tokens per parameter."""
    s = model.sizes
    return tokens_per_param * matmul_params(GPTConfig(depth=12).derive(s.vocab, s.padded_vocab))


def _check_mup(model: GPTConfig) -> None:
    """Raises ConfigError for a model whose best rates mup does not keep over widths."""
    if model.tied:
        raise ConfigError(
            "optim.width_rule is mup and model.tied is true: the rate of an embedding stays, and "
            "that of a head falls with the width",
            "use --model.tied false, or --optim.width-rule root",
        )
    if model.init != "zero_out":
        raise ConfigError(
            f"optim.width_rule is mup and model.init is {model.init}, whose spread does not follow "
            "the width as mup needs",
            "use --model.init zero_out, or --optim.width-rule root",
        )
