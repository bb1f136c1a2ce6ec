"""Every command that the READMEs and docs pages show is taken by its program as it is written."""

import pytest

import documented
import run_elsewhere
from documented import Command


def test_pages_are_read():
    every = documented.commands()
    assert {"README.md", "gchat/README.md", "gml/README.md", "docs/plan.md"} <= {
        c.page for c in every
    }
    assert sum(c.exact for c in every) > 40


@pytest.mark.parametrize("page", sorted({c.page for c in documented.commands()}))
def test_every_command_of_a_page_is_understood(page, monkeypatch, tmp_path):
    monkeypatch.setenv("GML_HOME", str(tmp_path))
    wrong = []
    for command in documented.commands():
        if command.page == page:
            try:
                documented.parse(command)
            except AssertionError as error:
                wrong.append(str(error))
    assert not wrong, "\n".join(wrong)


def test_every_command_runs_in_a_test():
    """In the slow test of its page, or where `run_elsewhere.py` says."""
    for command in documented.commands():
        if command.exact and command.words[0] != "export":
            test = run_elsewhere.runner_of(command)
            if test is None:
                assert command.page in run_elsewhere.PAGES, f"{command}: which test runs it?"
            else:
                assert (documented.ROOT / "tests" / test).is_file(), f"{command}: no test {test}"


@pytest.mark.parametrize(
    "text",
    [
        "gchat train cpu --trainin.steps 5",
        "gchat plan --sku v6e-8 --serach",
        "gchat dat prepare --input x",
        "gml node creat -t v6e-1",
        "gml node create --no-such-option",
        "gaia-metrics lss",
        "python -m gchat.data.download --no-such",
        "python tests/benchmarks/no_such.py",
        "bash gchat/speedrun.sh --no-such-option",
        "deploy/up.sh --no-such-option",
        "export GAIA_NO_SUCH_VARIABLE=1",
        "sudo cp deploy/chat/no-such.service /etc",
        "sudo .venv/bin/python -m pip install -r requirements/no-such.txt",
        "nonsense --x",
    ],
)
def test_a_wrong_command_would_be_seen(text):
    with pytest.raises(AssertionError):
        documented.parse(Command("page", 1, text, exact=True))
