"""Prompt styles: their files are checked, windows get those that fit, questions differ."""

from pathlib import Path

import pytest

from gaia.errors import ConfigError
from gchat.synth import corpus, offline, styles
from gchat.synth.facts import Facts
from gchat.synth.filters.support import support
from gchat.synth.windows import Window, windows
from gchat.synth.yields import same_questions

ARTICLES = Path(__file__).parents[2] / "fixtures/synth/articles.md"
GOOD = """group: mine
styles:
  when:
    needs: {date: 1}
    ask: Ask when it was.
    pick: date
    question: "When? {blank}"
    answer: "{value}"
"""


@pytest.fixture(scope="module")
def made():
    return [w for a in corpus.articles([str(ARTICLES)]) for w in windows(a)]


def test_seventy_styles_and_more_ship_with_gchat():
    listed = styles.load()
    assert len(listed) >= 70 and len({s.group for s in listed.values()}) >= 6
    for text in ("question", "ask"):
        assert len({getattr(s, text) for s in listed.values()}) == len(listed)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("    needs: {date: 1}\n", ""), "style 'when': needs is missing"),
        (("date: 1", "dates: 0"), "needs.dates is 0"),
        (("date: 1", "dat: 1"), "needs.dat is unknown; did you mean 'date'?"),
        (("{value}", "{valeu}"), "answer names {valeu}; did you mean 'value'?"),
        (("{blank}", "{wrong}"), "question names {wrong}"),
        (("{blank}", "{blank"), "question cannot be read"),
        (("pick: date", "pick: day"), "pick is 'day'"),
        (("    pick", "    piick"), "'piick' is no field of a style; did you mean 'pick'?"),
        (("ask: Ask when it was.", "ask: [1]"), "ask is [1]; give a str"),
        (("  when:", "  yes:"), "style True: name is no text"),
        (("group: mine\n", ""), "group is None"),
        (("group: mine", "group: [mine"), "line 2"),
        (("styles:", "stiles:"), "styles is missing"),
    ],
)
def test_a_wrong_file_is_one_line_with_file_style_and_field(tmp_path, change, named):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    assert list(styles.load([str(path)])) == ["when"]
    other = tmp_path / "other.yaml"
    other.write_text(GOOD.replace(*change))
    with pytest.raises(ConfigError) as error:
        styles.load([str(other)])
    text = str(error.value)
    assert "other.yaml" in text and named in text and "\n" not in text


def test_a_style_that_its_file_names_twice_is_refused(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("group: own\nstyles:\n  when: a\n  when: b\n")
    with pytest.raises(ConfigError, match="line 4: the key 'when' is given twice"):
        styles.load([str(file)])


def test_styles_of_one_name_in_two_files_are_refused(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match="'when' is defined twice"):
        styles.load([str(tmp_path)])


def test_styles_are_chosen_by_name_or_group():
    known = styles.load()
    assert set(styles.chosen(known, ["gaps", "when"])) == {
        *(name for name, s in known.items() if s.group == "gaps"), "when",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="did you mean 'when'"):
        styles.chosen(known, ["wen"])


def test_a_window_gets_the_styles_that_it_has_facts_for():
    plain = Window("a", "", 0, 0, ("It was cold and everybody was hungry.",))
    fitting = {s.name for s in styles.load().values() if s.fits(Facts(plain).counts)}
    assert {"what-said", "true-statement", "topic"} <= fitting
    assert not fitting & {"when", "who", "how-many", "what-next", "why"}
    dated = Window("a", "", 0, 0, ("Erwin Rommel said in 1942 that 300 men were lost in Tunis.",))
    fitting = {s.name for s in styles.load().values() if s.fits(Facts(dated).counts)}
    assert {"when", "who", "how-many", "where", "who-acted"} <= fitting
    assert offline.write(dated, list(styles.load().values())).keys() <= fitting


def test_no_two_styles_ask_the_same_and_every_answer_is_grounded(made):
    records = []
    others = {"person": ["Ivan Konev"], "place": ["Minsk"], "event": ["Operation Bagration"]}
    listed = list(styles.load().values())
    for window in made:
        source = f"{window.title}\n{window.text}"
        for name, row in offline.write(window, listed, others).items():
            style = styles.load()[name]
            reason = support(source, row["question"], row["answer"], wrong=style.wrong)
            assert reason is None, (name, row, reason)
            records.append({"kind": "qa", "style": name, "source": {"window": window.id}, **row})
    used = {r["style"] for r in records}
    assert len(used) >= 70
    shares = same_questions(records)
    worst = max(shares, key=shares.__getitem__)
    assert shares[worst] <= 0.05, (worst, shares[worst])
    # The measure sees two styles that ask alike.
    twice = records + [{**r, "style": "copy"} for r in records if r["style"] == "when"]
    assert same_questions(twice)["copy", "when"] == 1.0


def test_offline_records_are_the_same_in_every_run(made):
    listed = list(styles.load().values())
    assert [offline.write(w, listed) for w in made] == [offline.write(w, listed) for w in made]
    few = offline.write(made[0], listed[:5])  # a style's record does not depend on the others
    assert few.items() <= offline.write(made[0], listed).items()
