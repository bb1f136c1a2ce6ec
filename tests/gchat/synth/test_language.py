"""The language filter: planted texts, its profiles, and what it says of a record."""

import pytest

import synth_texts as texts
from gaia.errors import ConfigError
from gchat.synth.filters.checks import Settings, of_record
from gchat.synth.filters.language import Checker

LENINGRAD = "Siege of Leningrad\nGeorgy Zhukov took over the defence in September 1941."


@pytest.fixture(scope="module")
def default():
    return Checker("en")


@pytest.fixture(scope="module")
def seed():
    return Checker("en", "seed")


def test_nothing_foreign_leaks_through_the_default_profile(default):
    assert [text for text in texts.FOREIGN if default.reason(text) is None] == []


def test_the_default_profile_kills_less_than_one_in_a_hundred_good_texts(default):
    killed = [(text, default.reason(text)) for text in texts.GOOD if default.reason(text)]
    assert len(texts.GOOD) >= 90 and len(killed) < len(texts.GOOD) / 100, killed


def test_the_seed_profile_is_as_its_author_wrote_it(seed):
    """Lingua with English and Chinese, exactly 1.0, and a scan of U+4E00–U+9FFF."""
    assert seed.reason("The siege began in September and lasted for nine hundred days.") is None
    for text in (*texts.CHINESE, *texts.ONE_HANZI):
        assert seed.reason(text) is not None
    for edge, killed in (("一", True), ("鿿", True), ("ꀀ", False), ("䷿", False)):
        reason = seed.reason(f"The siege began {edge} in September of that long year.")
        assert (reason is not None and "U+4E00" in reason.why) == killed
    # What it gets wrong: numbers go, German and katakana inside of English stay.
    assert seed.reason("1944").why == "confidence of English is 0.000, not 1.0"
    assert seed.reason("Die Schlacht begann im August 1942.") is None
    assert seed.reason("The パウルス Army surrendered.") is None


def test_words_of_the_source_are_not_judged_and_scripts_always_are(default):
    german = "Die Wacht am Rhein"
    assert default.reason(f"{german} ist ein Lied") is not None
    assert default.reason(german, source=f"They sang {german} again.") is None
    assert default.reason("第六", source="第六 Army").filter == "language"


def test_other_languages_can_be_asked_for():
    german = Checker("German")
    assert [t for t in texts.GERMAN if german.reason(t)] == []
    wrong = [t for t in texts.ENGLISH if len(t.split()) > 5 and german.reason(t) is None]
    assert wrong == []
    with pytest.raises(ConfigError, match="English only"):
        Checker("de", "seed")
    with pytest.raises(ConfigError, match="not among those told apart"):
        Checker("gsw")


def test_a_records_phase_and_reason_are_named():
    record = {"question": "Who took over the defence?", "answer": "朱可夫", "choices": ["a b"]}
    phase, reason = of_record(record, LENINGRAD, Settings())
    assert (phase, reason.filter) == ("answer", "language") and "U+6731" in reason.why
