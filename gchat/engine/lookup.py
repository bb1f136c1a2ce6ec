"""Prompt lookup: drafts of the next tokens, copied from where the text went the same way before.

A step of decoding reads every weight once, whether it gives a row one token or checks several. So
the model reads the last token and a draft of k at once, and tokens are chosen one after the other
as without a draft, with the keys of their positions, as long as each is the drafted one. Nothing
is drawn differently: the text is the one without drafts, up to the rounding of products of k + 1
rows in place of one. A wrong draft costs nothing but the width of the step, so any match is tried.

Repetitions, quotes, code and forms gain; a text that never repeats itself loses what wider steps
take. (Saxena 2023, "Prompt Lookup Decoding". Leviathan et al. 2023 accept a draft by the ratio of
two distributions; with one key per position, and drafts that are certain, that is equality.)

Shapes: B rows, S positions, k drafted tokens.
"""

import jax
import jax.numpy as jnp

_LONGEST = 4
"""Tokens before the next one that are compared."""


def draft(ids_BS: jax.Array, position_B: jax.Array, k: int) -> jax.Array:
    """The k ids that followed the latest of the longest matches of the last tokens, int32 [B, k].

    Where fewer ids have followed it, those repeat: the text then has the period of their number.

    Args:
        ids_BS: ids of each row up to its position; what lies behind is not looked at.
        position_B: of the last token.
        k: tokens to draft.

    Returns:
        Ids, -1 throughout in rows where nothing matches and in rows at -1.
    """
    B, S = ids_BS.shape
    row_B, at_S = jnp.arange(B), jnp.arange(S)
    matches_BS = at_S[None] < position_B[:, None]
    length_BS = jnp.zeros((B, S), jnp.int32)
    for n in range(_LONGEST):
        last_B = ids_BS[row_B, jnp.maximum(position_B - n, 0)]
        earlier_BS = jnp.pad(ids_BS, ((0, 0), (n, 0)), constant_values=-1)[:, :S]
        matches_BS &= earlier_BS == last_B[:, None]
        length_BS += matches_BS
    best_B = jnp.argmax(length_BS * S + at_S[None] * (length_BS > 0), axis=1)
    matched_B = jnp.max(length_BS, axis=1) > 0
    period_B = jnp.maximum(position_B - best_B, 1)
    next_Bk = best_B[:, None] + 1 + jnp.arange(k)[None] % period_B[:, None]
    return jnp.where(matched_B[:, None], jnp.take_along_axis(ids_BS, next_Bk, axis=1), -1)
