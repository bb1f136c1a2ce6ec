"""requirements/venv.sh: which installer it takes, and what it does where one cannot work.

The installers are scripts that note how they were called and fail where told to; everything else is
the bootstrap itself. A whole set-up is what starts every run of this suite.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Stands for uv (`uv pip install …`) and for `.venv/bin/python -m pip install …`.
INSTALLER = """#!/bin/sh
case "$*" in "-m pip --version") [ -z "${NO_PIP:-}" ]; exit ;; esac
echo "NAME index=${UV_DEFAULT_INDEX:-} $*" >> "$CALLS"
case "$*" in
*requirements/uv.txt*) [ -n "${CAN_GET_UV:-}" ] || exit 1; cp "$UV" .venv/bin/uv ;;
esac
for bad in ${FAILING:-}; do [ "$bad" != NAME ] || exit 2; done
"""


@pytest.fixture
def bootstrap(tmp_path):
    """Runs `gaia_venv NAMES` in a copy: (exit status, standard error, calls of the installers)."""
    (tmp_path / "requirements").mkdir()
    for name in ("venv.sh", "cpu.txt", "uv.txt"):
        text = (ROOT / "requirements" / name).read_text()
        (tmp_path / "requirements" / name).write_text(text)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    for folder in (".venv/bin", "tools", "path"):
        (tmp_path / folder).mkdir(parents=True)
    for tool in ("bash", "cat", "cksum", "cp", "env", "grep", "sh"):  # no uv or pip of this machine
        (tmp_path / "path" / tool).symlink_to(shutil.which(tool))

    def install(name, path):
        path.write_text(INSTALLER.replace("NAME", name))
        path.chmod(0o755)

    install("pip", tmp_path / ".venv/bin/python")
    install("uv", tmp_path / "tools/uv")

    def run(*names, uv_on_path=False, **environment):
        if uv_on_path:
            install("uv", tmp_path / "path/uv")
        calls = tmp_path / "calls"
        calls.write_text("")
        done = subprocess.run(
            ["bash", "-c", f". requirements/venv.sh; gaia_venv {' '.join(names)}"],
            cwd=tmp_path,
            env={
                "PATH": str(tmp_path / "path"),
                "CALLS": str(calls),
                "UV": str(tmp_path / "tools/uv"),
            }
            | environment,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stderr, calls.read_text().splitlines()

    run.stamp = tmp_path / ".venv/gaia-cpu.stamp"
    return run


def tools(calls):
    """The name of the installer of each call, and the lock or folder it was to install."""
    return [(call.split()[0], call.split()[-1]) for call in calls]


WHOLE = [("uv", "requirements/cpu.txt"), ("uv", ".")]


def test_uv_on_path_installs_the_lock_with_hashes_and_the_project_without_dependencies(bootstrap):
    status, _, calls = bootstrap("cpu", uv_on_path=True)
    assert status == 0 and tools(calls) == WHOLE
    assert "--require-hashes" in calls[0]
    assert "--no-deps" in calls[1] and "--no-build-isolation" in calls[1]
    assert bootstrap("cpu", uv_on_path=True) == (0, "", [])  # already there


def test_without_uv_pip_installs_the_locked_one_once(bootstrap):
    status, _, calls = bootstrap("cpu", CAN_GET_UV="1")
    assert status == 0
    assert tools(calls) == [("pip", "requirements/uv.txt"), *WHOLE]
    assert "--require-hashes" in calls[0]


def test_where_no_uv_can_be_had_pip_installs_everything(bootstrap):
    status, _, calls = bootstrap("cpu")
    assert status == 0 and bootstrap.stamp.exists()
    done = [call for call in tools(calls) if call[1] != "requirements/uv.txt"]
    assert done == [("pip", "requirements/cpu.txt"), ("pip", ".")]


def test_where_uv_fails_pip_tries_and_it_is_said(bootstrap):
    status, said, calls = bootstrap("cpu", uv_on_path=True, FAILING="uv")
    assert status == 0 and "uv could not install them (see above); trying pip" in said
    assert ("pip", "requirements/cpu.txt") in tools(calls) and ("pip", ".") in tools(calls)


def test_where_nothing_works_it_says_so_and_the_next_try_is_no_short_cut(bootstrap):
    status, said, _ = bootstrap("cpu", uv_on_path=True, FAILING="uv pip")
    assert status == 2 and "could not install the packages of requirements/cpu.txt" in said
    assert not bootstrap.stamp.exists()
    assert bootstrap("cpu", uv_on_path=True)[2]


def test_a_mirror_named_for_pip_is_used_by_uv_too(bootstrap):
    _, _, calls = bootstrap("cpu", uv_on_path=True, PIP_INDEX_URL="https://mirror.example/simple")
    assert all("index=https://mirror.example/simple " in call for call in calls)


def test_a_lock_that_changed_is_installed_again(bootstrap):
    bootstrap("cpu", uv_on_path=True)
    bootstrap.stamp.write_text("another state")
    assert tools(bootstrap("cpu", uv_on_path=True)[2]) == WHOLE


def test_a_venv_without_pip_gets_pythons_own(bootstrap):
    status, _, calls = bootstrap("cpu", CAN_GET_UV="1", NO_PIP="1")
    assert status == 0
    assert tools(calls) == [("pip", "ensurepip"), ("pip", "requirements/uv.txt"), *WHOLE]
