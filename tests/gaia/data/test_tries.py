"""Rows as tries: every request finds its own sequence again, and nothing else, from `ends`."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia.data import tries
from gaia.data.batch import IGNORE
from gaia.data.tries import Request

SEQ_LEN = 48
LENGTHS = [32, 64, 96]


def laid(requests, lengths=LENGTHS, seq_len=SEQ_LEN):
    """Every row of the requests, laid out alone."""
    rows = tries.pack(tries.units(requests, seq_len, lengths[-1]), lengths)
    return [tries.lay_out([row], 2, row.length) for row in rows]


def seen(rows, t):
    """Tokens that position t of the first row sees, and their positions, by the rule of a trie."""
    visible = [s for s in range(t + 1) if t < rows.ends_BR[0, s]]
    return rows.inputs_BR[0, visible], rows.positions_BR[0, visible]


def of(number, tokens, scored=1):
    return Request(number, np.array(tokens, np.int32), scored)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_each_target_is_predicted_from_its_own_sequence(data):
    beginnings = data.draw(st.lists(st.lists(st.integers(0, 2), max_size=40), min_size=1))
    requests = []
    for number in range(data.draw(st.integers(1, 12))):
        rest = data.draw(st.lists(st.integers(0, 2), min_size=2, max_size=8))
        tokens = (data.draw(st.sampled_from(beginnings)) + rest)[-SEQ_LEN:]
        requests.append(of(number, tokens, data.draw(st.integers(1, len(tokens) - 1))))
    found = []
    for rows in laid(requests):
        assert rows.tokens <= rows.inputs_BR.shape[1]
        for number, first, count in rows.owners[0]:
            request = requests[number]
            begin = len(request.tokens) - request.scored
            for j in range(count):
                tokens, positions = seen(rows, rows.at_BM[0, first + j])
                assert tokens.tolist() == request.tokens[: begin + j].tolist()
                assert positions.tolist() == list(range(begin + j))
                assert rows.targets_BM[0, first + j] == request.tokens[begin + j]
            assert count == request.scored
            found.append(number)
        assert (rows.targets_BM[0, rows.targets :] == IGNORE).all()
        for t in range(rows.tokens, rows.inputs_BR.shape[1]):  # padding sees itself only
            assert len(seen(rows, t)[0]) == 1
    assert sorted(found) == list(range(len(requests)))


def test_answers_share_their_prompt_and_shared_answers_lie_once():
    prompt = list(range(3, 30))
    answers = [[1, 1, 1], [1, 1, 2], [2], [1, 1, 1]]
    requests = [of(n, prompt + answer, len(answer)) for n, answer in enumerate(answers)]
    (rows,) = laid(requests)
    assert rows.tokens == len(prompt) + 2  # "1 1", after which all last tokens are targets only
    assert rows.targets == 3 + 3 + 1 + 3


def test_prompts_that_share_an_example_are_tied_where_a_row_has_room():
    example = list(range(100, 140))
    requests = [of(0, [*example, 1, 2]), of(1, [*example, 2, 2])]
    assert [rows.tokens for rows in laid(requests)] == [42]
    far = [of(0, [1, 2, 3, 4]), of(1, [1, 5, 6, 7, 8, 9, 10])]  # one token in common
    units = tries.units(far, SEQ_LEN, LENGTHS[-1])
    assert [unit.size for unit in units] == [3, 6]


def test_lengths_of_rows():
    assert tries.row_lengths(32) == [256]
    assert tries.row_lengths(512) == [256, 384, 512, 768, 1024]
    assert tries.row_lengths(1000, 16) == [256, 384, 512, 768, 1008, 1024, 1536, 2000]
