"""The local dashboard in headless Chromium, over real run folders, one of them live."""

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request

import pytest

import gaia_metrics
from gaia_metrics.query import connect
from gaia_metrics.storage import folder, segments
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


@contextlib.contextmanager
def serving(source):
    server = serve(source)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


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
    page.wait_for_function("() => gaia.cache.get('train/loss')?.size === 3 && !gaia.state.loading")
    assert page.evaluate("[...gaia.charts.values()][0].plot.scales.x.max") > 100
    smooth = page.evaluate("gaia.smoothed([0, 10], 0.5)")
    assert smooth == [0, pytest.approx(20 / 3)]
    with page.expect_download() as png:
        page.locator("figure button[title='Save this chart']").first.click()
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
    line = f"gaia.cache.get('train/loss')?.get({json.dumps(live.id)})?.line"
    points = f"({line}?.x.length || 0)"
    page.wait_for_function(f"() => {points} === 20")
    for step in range(20, 60):
        live.log(step, {"train/loss": 1.0, "train/tokens": 10.0 * step})
    page.wait_for_function(f"() => {points} === 60")
    page.wait_for_function("() => document.querySelector('#runs').innerText.includes('step 59')")
    page.click("[data-tab=samples]")
    live.text(60, "samples", "a later text")
    live.log(60, {"train/loss": 0.125, "train/tokens": 600.0})
    page.wait_for_function("() => document.querySelector('#samples').innerText.includes('later')")
    page.click("[data-tab=compare]")
    live.log(61, {"train/loss": 0.0625, "train/tokens": 610.0})
    page.wait_for_function("() => document.querySelector('#compare').innerText.includes('0.0625')")
    assert page.locator("#compare").inner_text().count("0.0625") == 1  # of the live run alone


@pytest.fixture(scope="module")
def slow_site(tmp_path_factory):
    """Ten runs behind a server that takes 150 ms for a series."""
    root = tmp_path_factory.mktemp("ten")
    for i in range(10):
        run = gaia_metrics.init(
            "gchat", f"d{i}", {"model": {"depth": 4 + i % 2}}, dir=root / f"r{i}",
            system_interval=0, tags=["odd"] if i % 2 else [], notes="<b>a remark</b>",
        )  # fmt: skip
        for step in range(30):
            run.log(step, {"train/loss": 5.0 / (step + 1) + i, "eval/acc": step / 30, "plain": 1.0})
            run.histogram(step, "w", [step / 10, 1.0, -2.0])
        run.text(3, "samples", f"text of {i}")
        run.alert("seen", f"by {i}", "info")
        run.finish()
    source = connect(root)
    series = source.series

    def slowly(*arguments):
        time.sleep(0.15)
        return series(*arguments)

    source.series = slowly
    server = serve(source, names=["metrics.example"])
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "gap_ms",
    [pytest.param(0, marks=pytest.mark.slow), 80, pytest.param(200, marks=pytest.mark.slow)],
)
def test_a_chart_never_lacks_a_selected_run(slow_site, page, gap_ms):
    """Ticks while a load is under way: its answer is to an older selection."""
    page.goto(slow_site)
    page.wait_for_selector("figure .uplot")
    page.click("#none")
    for i in range(10):
        page.locator("#runs input").nth(i).check()
        page.wait_for_timeout(gap_ms)
    lines = "gaia.charts.get('train/loss')?.plot?.series.filter((s) => s.label && !s.hidden).length"
    page.wait_for_function(f"() => {lines} === 11 && !gaia.state.loading")  # and the x axis
    page.uncheck("#runs input >> nth=4")
    page.wait_for_function(f"() => {lines} === 10")


def dragged(page):
    """The zoom after a drag; a drag over a chart that is being drawn anew meanwhile is repeated."""
    for _ in range(20):
        box = page.locator("figure .u-over").first.bounding_box()
        if box is None:  # taken away between its finding and its measuring
            page.wait_for_timeout(50)
            continue
        page.mouse.move(box["x"] + 40, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + 140, box["y"] + 40)
        page.mouse.up()
        page.wait_for_timeout(200)
        if zoom := page.evaluate("gaia.state.zoom"):
            return zoom
    raise AssertionError("no drag zooms")


def test_the_address_holds_the_view(slow_site, page, browser):
    page.goto(slow_site)
    page.wait_for_selector("figure .uplot")
    page.click("#none")
    page.check("#runs input >> nth=2")
    page.check("#runs input >> nth=5")
    page.fill("#filter", "depth=5")
    page.wait_for_function("() => document.querySelectorAll('#runs li').length === 5")
    page.fill("#metrics", "train")
    page.fill("#smooth", "0.5")
    page.check("#logy")
    page.wait_for_selector("figure .u-over")
    zoom = dragged(page)
    selected = page.evaluate("[...gaia.state.selected.keys()]")
    other = browser.new_page()
    other.goto(page.url)
    other.wait_for_selector("figure .uplot")
    assert other.evaluate("[...gaia.state.selected.keys()]") == selected and len(selected) == 2
    assert other.evaluate("gaia.state.zoom") == pytest.approx(zoom, rel=1e-5)
    assert other.input_value("#filter") == "depth=5" and other.input_value("#smooth") == "0.5"
    assert other.is_checked("#logy") and other.locator("figure").count() == 1
    other.close()


def test_zoom_and_focus_survive_a_refresh(site, page):
    url, live = site
    page.goto(url)
    page.wait_for_selector("figure .uplot")
    page.evaluate("gaia.state.zoom = [5, 10]; dispatchEvent(new Event('resize'))")
    page.focus("#runs input >> nth=1")
    line = f"gaia.cache.get('train/loss')?.get({json.dumps(live.id)})?.line"
    before = page.evaluate(f"{line}?.x.length || 0")
    for step in range(100, 140):
        live.log(step, {"train/loss": 1.0})
    page.wait_for_function(f"() => ({line}?.x.length || 0) > {before}")
    scale = "(({min, max}) => [min, max])(gaia.charts.get('train/loss').plot.scales.x)"
    assert page.evaluate(scale) == [5, 10]
    assert page.evaluate("document.activeElement.type") == "checkbox"


def test_groups_run_page_and_full_screen(slow_site, page):
    page.goto(slow_site)
    page.wait_for_selector("figure .uplot")
    sections = page.locator("#charts summary").all_inner_texts()
    assert sections == ["train (1)", "eval (1)", "other (1)"]
    page.select_option("#group", "tags")
    assert page.locator("#runs .group").all_inner_texts()[0].startswith("no tag (5)")
    page.focus("#group")
    page.wait_for_selector("#group option[value='config.model.depth']", state="attached")
    page.select_option("#group", "config.model.depth")
    page.wait_for_function("() => document.querySelectorAll('#runs .group').length === 2")
    page.click("#runs .group button >> nth=0")
    page.click("figure button >> nth=0")
    assert page.locator("figure.large").bounding_box()["width"] == 1300
    page.wait_for_function(
        "() => document.querySelector('.large .uplot').offsetHeight > innerHeight - 80"
    )
    page.keyboard.press("Escape")
    assert page.locator("figure.large").count() == 0
    page.click("#runs .open >> nth=0")
    page.wait_for_selector("#run canvas")
    shown = page.locator("#run").inner_text()
    for part in ("model.depth", "<b>a remark</b>", "Last values", "seen", "python",
                 "step 3 · samples", "text of"):  # fmt: skip
        assert part in shown
    drawn = "(c) => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v)"
    assert page.eval_on_selector("#run canvas", drawn)


def test_host_names_by_option(slow_site):
    assert json.loads(get(f"{slow_site}/api/runs", Host="metrics.example:6006"))
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(f"{slow_site}/api/runs", Host="other.example")
    caught.value.close()
    assert caught.value.code == 403


def test_an_unchanged_answer_is_not_sent_again(slow_site):
    with urllib.request.urlopen(f"{slow_site}/api/runs") as response:
        tag = response.headers["etag"]
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(f"{slow_site}/api/runs", **{"If-None-Match": tag})
    caught.value.close()
    assert caught.value.code == 304


def test_unchanged_runs_are_not_read_again(tmp_path, monkeypatch):
    """3,000 runs are listed every two seconds: only small files that changed are opened."""
    runs = [record(tmp_path / f"r{i}", f"d{i}", 3, None) for i in range(4)]
    for run in runs:
        run.finish()
    source, opened = connect(tmp_path), []
    assert len(source.runs()) == 4
    read = folder.read_json
    monkeypatch.setattr(folder, "read_json", lambda path: opened.append(path) or read(path))
    assert len(source.runs()) == 4 and opened == []
    (tmp_path / "r2/status.json").touch()
    assert len(source.runs()) == 4 and {path.parent.name for path in opened} == {"r2"}


def test_looks_of_the_page_never_pile_up(tmp_path, page):
    """On a server that is slower than the page's interval, one look at the list is under way."""
    record(tmp_path / "r", "d", 3, None).finish()
    source, under_way, most, count = connect(tmp_path), 0, 0, 0
    listed = source.runs
    source.runs = lambda: time.sleep(0.3) or listed()

    def asked(request):  # counted in the browser, which sends requests of one address in turn
        nonlocal under_way, most, count
        if "/api/runs" in request.url:
            under_way, count = under_way + 1, count + 1
            most = max(most, under_way)

    def answered(request):
        nonlocal under_way
        under_way -= "/api/runs" in request.url

    page.on("request", asked)
    page.on("requestfinished", answered)
    page.add_init_script("""const set = setTimeout;
        window.setTimeout = (call, ms) => set(call, Math.min(ms, 50));""")
    with serving(source) as url:
        page.goto(url)
        page.wait_for_selector("figure .uplot")
        deadline = time.monotonic() + 60
        while count < 5 and time.monotonic() < deadline:
            page.wait_for_timeout(100)
        page.goto("about:blank")
    assert count >= 5 and most == 1


@pytest.mark.slow
def test_five_thousand_metrics_open(tmp_path, page):
    run = gaia_metrics.init("p", "wide", dir=tmp_path / "wide", system_interval=0)
    for step in range(3):
        run.log(step, {f"layer_{n % 10}/w{n}": float(step) for n in range(5000)})
    run.finish()
    with serving(connect(tmp_path)) as url:
        page.goto(url)
        page.wait_for_selector("figure .uplot")
        assert page.locator("#charts summary").count() == 10
        drawn = page.locator("#charts figure").count()
        assert 0 < drawn <= 120  # one section of 60 opens the page, the next are closed
        page.fill("#metrics", "w4321")
        page.wait_for_function("() => document.querySelectorAll('#charts figure').length === 1")


@pytest.mark.parametrize("width", [pytest.param(1300, marks=pytest.mark.slow), 390])
def test_nothing_sticks_out(slow_site, browser, width, tmp_path):
    page = browser.new_page(viewport={"width": width, "height": 840})
    page.goto(slow_site)
    for tab in ("charts", "compare", "run", "samples", "system"):
        page.click(f"[data-tab={tab}]")
        page.wait_for_timeout(400)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
    page.close()
