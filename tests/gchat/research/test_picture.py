"""Pictures of research are there whole or not at all."""

import errno

import pytest
from matplotlib.figure import Figure

from gaia.storage import StorageError
from gchat.research import picture
from gchat.research.cells import Result
from gchat.run.folder import write_atomically

CURVE = [[0, 0, 0, 4.0], [50, 1.0, 1.0, 3.0], [100, 2.0, 2.0, 2.0]]


@pytest.fixture
def full(monkeypatch):
    """A disk that is full in the middle of a picture."""

    def half(_figure, path, **_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", half)


def test_a_full_disk_leaves_the_picture_before_and_one_line(tmp_path, full):
    path = tmp_path / "curves.png"
    path.write_bytes(b"whole")
    groups = {"main": [Result("i", "main", "", 1, "done", 2.0, 100, 1.0, 1.0, CURVE)]}
    with pytest.raises(StorageError, match=r"cannot write .*curves.png \(No space left") as told:
        picture.curves(groups, path)
    assert "\n" not in str(told.value)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("curves.png", b"whole")]


def test_text_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "a file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        write_atomically(tmp_path / "a file" / "report.html", "text")


@pytest.mark.parametrize(
    "names", [["main", "idea"], [f"HEAD+{'+'.join([f'part-{i}'] * 12)}" for i in range(8)]]
)
def test_lines_have_room_beside_their_names(tmp_path, names, monkeypatch):
    """Without it, layout gives up with a warning, which is an error here."""
    drawn = []
    monkeypatch.setattr(picture, "save", lambda figure, path: drawn.append(figure))
    groups = {name: [Result("i", name, "", 1, "done", 2.0, 100, 1.0, 1.0, CURVE)] for name in names}
    picture.curves(groups, tmp_path / "curves.png", " against ".join(names), against=names[0])
    (figure,) = drawn
    figure.savefig(tmp_path / "curves.png")
    panels = [place.get_window_extent() for place in figure.axes]  # 100 dots to an inch
    assert len(panels) == 4 and min(panel.width for panel in panels) > 250
    assert min(panel.height for panel in panels) > 200
    assert bool(figure.legends) is (len(names) > 2)
