"""Refusals, talk about the task, and lengths: what a model says instead of a record."""

import re

from gchat.synth.filters.reason import Reason

_REFUSALS = re.compile(
    r"\bas an? (?:ai|artificial intelligence|language model|large language model|assistant)\b"
    r"|\bi(?:'m| am) (?:just |only )?an? (?:ai|language model|assistant|chatbot)\b"
    r"|\bi(?:'m| am) (?:very |so )?sorry,? (?:but|i)\b|\bi apologi[sz]e\b"
    r"|\bi (?:cannot|can't|can not|am unable to|'m unable to|am not able to|won't) "
    r"(?:answer|help|assist|provide|fulfil|comply|generate|create|write|determine|do that)"
    r"|\bunable to (?:answer|provide|assist)\b|\bmy (?:training data|knowledge cutoff)\b",
    re.IGNORECASE,
)
_META = re.compile(
    r"\b(?:the|this|that|your|given|provided|above) (?:passage|snippet|excerpt|prompt)\b"
    r"|\b(?:according to|based on|stated in|mentioned in|described in|provided in|found in|from) "
    r"(?:the|this) (?:given |provided |above |following )?(?:text|context|paragraph|window)\b"
    r"|\bthe (?:given|provided|above|following) (?:text|context|sentences?|information)\b"
    r"|\b(?:here is|here's|here are) (?:a|an|the|your|my|one|some)\b[^.?!\n]*"
    r"\b(?:question|answer|record|json|response)\b"
    r"|\banswer to (?:the|this|that) question\b|\b(?:the|this|your) task\b|\b(?:this|the) question"
    r" (?:is|asks|about)\b|\bthe answer(?:'s| is| to| must)\b"
    r"|\bthe text (?:is|says|describes|tells)\b"
    r"|^(?:sure|certainly|of course|absolutely)[,!.:]"
    r"|^(?:question|answer|q|a) ?\d*:|\bjson (?:object|schema)\b|```|<\|im_|<\/?think>"
    r"|^\s*\{\s*\"(?:question|answer)\"|\[(?:insert|your|name|answer|question)\b",
    re.IGNORECASE,
)
MAX_CHARS = {"question": 1200, "answer": 2400, "choice": 300}
_LETTER = re.compile(r"[^\W_]")
_REPEATED = re.compile(r"(\b.{4,60}?)(?:[\s,.;]+\1){3,}", re.DOTALL)


def refusal(text: str) -> Reason | None:
    """A model that refuses, or speaks of itself."""
    match = _REFUSALS.search(text)
    return Reason("refusal", f"it says {match[0]!r}") if match else None


def meta(text: str) -> Reason | None:
    """Talk about the task, its text or its format, which a reader without them cannot follow."""
    match = _META.search(text)
    return Reason("meta", f"it says {' '.join(match[0].split())[:60]!r}") if match else None


def length(text: str, field: str) -> Reason | None:
    """Texts that are empty, too long, cut off in a loop, or without any letter or digit."""
    if not _LETTER.search(text):
        return Reason("length", f"the {field} is empty")
    most = MAX_CHARS[field]
    if len(text) > most:
        return Reason("length", f"the {field} has {len(text):,} characters, more than {most:,}")
    if field == "question" and len(text.split()) < 2:
        return Reason("length", "the question has one word")
    if match := _REPEATED.search(text):
        return Reason("length", f"{match[1][:40]!r} is repeated over and over")
    return None
