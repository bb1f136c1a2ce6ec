"""The runs that once went wrong, replayed: all of a folder of cases where one is there."""

import os
from pathlib import Path

import pytest

import replay_trainer_cases as cases

ROOT = Path(__file__).parents[3]
CASES = Path(os.environ.get("GAIA_TRAINER_CASES", ROOT.parent / "shared" / "cases" / "trainer"))


@pytest.mark.slow
def test_every_case_of_the_folder_is_right_now():
    if not CASES.is_dir():
        pytest.skip("needs ../shared/cases/trainer, or a folder named by GAIA_TRAINER_CASES")
    rows = list(cases.replay(CASES))
    assert {row.case for row in rows} >= set(cases.CHECKS)
    assert [row for row in rows if not row.ok] == []


def test_a_case_without_a_check_is_said(tmp_path, capsys):
    (tmp_path / "99_new").mkdir()
    (tmp_path / "99_new/README.md").write_text("fails\nsomehow")
    assert cases.table(tmp_path) == 1
    assert "| 99_new | fails somehow | no check for it | NO |" in capsys.readouterr().out
