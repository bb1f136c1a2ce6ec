"""Rules: what each takes and what it leaves, on texts written for it."""

import numpy as np
import pytest

from gaia.errors import ConfigError
from gchat.data.curation import pii, repetition, shingles, web
from gchat.data.curation.rules import C4, FineWeb, Gopher, Words, repeated_shares
from gchat.data.curation.web import Web

SENTENCE = "The ship of the line sailed with all that it could have carried to the port. "
GOOD = "\n\n".join(SENTENCE * 3 + f"Paragraph {n} ends here." for n in ["one", "two", "three"])


def rule(found):
    return None if found is None else found.rule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, None),
        ("Too short to be of any use to the reader.", "gopher.min_words"),
        ("a b c d of the " * 20, "gopher.min_word_length"),
        ("internationalization characterizations of the " * 20, "gopher.max_word_length"),
        (GOOD.replace("line", "#line #tag"), "gopher.max_symbols"),
        ("\n".join(f"- {SENTENCE}" for _ in range(5)), "gopher.max_bullet_lines"),
        ("\n".join([SENTENCE + "and so on…"] * 5), "gopher.max_ellipsis_lines"),
        ("1234 5678 9012 4711 of the " * 20, "gopher.min_alphabetic"),
        ("ships sail slowly under heavy weather " * 10, "gopher.min_stop_words"),
    ],
)
def test_gopher(text, expected):
    assert rule(Gopher().reason(Words.of(text))) == expected


def test_thresholds_are_options():
    assert rule(Gopher(max_words=20).reason(Words.of(GOOD))) == "gopher.max_words"
    assert Gopher(min_words=5).reason(Words.of("The end of the war came.")) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, None),
        ("", "c4.empty"),
        (GOOD + " Lorem ipsum dolor.", "c4.lorem_ipsum"),
        (GOOD + " if (x) { y }", "c4.curly_brackets"),
        ("One sentence is here. And another one is.", "c4.min_sentences"),
    ],
)
def test_c4_documents(text, expected):
    assert rule(C4().reason(Words.of(text))) == expected


def test_c4_drops_lines_and_says_which():
    text = "\n".join(
        [SENTENCE, "Menu", "Please enable JavaScript now.", "Read our privacy policy here.",
         "x" * 1200 + " is one word", SENTENCE + "[12] It goes on [citation needed]."]
    )  # fmt: skip
    edited, taken = C4().edited(text)
    assert edited == SENTENCE.strip() + "\n" + SENTENCE + " It goes on ."
    assert taken == {
        "c4.short_line": 1, "c4.javascript": 1, "c4.policy": 1, "c4.long_word": 1,
    }  # fmt: skip
    assert C4(terminal_punctuation=True).edited("A line without an end")[1] == {
        "c4.no_punctuation": 1
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, None),
        ("\n".join(["a line of the list without any end to it at all"] * 9), "punctuated"),
        ("\n".join(["Short line."] * 9 + [SENTENCE]), "short"),
        (f"{SENTENCE}\n{GOOD}\n{SENTENCE}\nAnother line that is not short ends here.", "duplicate"),
        ("\n".join(f"Words that no other line has: {n}{n}." for n in range(9)), "newlines"),
    ],
)
def test_fineweb(text, expected):
    found = rule(FineWeb(max_newlines=0.1).reason(Words.of(text)))
    assert (found is None) if expected is None else (expected in found)


def test_repeated_lines_are_counted_once_each():
    assert repeated_shares(["a", "b"]) == (0.0, 0.0)
    assert repeated_shares(["aa", "b", "aa", "aa"]) == (0.5, 4 / 7)


def brute_force_top(words, n):
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    best = [grams.count(g) * len("".join(g)) for g in grams if grams.count(g) > 1]
    return max(best, default=0) / len("".join(words))


def brute_force_repeated(words, n):
    seen, covered = set(), set()
    for i in range(len(words) - n + 1):
        gram = tuple(words[i : i + n])
        if gram in seen:
            covered |= set(range(i, i + n))
        seen.add(gram)
    return sum(len(words[i]) for i in covered) / len("".join(words))


def test_ngram_shares_equal_counting_by_hand():
    rng = np.random.default_rng(0)
    documents = [
        " ".join(rng.choice(["up", "down", "left", "right", "on"][: 2 + i % 4], 5 + 3 * i))
        for i in range(40)
    ] + ["one", "", "one two"]
    h = shingles.hashed(documents)
    for n in (2, 3, 5, 8):
        top, repeated = repetition.top(h, n), repetition.repeated(h, n)
        for i, document in enumerate(documents):
            if words := document.split():
                assert top[i] == pytest.approx(brute_force_top(words, n)), (n, document)
                assert repeated[i] == pytest.approx(brute_force_repeated(words, n)), (n, document)
            else:
                assert top[i] == repeated[i] == 0


def test_repetition_names_the_first_rule_broken():
    texts = [GOOD, SENTENCE * 9, "\n".join([SENTENCE] * 5), "the cat sat. " * 30]
    found = repetition.Repetition().reasons([Words.of(t) for t in texts], shingles.hashed(texts))
    assert rule(found[2]) == "repetition.lines"
    assert rule(found[1]).startswith("repetition.repeated") or "top" in rule(found[1])
    assert rule(found[3]) == "repetition.top_2_grams"
    different = ["No two sentences here are alike, nor do they share their words with one another."]
    alone = repetition.Repetition().reasons([Words.of(different[0])], shingles.hashed(different))
    assert alone == [None]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The end of the war was not what it had been for them and their sons.", "en"),
        ("Das Ende des Krieges war für sie nicht das, was es mit der Zeit auf sich hat.", "de"),
        ("La fin de la guerre est pour eux ce que les autres ne sont pas dans le monde.", "fr"),
        ("El fin de la guerra no es para los que en el mundo se quedan con las manos.", "es"),
        ("Конец войны был не таким", "ru"),
        ("戦争の終わりはこうだった", "ja"),
        ("战争的结束", "zh"),
        ("kb 42 xx", ""),
    ],
)
def test_languages_are_told_apart(text, language):
    assert web.guess(Words.of(text))[0] == language


def test_web_rules(tmp_path):
    blocked = tmp_path / "domains.txt"
    blocked.write_text("spam.example  # a comment\nwww.ads.example\n")
    rules = Web(languages=("en",), blocked_domains=str(blocked))
    rules.check()
    domains = rules.domains()

    def found(text, **meta):
        return rule(rules.reason(Words.of(text), meta, domains))

    assert found(GOOD, url="https://good.example/spam.example") is None
    assert found(GOOD, url="https://deep.spam.example/x") == "url.blocked"
    assert found(GOOD, url="ads.example/x") == "url.blocked"
    assert found(GOOD, url="https://xxx-videos.example/") == "url.adult"
    assert found("Das ist nicht der Ort für die Leute und das Haus.") == "language.de"
    assert found(GOOD, language="fr") == "language.fr"
    assert found("Das ist nicht der Ort.", language="en-GB") is None
    with pytest.raises(ConfigError, match="languages = \\['xx'\\] unknown"):
        Web(languages=("xx",)).check()


def test_pii_is_marked_and_numbers_that_name_nobody_stay():
    text = (
        "Write to jane.doe+x@mail.example.org or call +49 30 1234567 or (555) 123-4567, "
        "card 4111 1111 1111 1111, account DE89 3704 0044 0532 0130 00, host 8.8.8.8, "
        "number 078-05-1120."
    )
    scrubbed, found = pii.scrub(text)
    assert scrubbed == (
        "Write to <EMAIL> or call <PHONE> or <PHONE>, card <CARD>, account <IBAN>, host <IP>, "
        "number <SOCIAL>."
    )
    assert found == {
        "pii.email": 1, "pii.phone": 2, "pii.card": 1, "pii.iban": 1, "pii.ip": 1, "pii.social": 1,
    }  # fmt: skip
    for harmless in (
        "On 6 June 1944 about 156,000 men landed; version 1.2.3, host 192.168.0.1.",
        "pi is 3.14159265358979, 4111111111111112 is no card, see 1939-1945 and page 123-45.",
        "The years 1941 1942 1943 1944 1945 and DE00 0000 0000 0000 00.",
    ):
        assert pii.scrub(harmless)[0] == harmless
