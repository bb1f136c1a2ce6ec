"""Code keeps the rules of the house, but for a list of debts that only shrinks."""

import ast
import functools
import textwrap

import pytest

import house

measured = functools.cache(house.measure)  # it reads and parses every file


def test_no_rule_is_broken_but_for_known_debts():
    defects = house.defects(measured(), house.debts())
    assert not defects, "mend these (tests/house.py says what they mean):\n" + "\n".join(defects)


def test_no_debt_is_kept_that_is_paid():
    paid = sorted(house.debts().keys() - measured().keys())
    assert not paid, "run `PYTHONPATH=tests python -m house`; these are paid:\n" + "\n".join(paid)


def test_a_debt_may_not_grow():
    assert house.defects({"a": 2, "b": 1}, {"a": 1}) == ["a: 2, allowed 1", "b: 1"]
    assert house.defects({"a": 2}, {"a": 2}) == []


def test_docstrings_and_help_are_read_wherever_they_stand():
    tree = ast.parse(
        textwrap.dedent('''
        """Module."""
        class A:
            """Class."""
            x: int = 0
            """Attribute."""
            def f(self, a: Annotated[int, Option(help="Option.")] = 1):
                """Function."""
                return "no docstring"
        ''')
    )
    read = set(house.texts(tree))
    assert read == {"Module.", "Class.", "Attribute.", "Option.", "Function."}
    assert (
        list(house.stored_names(ast.parse("found = 1\nfor found in x: f(found)"))).count("found")
        == 2
    )


@pytest.mark.parametrize("text", ["Of the shuffle.", "What it is.", "Most ids.", "How: so"])
def test_half_sentences_are_recognised(text):
    assert house.HALF_SENTENCE.match(text)


@pytest.mark.parametrize("text", ["Offers, cheapest first.", "Mostly text.", "Howls."])
def test_whole_words_are_meant(text):
    assert not house.HALF_SENTENCE.match(text)
