"""The front end as it is kept: built from its sources, small, and asking nobody."""

import gzip
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gchat.serve.site import web

WEB = Path(web.__file__).parent
FILES = ("app.css", "app.js", "theme.js")


class Parsed(HTMLParser):
    """Elements of a page, and ids that occur."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.ids = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]


def page(name, **context):
    user = {"name": "<b>Ada", "role": "admin"}
    given = {"user": user, "csrf": "token", "settings": {"search": True, "registration": "open"}}
    return web.render(name, **(given | context))


def test_what_is_kept_was_built_from_the_sources():
    digest = hashlib.sha256()
    for path in sorted((WEB / "src").iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for name in FILES:
        first = (WEB / "static" / name).read_text()[:80]
        assert f"built from src/ {digest.hexdigest()[:16]} " in first, "npm run build, and commit"


def test_the_lock_names_no_registry():
    lock = json.loads((WEB / "package-lock.json").read_text())
    assert not any("resolved" in entry for entry in lock["packages"].values())
    assert all("integrity" in entry for name, entry in lock["packages"].items() if name)
    assert "omit-lockfile-registry-resolved=true" in (WEB / ".npmrc").read_text()


@pytest.mark.parametrize("name", web.PAGES)
def test_pages_ask_nobody_else_and_hold_no_script(name):
    messages = [{"role": "user", "html": "<p>x</p>", "sources": []}]
    parsed = Parsed(page(name, title="T", status=404, message="<i>no", messages=messages))
    for tag, attributes in parsed.elements:
        assert tag not in ("style", "iframe", "img", "object"), tag
        assert not any(key.startswith("on") or key == "style" for key in attributes), attributes
        for key in ("src", "href", "action"):
            value = attributes.get(key)
            assert value is None or re.match(r"[/#](?!/)", value), (tag, value)
        if tag == "script":
            assert attributes["src"].startswith("/static/")
    assert len(parsed.ids) == len(set(parsed.ids))
    html = page(name)
    assert html.startswith('<!doctype html>\n<html lang="en">')
    assert "<b>Ada" not in html


def test_pages_are_small():
    """150 KB compressed, all of it: the page, its styles and scripts."""
    files = sum(len(gzip.compress(web.static_file(name).body)) for name in (*FILES, "icon.svg"))
    assert files + max(len(gzip.compress(page(name).encode())) for name in web.PAGES) < 60_000


def test_files_are_named_by_a_list():
    assert web.static_file("app.js").media_type.startswith("text/javascript")
    for name in ("../__init__.py", "/etc/passwd", "app.js/", "..%2fapp.js", "", "src/app.ts"):
        assert web.static_file(name) is None
    assert web.address("app.css").endswith(web.static_file("app.css").etag)


def test_the_policy_lets_nothing_in():
    policy = dict(part.strip().split(" ", 1)
                  for part in web.HEADERS["Content-Security-Policy"].split(";"))  # fmt: skip
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy) and policy["frame-ancestors"] == "'none'"
    source = "".join(path.read_text() for path in (WEB / "src").glob("*.ts"))
    assert source.count("innerHTML") == 1  # dom.ts, of what the server cleaned
    assert not re.search(
        r"\beval\(|new Function|insertAdjacentHTML|document\.write|outerHTML", source
    )


@pytest.mark.slow
def test_building_again_gives_the_same_bytes(tmp_path):
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    for name in ("package.json", "package-lock.json", ".npmrc", "build.mjs", "tsconfig.json"):
        shutil.copy(WEB / name, tmp_path)
    shutil.copytree(WEB / "src", tmp_path / "src")
    done = subprocess.run(["npm", "ci", "--ignore-scripts"], cwd=tmp_path, capture_output=True,
                          text=True, timeout=250)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for script in ("build", "check"):
        done = subprocess.run(["npm", "run", script], cwd=tmp_path, capture_output=True, text=True,
                              timeout=120)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    for name in FILES:
        assert (tmp_path / "static" / name).read_bytes() == (WEB / "static" / name).read_bytes()
