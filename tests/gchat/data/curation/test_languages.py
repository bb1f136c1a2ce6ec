"""Languages by identity, and scripts without spaces under the documented settings."""

import json

import pytest

from gaia.errors import ConfigError
from gchat.data import languages
from gchat.data.curation import scripts
from gchat.data.curation.curate import curate
from gchat.data.curation.options import Options
from gchat.data.curation.repetition import Repetition
from gchat.data.curation.rules import C4, FineWeb, Gopher, Words
from gchat.data.curation.shingles import hashed
from gchat.data.curation.web import Web, guess

# From the Universal Declaration of Human Rights.
TEXTS = {
    "zh": "鉴于对人类家庭所有成员的固有尊严及其平等的和不移的权利的承认，"
    "乃是世界自由、正义与和平的基础。"
    "鉴于对人权的无视和侮蔑已发展为野蛮暴行，这些暴行玷污了人类的良心。\n"
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。"
    "人人有资格享有本宣言所载的一切权利和自由。人人有权享有生命、自由和人身安全。\n"
    "任何人不得使为奴隶或奴役。一切形式的奴隶制度和奴隶买卖，均应予以禁止。任何人不得加以酷刑。",
    "ja": "すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。"
    "人間は、理性と良心とを授けられており、互いに同胞の精神をもって行動しなければならない。\n"
    "すべて人は、生命、自由及び身体の安全に対する権利を有する。何人も、奴隷にされ、又は苦役に服することはない。"
    "奴隷制度及び奴隷売買は、いかなる形においても禁止する。何人も、拷問を受けることはない。\n"
    "すべて人は、いかなる場所においても、法の下において、人として認められる権利を有する。",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ "
    "ต่างมีเหตุผลและมโนธรรม และควรปฏิบัติต่อกันด้วยเจตนารมณ์แห่งภราดรภาพ\n"
    "ทุกคนย่อมมีสิทธิและอิสรภาพทั้งปวงตามที่กำหนดไว้ในปฏิญญานี้ โดยปราศจากความแตกต่างไม่ว่าชนิดใด\n"
    "คนทุกคนมีสิทธิในการดำรงชีวิต เสรีภาพ และความมั่นคงแห่งตัวตน บุคคลใดจะตกอยู่ในความเป็นทาส",
}


@pytest.mark.parametrize("language", TEXTS)
def test_texts_of_scripts_without_spaces_stay(language):
    """Under the setting that the documentation names for other languages, and no other."""
    d = Words.of(TEXTS[language])
    assert d.unspaced
    assert guess(d)[0] == language
    edited, taken = C4().edited(d.text)
    assert (edited, dict(taken)) == (d.text, {})
    for reason in (C4().reason(d), Gopher(min_stop_words=0).reason(d), FineWeb().reason(d)):
        assert reason is None
    assert Repetition().reasons([d], hashed([d.text])) == [None]


@pytest.mark.parametrize("language", TEXTS)
def test_and_their_scraps_go(language):
    assert C4().reason(Words.of(TEXTS[language][:12])).rule == "c4.min_sentences"
    assert (
        Gopher(min_stop_words=0).reason(Words.of(TEXTS[language][:40])).rule == "gopher.min_words"
    )
    assert C4().edited(TEXTS[language][:3])[1] == {"c4.short_line": 1}


def test_spaced_text_has_the_words_it_always_had():
    text = "Ein Wort, zwei Wörter: “drei”… und Größe\n ünd"
    assert scripts.words(text) == (text.split(), False)
    mixed, unspaced = scripts.words("The word 世界自由 is Chinese.")
    assert mixed == ["The", "word", "世界", "自由", "is", "Chinese."] and not unspaced
    assert scripts.count_sentences('He said "no." Then. he went! 3.14 is pi') == 3


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("en", "en"), ("eng", "en"), ("English", "en"), ("en-US", "en"), ("eng_Latn", "en"),
        ("est_Latn", "et"), ("ekk_Latn", "et"), ("est", "et"), ("spa", "es"), ("ger", "de"),
        ("deu", "de"), ("jpn_Jpan", "ja"), ("cmn_Hani", "zh"), ("zh-Hant", "zh"), ("Spanish", "es"),
        ("Scottish Gaelic", "gd"), ("gsw", "gsw"), ("gsw_Latn", "gsw"), ("nob", "nb"), ("", ""),
    ],
)  # fmt: skip
def test_a_language_has_one_identity(given, code):
    assert languages.identity(given) == code
    assert not given or languages.is_language(given)


def test_the_table_is_that_of_iso_639_1():
    codes = languages._codes()
    two = {code for code in codes if len(code) == 2}
    assert len(two) == 183 and set(codes.values()) == two
    for entry in languages._TABLE.replace("\n", "").split("|"):
        first, second, *_ = entry.split(" ")
        assert (len(first), len(second)) == (2, 3)
    assert not any(map(languages.is_language, ("xx", "klingon", "e", "12", "engl")))


def test_languages_are_kept_by_identity(tmp_path):
    wanted = ("es", "pt", "pl", "sv", "ja", "tr", "no")
    fields = ["spa_Latn", "por_Latn", "pol_Latn", "swe_Latn", "jpn_Jpan", "tur_Latn", "Spanish",
              "nob_Latn", "est_Latn", "eng"]  # fmt: skip
    lines = [json.dumps({"text": f"text {i}", "language": f}) for i, f in enumerate(fields)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    report = curate(
        Options(out=tmp_path / "out", input=str(tmp_path / "a.jsonl"), workers=1, rules=("web",),
                web=Web(languages=wanted)), progress=False,
    )  # fmt: skip
    assert {r["rule"]: r["documents"] for r in report["removed"]} == {
        "language.et": 1, "language.en": 1,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"languages = \['klingon'\] unknown"):
        Web(languages=("en", "klingon")).check()
