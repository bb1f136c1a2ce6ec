"""Names of folders: whole where they fit, and never shared."""

import pytest

from gchat.research.folder_name import MOST, folder_name


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("main", "main"),
        ("+relu2+smear", "+relu2+smear"),
        ("feature/x", "feature%2Fx"),
        ("..", ".."),
        ("a" * MOST, "a" * MOST),
    ],
)
def test_a_name_that_fits_stays(name, folder):
    assert folder_name(name) == folder


def test_long_names_fit_and_stay_apart(tmp_path):
    """Leaving one idea out of seven gives eight names that begin alike."""
    ideas = [f"idea-number-{i}" for i in range(24)]
    names = ["+".join(one for one in ideas if one != out) for out in (None, *ideas)]
    names += ["é" * 100, "é" * 101, "-vs-".join(names)]
    folders = {folder_name(name) for name in names}
    assert len(folders) == len(names)
    for folder in folders:
        (tmp_path / folder).mkdir()
        (tmp_path / f"{folder}.{'x' * 80}").touch()
