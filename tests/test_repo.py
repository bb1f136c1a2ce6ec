"""Promises of the repository as a whole: its locks, its wheel, its pages."""

import itertools
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gaia", "gchat", "gml", "gaia_metrics")
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda p: p.name)
def test_locks_hold_exact_versions_and_hashes_and_no_address(lock):
    text = lock.read_text()
    assert not re.search(r"https?://|--index-url|--extra-index-url|--find-links|file:", text)
    entries = re.split(r"\n(?=[a-zA-Z0-9])", text.strip())
    assert len(entries) > {"slow.txt": 20, "smollm2.txt": 0, "uv.txt": 0}.get(lock.name, 50)
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z0-9,_-]+\])?==\S+", entry), entry[:80]
        assert "--hash=sha256:" in entry, entry[:80]


def test_the_speedrun_environment_holds_no_test_extras():
    packages = {re.match(r"[\w.-]+", line)[0] for line in _entries(ROOT / "requirements/cpu.txt")}
    assert not packages & {"pytest", "hypothesis", "ruff", "basedpyright", "torch", "transformers"}


def test_every_two_locks_agree_on_the_versions_they_share():
    pinned = {lock.name: dict(_pinned(lock)) for lock in LOCKS}
    for (one, a), (other, b) in itertools.combinations(pinned.items(), 2):
        for name in a.keys() & b.keys():
            assert a[name] == b[name], f"{name}: {one} has {a[name]}, {other} has {b[name]}"


def test_the_wheel_holds_the_licence_and_every_file_but_notes(tmp_path):
    listed = subprocess.check_output(["git", "ls-files", *PACKAGES], cwd=ROOT, text=True)
    files = [f for f in listed.splitlines() if (ROOT / f).exists()]
    for file in [*files, "pyproject.toml", "README.md", "LICENSE"]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    build = "from setuptools import build_meta; build_meta.build_wheel('out')"
    (tmp_path / "out").mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {f for f in files if not f.endswith(".md")} <= held
    (licence,) = (name for name in held if name.endswith("licenses/LICENSE"))
    assert "Apache License" in zipfile.ZipFile(wheel).read(licence).decode()


def test_no_page_or_error_installs_this_by_a_name_on_the_registry():
    """Whoever follows such a line gets a stranger's package; gaia.extras says what works."""
    name = "gaia" + r"\["
    listed = subprocess.run(["git", "grep", "-nE", name], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode in (0, 1) and listed.stdout == ""


def _entries(lock: Path) -> list[str]:
    return [line for line in lock.read_text().splitlines() if re.match(r"[A-Za-z0-9]", line)]


def _pinned(lock: Path) -> list[tuple[str, str]]:
    found = (re.match(r"([\w.-]+)(?:\[.*?\])?==([^\s;]+)", line) for line in _entries(lock))
    return [(m[1], m[2]) for m in found if m]


_LISTED = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
PAGES = sorted(
    ROOT / name
    for name in subprocess.run(
        _LISTED, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    links = {target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)}
    links = {link for link in links if link and "://" not in link}
    assert not [link for link in links if not (page.parent / link).exists()]
    named = set(re.findall(r"`((?:tests|gaia|gchat|gml|gaia_metrics|docs)/[\w/.-]+\.\w+)`", text))
    assert not [name for name in named if not (ROOT / name).exists()]
