"""The local dashboard in headless Chromium, over real run folders, one of them live."""

import json
import threading
import time
import urllib.error
import urllib.request

import pytest

import gaia_metrics
from gaia_metrics.query import connect
from gaia_metrics.storage import segments
from gaia_metrics.ui.server import serve


def record(folder, name, steps, status):
    run = gaia_metrics.init(
        "gchat", name, {"depth": steps}, dir=folder, system_interval=0.2 if status else 0
    )
    for step in range(steps):
        run.log(step, {"train/loss": 5.0 / (step + 1), "train/tokens": 10.0 * step})
    run.text(steps - 1, "samples", "<script>document.title='owned'</script>")
    assert run.wait_durable(steps - 1)
    if status:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not any(
            record.kind == "system" for record in segments.read_all(folder / "metrics")
        ):
            time.sleep(0.1)
        run.finish(status)
    return run


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for i, status in enumerate(["finished", "crashed", "stopped"]):
        record(root / f"r{i}", f"d{i}", 50, status)
    live = record(root / "live", "living", 20, None)
    server = serve(connect(root))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", live
    server.shutdown()
    server.server_close()
    live.finish()


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as response:
        return response.read()


def test_api(site):
    url, _ = site
    runs = json.loads(get(f"{url}/api/runs"))
    assert {r["name"] for r in runs} == {"d0", "d1", "d2", "living"}
    data = json.loads(get(f"{url}/api/series?run=d0&metric=train/loss&points=10"))
    (line,) = data["train/loss"].values()
    assert len(line["x"]) == 10 and line["high"][0] == 5.0
    for bad, status in (("/api/series?run=nobody&metric=a", 400), ("/api/series", 400),
                        ("/../../etc/passwd", 404)):  # fmt: skip
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(url + bad)
        caught.value.close()
        assert caught.value.code == status
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(f"{url}/api/runs", Host="evil.example:80")  # a page that rebinds its name to us
    caught.value.close()
    assert caught.value.code == 403


def test_trouble_is_an_answer_not_a_traceback(capfd):
    class Broken:
        def runs(self):
            raise RuntimeError("a damaged file")

    server = serve(Broken())
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/api/runs"
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(address)
    assert caught.value.code == 500 and b"a damaged file" in caught.value.read()
    caught.value.close()
    server.shutdown()
    server.server_close()
    assert capfd.readouterr().err == ""


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1300, "height": 800}, accept_downloads=True)
    page.set_default_timeout(30_000)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: m.type == "error" and problems.append(m.text))
    yield page
    page.close()
    assert not problems


def test_overlay_filter_axes_export(site, page):
    page.goto(site[0])
    page.wait_for_selector("figure .uplot")
    assert page.locator("#runs input:checked").count() == 3  # the three newest, overlaid
    legend = page.locator("figure").first.locator(".u-series:visible")
    assert legend.count() == 3
    page.fill("#filter", "crashed")
    assert page.locator("#runs li").count() == 1
    page.fill("#filter", "")
    page.select_option("#status", "finished")
    assert page.locator("#runs .name").all_inner_texts() == ["d0"]
    page.select_option("#status", "")
    page.select_option("#x", "tokens")
    page.fill("#smooth", "0.9")
    page.check("#logy")
    page.wait_for_function("() => state.data['train/loss'] && !state.loading")
    assert page.evaluate("[...state.charts.values()][0].plot.scales.x.max") > 100
    smooth = page.evaluate("smoothed([0, 10], 0.5)")
    assert smooth == [0, pytest.approx(20 / 3)]
    with page.expect_download() as png:
        page.locator("figure button").first.click()
    with open(png.value.path(), "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    with page.expect_download() as table:
        page.click("#csv")
    with open(table.value.path()) as file:
        assert file.readline() == "run,metric,x,value,low,high\n" and len(file.readlines()) > 50


def test_tabs_show_text_as_text(site, page):
    page.goto(site[0])
    page.wait_for_selector("figure .uplot")
    page.click("[data-tab=samples]")
    page.wait_for_selector("article")
    assert "<script>" in page.locator("article pre").first.inner_text()
    page.click("[data-tab=compare]")
    page.wait_for_selector("#compare td")
    assert "config.depth" in page.locator("#compare").inner_text()
    page.uncheck("#runs input >> nth=0")
    page.click("[data-tab=system]")
    page.wait_for_selector("#system figure .uplot")
    assert page.title() == "gaia metrics"


def test_a_live_run_moves(site, page):
    url, live = site
    page.goto(url)
    page.wait_for_selector("figure .uplot")
    points = f"(state.data['train/loss']?.[{json.dumps(live.id)}]?.x.length || 0)"
    assert page.evaluate(points) == 20
    for step in range(20, 60):
        live.log(step, {"train/loss": 1.0, "train/tokens": 10.0 * step})
    page.wait_for_function(f"() => {points} === 60")
    page.wait_for_function("() => document.querySelector('#runs').innerText.includes('step 59')")
