"""The offline corpus: docstrings by ast, nothing imported, a fixed order."""

import hashlib
import sys

from gchat.data.sources import docs

LONG = "This sentence stands in for documentation that is worth reading. " * 4


def test_docstrings_are_found_where_python_keeps_them():
    source = f'''
"""{LONG} module"""
raise SystemExit("imported")
if True:
    class A:
        r"""{LONG} class"""
        async def f(self):
            """{LONG} method

                indented
            """
            def inner(): """{LONG} inner"""
x = """{LONG} no docstring"""
def short(): """Too short."""
'''
    found = docs._of_source(source.encode())
    assert [text.split()[-1] for text in found] == ["module", "class", "indented", "inner"]
    assert found[2].endswith("method\n\nindented")
    assert all(docs._LONG_STRING.search(f'"""{text}"""'.encode()) for text in found)


def test_unreadable_sources_are_passed_over(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text(f'def broken(:\n    """{LONG}"""\n')
    surrogate = tmp_path / "surrogate.py"
    surrogate.write_text(f'"""{LONG} \\ud800"""\n')
    found = docs._docstrings([bad, tmp_path / "missing.py", surrogate])
    assert found == [LONG + " ?"]


def test_help_topics_are_read_and_everything_comes_once(monkeypatch):
    topics = [file for file in docs.files() if file.name == "topics.py"]
    some = sorted(docs.files())[:12] + topics
    monkeypatch.setattr(docs, "files", lambda: [*some, *some])
    before = set(sys.modules)
    found = list(docs.documents(processes=1))
    assert set(sys.modules) == before
    assert any("Yield expressions" in text for text in found)
    assert len(found) > 60
    assert len({hashlib.sha256(text.encode()).digest() for text in found}) == len(found)
    assert all(len(text) > 150 for text in found)
    assert found == list(docs.documents(processes=1))


def test_the_corpus_is_large_enough_and_independent_of_test_tools():
    names = {line.split()[0] for line in docs.versions()}
    assert {"python", "jax", "numpy"} <= names
    assert not {"pytest", "hypothesis", "ruff", "pyright"} & names
    files = docs.files()
    assert len(files) == len(set(files)) > 2000
    assert not [file for file in files if {"test", "tests"} & set(file.parts[-3:-1])]
    # 16 MB of text come from about 75 MB of source (parsing it all takes too long for a test).
    assert sum(file.stat().st_size for file in files if file.exists()) > 40e6
