"""The local dashboard: how long it takes to open on many long runs, in headless Chromium.

    python tests/benchmarks/metrics_ui.py [--quick] [--runs 100] [--steps 10000] [--shot FILE]

One run of 20 metrics is recorded and copied under other ids. `gaia-metrics ui` is started on the
folder, as a user does; `open_s` is from the first request of a browser until every run is in the
list and the charts in view are drawn, `open_again_s` the same with a warm server, `overlay_s` from
a click that adds a tenth run until it is drawn. Limit, from the project's issue on observability:
100 runs x 20 metrics x 10,000 steps open in 2 s. `--quick` takes the same runs and fewer repeats.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

sys.path.insert(0, str(harness.ROOT))

DRAWN = """() => window.gaia && gaia.state.runs.length === %d
  && document.querySelectorAll('#runs li').length === Math.min(300, %d)
  && !gaia.state.loading && [...gaia.charts.values()].some((c) => c.figure.inView)
  && [...gaia.charts.values()].every((c) => !c.figure.inView || c.plot)"""


def record(root: Path, runs: int, steps: int) -> None:
    """`runs` finished runs with the same values."""
    import gaia_metrics

    run = gaia_metrics.init("bench", "run-000", {"depth": 12}, dir=root / "run-000")
    names = [f"train/m{i}" for i in range(19)]
    for step in range(steps):
        run.log(step, {"train/loss": 5.0 / (1 + step / 100)} | dict.fromkeys(names, step * 0.37))
    if not run.wait_durable(steps - 1, 300):
        sys.exit("the run could not be recorded")
    run.finish()
    for i in range(1, runs):
        copy = root / f"run-{i:03}"
        shutil.copytree(root / "run-000", copy)
        info = json.loads((copy / "run.json").read_text())
        info |= {"id": f"20261120-{i:08x}", "name": copy.name}
        (copy / "run.json").write_text(json.dumps(info))


def serve(root: Path) -> tuple[subprocess.Popen, str]:
    """`gaia-metrics ui` and its address."""
    command = [sys.executable, "-m", "gaia_metrics.cli", "ui", str(root), "--port", "0"]
    process = subprocess.Popen(command, cwd=harness.ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()[0]


def opened(browser, address: str, runs: int) -> tuple[float, object]:
    """Seconds until the page is drawn, and the page."""
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    begin = time.perf_counter()
    page.goto(address)
    page.wait_for_function(DRAWN % (runs, runs), timeout=300_000)
    return time.perf_counter() - begin, page


def main(args: argparse.Namespace) -> dict:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("metrics_ui: chromium is not installed; see tests/system_packages.sh")
    with tempfile.TemporaryDirectory(prefix="gaia-ui-") as folder:
        root = Path(folder)
        record(root, args.runs, args.steps)
        process, address = serve(root)
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=chromium, args=["--no-sandbox"]
                )
                browser.new_page().close()  # the browser's own start is not ours
                cold, page = opened(browser, address, args.runs)
                page.close()
                again = []
                for _ in range(2 if args.quick else 5):
                    seconds, page = opened(browser, address, args.runs)
                    again.append(seconds)
                for i in range(3, 9):
                    page.locator("#runs input").nth(i).check()
                page.wait_for_function(DRAWN % (args.runs, args.runs))
                begin = time.perf_counter()
                page.locator("#runs input").nth(9).check()
                page.wait_for_function(
                    "() => !gaia.state.loading && gaia.cache.get('train/loss')?.size === 10"
                    " && gaia.charts.get('train/loss').plot.series.length > 10"
                )
                overlay = time.perf_counter() - begin
                if args.shot:
                    page.screenshot(path=args.shot)
                browser.close()
        finally:
            process.terminate()
            process.wait()
    result = {"runs": args.runs, "steps": args.steps, "metrics": 20, "open_s": round(cold, 2)}
    result |= harness.spread("open_again_s", again, 2) | {"overlay_s": round(overlay, 2)}
    for key, value in result.items():
        print(f"{key:20}{value}")
    return result


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--shot", default="", help="save a screenshot of ten overlaid runs")


if __name__ == "__main__":
    harness.run(main, __doc__, arguments)
