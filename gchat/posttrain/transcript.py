"""A step's rollouts as text for people, each with its reward."""

import math
from collections.abc import Sequence

import numpy as np

from gchat.chat_format import Message
from gchat.posttrain.policy import Rollout
from gchat.posttrain.rewards import Item

_GROUPS, _ANSWERS = 2, 4
_SIGNS = {"text": "{}", "call": "«{}»", "output": "→ {} "}


def transcript(
    items: Sequence[Item], groups: Sequence[Sequence[Rollout]], reward_Gn: np.ndarray
) -> str:
    """The first groups whose rewards differ (or the first), best answers first."""
    spread_G = [len(set(rewards[np.isfinite(rewards)].tolist())) > 1 for rewards in reward_Gn]
    order = sorted(range(len(groups)), key=lambda g: not spread_G[g])
    return "\n\n".join(_group(items[g], groups[g], reward_Gn[g]) for g in order[:_GROUPS])


def _group(item: Item, rollouts: Sequence[Rollout], reward_n: np.ndarray) -> str:
    question = item.question[-1].content if item.question else ""
    best = sorted(range(len(rollouts)), key=lambda i: -np.nan_to_num(reward_n[i], nan=-math.inf))
    shown = best if len(best) <= _ANSWERS else [*best[: _ANSWERS // 2], *best[-_ANSWERS // 2 :]]
    lines = [f"{item.id}: {question}"]
    for i in shown:
        reward = "ungraded" if math.isnan(reward_n[i]) else f"{reward_n[i]:.3g}"
        cut = "" if rollouts[i].ended else " … (cut off)"
        lines.append(f"  [{reward}] {said(rollouts[i].message)}{cut}")
    return "\n".join(lines)


def said(message: Message) -> str:
    """An answer on one line, calls of tools and their output marked."""
    if not message.parts:
        return repr(message.content)
    return repr("".join(_SIGNS[part.kind].format(part.text) for part in message.parts))
