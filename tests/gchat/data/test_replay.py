"""The inputs that once failed, replayed: all of a folder of cases where one is there."""

import os
from pathlib import Path

import pytest

import replay_data_cases as cases

ROOT = Path(__file__).parents[3]
CASES = Path(os.environ.get("GAIA_DATA_CASES", ROOT.parent / "shared" / "cases" / "data"))


def test_every_case_of_the_folder_is_right_now():
    if not (CASES / "README.md").is_file():
        pytest.skip("needs ../shared/cases/data, or a folder named by GAIA_DATA_CASES")
    rows = list(cases.replay(CASES))
    assert len(rows) >= len(cases.CHECKS)
    assert [row for row in rows if not row.ok] == []


def test_a_case_without_a_check_is_said(tmp_path, capsys):
    (tmp_path / "README.md").write_text("# Inputs\n\n- `new.jsonl`: fails somehow\n")
    assert cases.table(tmp_path) == 1
    assert "| new.jsonl | fails somehow | no check for it | NO |" in capsys.readouterr().out
