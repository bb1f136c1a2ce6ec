"""The filters of one record, run on every text of it as soon as it is there."""

import functools
from dataclasses import dataclass
from typing import Any

from gchat.synth.filters import speech
from gchat.synth.filters.language import Checker, Profile
from gchat.synth.filters.reason import Reason
from gchat.synth.filters.support import support


@dataclass(frozen=True)
class Settings:
    """Choices that the filters of a record depend on."""

    language: str = "en"
    profile: Profile = "default"

    def check(self) -> None:
        """Raises ConfigError where the profile cannot judge the language."""
        checker(self.language, self.profile)


@functools.cache
def checker(language: str, profile: Profile) -> Checker:
    """The language filter, whose models are loaded once."""
    return Checker(language, profile)


def of_text(text: str, field: str, settings: Settings, source: str = "") -> Reason | None:
    """The first filter that one text of a record does not pass."""
    return (
        speech.length(text, field)
        or speech.refusal(text)
        or speech.meta(text)
        or checker(settings.language, settings.profile).reason(text, source)
    )


def of_record(
    record: dict[str, Any], source: str, settings: Settings, *, wrong: bool = False
) -> tuple[str, Reason] | None:
    """(phase, reason) of the first filter that a record does not pass; None for a good one."""
    for field, text in texts(record):
        if reason := of_text(text, field, settings, source):
            return field, reason
    if reason := support(source, record["question"], record["answer"], wrong=wrong):
        return "answer", reason
    return None


def texts(record: dict[str, Any]) -> list[tuple[str, str]]:
    """(field, text) of everything that was written for a record."""
    fields = [(name, str(record[name])) for name in ("question", "answer") if name in record]
    return fields + [("choice", str(choice)) for choice in record.get("choices", ())]
