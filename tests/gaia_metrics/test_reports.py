"""The table of public reports names tests that exist."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_row_names_tests_that_exist():
    rows = [line for line in (HERE / "reports.md").read_text().splitlines() if line[:2] == "| "]
    rows = [row for row in rows if not row.startswith(("| report |", "| feature |"))]
    assert len(rows) > 45
    for row in rows:
        named = re.findall(r"`(test_\w+)\.(test_\w+)`", row)
        assert named, row
        for module, test in named:
            assert f"def {test}(" in (HERE / f"{module}.py").read_text(), (module, test)
