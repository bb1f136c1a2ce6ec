"""Languages by their ISO 639 identity: two and three letters, with a script, or by English name.

The table is ISO 639-1 with its 639-2 codes (both, where terminology and bibliography differ) from
https://www.loc.gov/standards/iso639-2/php/code_list.php; below it are the ISO 639-3 members of
macrolanguages that corpora use as codes (https://iso639-3.sil.org/code_tables/macrolanguage_mappings).
"""

import functools

_TABLE = """
aa aar Afar|ab abk Abkhazian|ae ave Avestan|af afr Afrikaans|ak aka Akan|am amh Amharic|
an arg Aragonese|ar ara Arabic|as asm Assamese|av ava Avaric|ay aym Aymara|az aze Azerbaijani|
ba bak Bashkir|be bel Belarusian|bg bul Bulgarian|bi bis Bislama|bm bam Bambara|bn ben Bengali|
bo bod tib Tibetan|br bre Breton|bs bos Bosnian|ca cat Catalan|ce che Chechen|ch cha Chamorro|
co cos Corsican|cr cre Cree|cs ces cze Czech|cu chu Church Slavic|cv chv Chuvash|cy cym wel Welsh|
da dan Danish|de deu ger German|dv div Dhivehi|dz dzo Dzongkha|ee ewe Ewe|el ell gre Greek|
en eng English|eo epo Esperanto|es spa Spanish|et est Estonian|eu eus baq Basque|fa fas per Persian|
ff ful Fulah|fi fin Finnish|fj fij Fijian|fo fao Faroese|fr fra fre French|fy fry Western Frisian|
ga gle Irish|gd gla Scottish Gaelic|gl glg Galician|gn grn Guarani|gu guj Gujarati|gv glv Manx|
ha hau Hausa|he heb Hebrew|hi hin Hindi|ho hmo Hiri Motu|hr hrv Croatian|ht hat Haitian|
hu hun Hungarian|hy hye arm Armenian|hz her Herero|ia ina Interlingua|id ind Indonesian|
ie ile Interlingue|ig ibo Igbo|ii iii Sichuan Yi|ik ipk Inupiaq|io ido Ido|is isl ice Icelandic|
it ita Italian|iu iku Inuktitut|ja jpn Japanese|jv jav Javanese|ka kat geo Georgian|kg kon Kongo|
ki kik Kikuyu|kj kua Kuanyama|kk kaz Kazakh|kl kal Kalaallisut|km khm Khmer|kn kan Kannada|
ko kor Korean|kr kau Kanuri|ks kas Kashmiri|ku kur Kurdish|kv kom Komi|kw cor Cornish|
ky kir Kyrgyz|la lat Latin|lb ltz Luxembourgish|lg lug Ganda|li lim Limburgish|ln lin Lingala|
lo lao Lao|lt lit Lithuanian|lu lub Luba-Katanga|lv lav Latvian|mg mlg Malagasy|
mh mah Marshallese|mi mri mao Maori|mk mkd mac Macedonian|ml mal Malayalam|mn mon Mongolian|
mr mar Marathi|ms msa may Malay|mt mlt Maltese|my mya bur Burmese|na nau Nauru|
nb nob Norwegian Bokmål|nd nde North Ndebele|ne nep Nepali|ng ndo Ndonga|nl nld dut Dutch|
nn nno Norwegian Nynorsk|no nor Norwegian|nr nbl South Ndebele|nv nav Navajo|ny nya Chichewa|
oc oci Occitan|oj oji Ojibwa|om orm Oromo|or ori Odia|os oss Ossetian|pa pan Punjabi|pi pli Pali|
pl pol Polish|ps pus Pashto|pt por Portuguese|qu que Quechua|rm roh Romansh|rn run Rundi|
ro ron rum Romanian|ru rus Russian|rw kin Kinyarwanda|sa san Sanskrit|sc srd Sardinian|
sd snd Sindhi|se sme Northern Sami|sg sag Sango|si sin Sinhala|sk slk slo Slovak|sl slv Slovenian|
sm smo Samoan|sn sna Shona|so som Somali|sq sqi alb Albanian|sr srp Serbian|ss ssw Swati|
st sot Southern Sotho|su sun Sundanese|sv swe Swedish|sw swa Swahili|ta tam Tamil|te tel Telugu|
tg tgk Tajik|th tha Thai|ti tir Tigrinya|tk tuk Turkmen|tl tgl Tagalog|tn tsn Tswana|to ton Tonga|
tr tur Turkish|ts tso Tsonga|tt tat Tatar|tw twi Twi|ty tah Tahitian|ug uig Uyghur|uk ukr Ukrainian|
ur urd Urdu|uz uzb Uzbek|ve ven Venda|vi vie Vietnamese|vo vol Volapük|wa wln Walloon|wo wol Wolof|
xh xho Xhosa|yi yid Yiddish|yo yor Yoruba|za zha Zhuang|zh zho chi Chinese|zu zul Zulu
"""
_MEMBERS = {
    "als": "sq", "arb": "ar", "azj": "az", "cmn": "zh", "ekk": "et", "gaz": "om", "khk": "mn",
    "kmr": "ku", "lvs": "lv", "npi": "ne", "ory": "or", "pbt": "ps", "pes": "fa", "plt": "mg",
    "swh": "sw", "uzn": "uz", "ydd": "yi", "zsm": "ms",
}  # fmt: skip
_NORWEGIAN = ("nb", "nn")  # a macrolanguage whose members have two letters of their own


@functools.cache
def _codes() -> dict[str, str]:
    """The two-letter code of every other code and name, in lower case."""
    known = dict(_MEMBERS)
    for entry in _TABLE.replace("\n", "").split("|"):
        two, *others = entry.split(" ")
        codes = [code for code in others if len(code) == 3 and code.islower()]
        name = " ".join(others[len(codes) :])
        known |= dict.fromkeys((two, *codes, name.lower()), two)
    return known


def identity(given: str) -> str:
    """One code for a language however it is written; empty where nothing is.

    `en`, `eng`, `en-US`, `eng_Latn` and `English` are "en"; a language without a code of two
    letters keeps its three ("gsw"), never the first two of them.
    """
    text = given.strip().lower()
    known = _codes()
    return known.get(text) or known.get(code := text.replace("_", "-").split("-")[0]) or code


def is_language(given: str) -> bool:
    """True for a code or name of the table, and for three letters, which ISO 639-3 may know."""
    code = identity(given)
    return code in _codes().values() or (len(code) == 3 and code.isalpha() and code.isascii())


def is_language_code(given: str) -> bool:
    """True for a two-letter code, alone or with a variant: "fr", "zh-yue"."""
    code = given.strip().lower().split("-")[0]
    return len(code) == 2 and code in _codes()


def belongs(language: str, wanted: frozenset[str]) -> bool:
    """True where an identity is one of those wanted, or a part of Norwegian where that is."""
    return language in wanted or (language in _NORWEGIAN and "no" in wanted)
