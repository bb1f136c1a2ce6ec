"""Text as it streams: whole characters, nothing of a stop text, the same text in the end."""

from hypothesis import given
from hypothesis import strategies as st

from gchat.engine.text import TextStream


def streamed(data: bytes, stops=()):
    """(pieces, stop text) of a stream of single bytes."""
    stream = TextStream(bytes, stops)
    pieces = []
    for byte in data:
        pieces.append(stream.add(byte))
        if stream.stopped_by is not None:
            break
    return [*pieces, stream.end()], stream.stopped_by


@given(st.text(max_size=40))
def test_pieces_are_whole_characters_that_join_to_the_text(text):
    pieces, _ = streamed(text.encode())
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(st.binary(max_size=40))
def test_broken_bytes_come_out_as_decode_gives_them(data):
    assert "".join(streamed(data)[0]) == data.decode("utf-8", "replace")


@given(
    st.text(alphabet="abé", max_size=30),
    st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3),
)
def test_a_stop_text_never_shows_not_even_in_part(text, stops):
    pieces, stopped_by = streamed(text.encode(), stops)
    shown = "".join(pieces)
    # The stop that is complete first ends the text; before it nothing is missing.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert shown == text and stopped_by is None
        return
    read = text[: min(ends)]
    assert stopped_by in stops and read.endswith(stopped_by)
    assert shown == read[: min(read.find(stop) for stop in stops if stop in read)]
