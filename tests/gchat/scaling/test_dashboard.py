"""The scaling dashboard in headless Chromium: sliders, verdicts, the grid, a shareable address."""

import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

pytest.importorskip("fastapi", reason="the dashboard's extra is not installed")
import uvicorn

from gaia.errors import ConfigError
from gchat.__main__ import main
from gchat.scaling import dashboard, export
from gchat.scaling.dashboard import Controls, config_of, make_app, view
from gchat.scaling.plan import make_plan
from gchat.scaling.search import candidates
from gchat.scaling.sku import parse_fleet


@pytest.fixture(scope="module")
def site():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    app = make_app(hosts=["127.0.0.1", "localhost"])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_what_is_shown_is_what_gchat_plan_computes():
    controls = Controls(batch=256)
    shown = view(controls)["chosen"]["plan"]
    config, fleet = config_of(controls), parse_fleet("v6e-8")
    fastest = next(p for p in candidates(config, fleet, fixed_mesh=True) if p.fits)
    assert shown.to_json() == fastest.to_json() == make_plan(fastest.config, fleet).to_json()


def test_the_grid_says_why_something_does_not_fit():
    cells = {c["sku"]: c for row in view(Controls(depth=64, width=8192, heads=64))["grid"]
             for c in row["cells"]}  # fmt: skip
    assert cells["v6e-1"]["state"] == "bad" and "GiB" in cells["v6e-1"]["why"]
    assert cells["v5p-128"]["state"] == "good" and cells["v5p-128"]["cost"] > 0
    assert cells["v5p-12288"]["state"] == "undivided"
    assert "does not divide" in cells["v5p-12288"]["why"]


def test_sizes_that_do_not_go_together_are_one_line():
    with pytest.raises(ConfigError, match="heads 7 does not divide width 1536"):
        config_of(Controls(heads=7))
    assert "heads 7" in view(Controls(heads=7))["problem"]
    assert "v6e-8" in view(Controls(sku="v6e-9"))["problem"]


def test_bad_requests_are_refused(site):
    assert get(f"{site}/?depth=0")[0] == 422
    status, text = get(f"{site}/?depth=<script>alert(1)</script>")
    assert status == 422 and "<script>" not in text and "depth" in text
    assert get(f"{site}/?nonsense=1")[0] == 422
    assert get(f"{site}/web/../dashboard.py")[0] == 404
    assert get(f"{site}/web/page.html")[0] == 404
    assert get(site, Host="evil.example")[0] == 400


def test_sliders_move_the_verdict_and_the_address(site, browser, tmp_path):
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.goto(site)
    assert "fits" in page.inner_text("#verdict")
    assert page.locator(".bar .part").count() >= 4
    assert page.locator("td.good").count() > 20
    hours = page.inner_text("#hours")

    page.locator("input[name=depth]").fill("96")
    page.wait_for_function("document.querySelector('#out-depth').textContent === '96'")
    page.wait_for_url("**depth=96**")
    assert page.inner_text("#hours") != hours
    assert page.locator("td.bad").count() > 0

    page.locator("input[name=heads]").fill("7")
    page.wait_for_selector("[role=alert]")
    assert "heads 7 does not divide" in page.inner_text("[role=alert]")
    page.locator("input[name=heads]").fill("12")
    page.wait_for_selector("#verdict")

    other = browser.new_page(viewport={"width": 1500, "height": 1000})
    other.goto(page.url)  # a shared address shows the same plan
    assert other.inner_text("#verdict") == page.inner_text("#verdict")
    assert other.locator("input[name=depth]").input_value() == "96"
    other.screenshot(path=tmp_path / "dashboard.png", full_page=True)
    assert (tmp_path / "dashboard.png").stat().st_size > 20_000
    page.close()
    other.close()
    assert problems == []


@pytest.mark.slow
def test_the_exported_page_works_from_a_file_and_asks_no_network(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "DEPTHS", (12, 24))
    folder = tmp_path / "public"
    plan = "http://127.0.0.1:8501/?depth=16&width=1024&heads=8&sku=rtx4090&batch=64"
    assert main(["dashboard", "--export", str(folder), "--plan", plan]) == 0
    assert [file.name for file in folder.iterdir()] == ["index.html"]
    page = browser.new_page(viewport={"width": 1500, "height": 1300})
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    address = (folder / "index.html").as_uri()
    page.goto(address)
    shown = page.locator("main:visible")
    for depth, width in ((16, 1024), (12, 768), (24, 1536)):
        if depth != 16:
            page.locator("#size").fill(str((12, 16, 24).index(depth)))
        expected = view(Controls(depth=depth, width=width, heads=width // 128, sku="rtx4090",
                                 batch=64))  # fmt: skip
        assert shown.get_attribute("data-depth") == str(depth)
        assert shown.locator("p.line").inner_text() == expected["chosen"]["plan"].why
        cells = [cell for row in expected["grid"] for cell in row["cells"]]
        assert [c["sku"] for c in cells] == shown.locator("td b").all_inner_texts()
        assert shown.locator("td.good").count() == sum(c["state"] == "good" for c in cells)
    assert page.url.endswith("#depth=24")
    page.goto(f"{address}#depth=12")
    page.reload()
    assert shown.get_attribute("data-depth") == "12"  # a shared address opens at its depth
    page.close()
    assert problems == [] and all(url.startswith(("file:", "data:")) for url in asked)


def test_an_export_replaces_its_own_page_and_no_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "DEPTHS", (4,))
    args = ["dashboard", "--export", str(tmp_path)]
    for sku in ("v6e-1", "v6e-8"):
        assert main([*args, "--plan", f"depth=4&sku={sku}"]) == 0
        assert f"{sku}: " in (tmp_path / "index.html").read_text()
    before = (tmp_path / "index.html").read_text()
    for plan, words in (
        ("depth=0", "depth is '0'"),
        ("nonsense=1", "nonsense is '1'"),
        ("sku=v6e-9", "v6e-9"),
        ("heads=7", "heads 7 does not divide"),
    ):
        assert main([*args, "--plan", plan]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert (tmp_path / "index.html").read_text() == before
    (tmp_path / "index.html").write_text("my own page")
    assert main(args) == 2
    assert "is not a page of gchat" in capsys.readouterr().err
    assert (tmp_path / "index.html").read_text() == "my own page"
    assert [file.name for file in tmp_path.iterdir()] == ["index.html"]
    assert main(["dashboard", "--plan", "depth=4"]) == 2
    assert "add --export DIR" in capsys.readouterr().err


def test_a_port_in_use_is_one_line():
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    with pytest.raises(ConfigError, match="cannot be used"):
        dashboard.serve("127.0.0.1", taken.getsockname()[1])
    taken.close()
