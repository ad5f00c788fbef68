"""Test the page of `nextword watch` in Chromium: three runs that grow while it is open, with 10,000 points each.

    python scripts/check_watch_page.py target/release/nextword [--screenshot FILE]

Requires the same packages as check_page.py.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

from playwright.sync_api import expect, sync_playwright

POINTS = 10_000
MAX_FRAME = 50  # ms, the median of drawing all curves; 60 fps scrolling needs no drawing


def line(run, step):
    value = {"step": step, "tokens": 64 * step, "loss": 5 / (1 + step / 500) + run / 10, "lr": 1e-3, "elapsed": step / 10}
    if step % 100 == 0:
        value |= {"val_loss": value["loss"] + 0.1}
    return json.dumps(value) + "\n"


def write_runs(folder):
    for run in range(3):
        (folder / f"run-{run}/samples").mkdir(parents=True)
        (folder / f"run-{run}/run.toml").write_text("[train]\nsteps = 20000\n")
        (folder / f"run-{run}/metrics.jsonl").write_text("".join(line(run, step) for step in range(1, POINTS + 1)))
        (folder / f"run-{run}/samples/step-00000100.txt").write_text("<b>sample</b>")


def check(page, url, folder):
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    expect(page.locator("#runs label")).to_have_count(3)
    expect(page.locator("#runs small").first).to_have_text(f"{POINTS} / 20000")
    expect(page.locator("figure:visible")).to_have_count(3)  # losses and learning rate; nothing else was logged
    assert page.locator("#samples pre").first.inner_text() == "<b>sample</b>", "samples are text, not markup"
    # A run that continues is followed.
    with (folder / "run-1/metrics.jsonl").open("a") as file:
        file.write("".join(line(1, step) for step in range(POINTS + 1, POINTS + 51)))
    expect(page.locator("#runs small").nth(1)).to_have_text(f"{POINTS + 50} / 20000")
    times = page.evaluate("""() => Array.from({length: 20}, () => {
        const start = performance.now();
        draw();
        return performance.now() - start;
    })""")
    median = sorted(times)[len(times) // 2]
    assert median < MAX_FRAME, f"drawing takes {median:.0f} ms"
    page.locator("#runs input").first.uncheck()
    page.locator("#log").check()
    page.mouse.move(*center(page.locator("canvas").first))
    expect(page.locator("figcaption").first).to_contain_text("run-1: ")
    assert "run-0" not in page.locator("figcaption").first.inner_text()
    assert all(request.startswith(url) for request in requests), requests
    assert not errors, errors
    return median


def center(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def check_foreign_host(url):
    """Pages of other sites, whose names resolve to this machine, are refused."""
    for header in [{"Host": "example.org"}, {"Origin": "http://example.org"}]:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{url}/runs", headers=header), timeout=10)
        except urllib.error.HTTPError as error:
            assert error.code == 403, error.code
        else:
            raise AssertionError(f"{header} is accepted")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("--screenshot", type=pathlib.Path)
    arguments = parser.parse_args()
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        sys.exit("Chromium not found; hint: apt-get install chromium, or set CHROMIUM=PATH")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_runs(folder)
        command = [str(arguments.program.resolve()), "watch", name, "--port", "0"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            first = process.stderr.readline()
            if "http://" not in first:
                sys.exit(f"the server did not start: {first}")
            url = "http://" + first.split("http://")[1].strip()
            check_foreign_host(url)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1200, "height": 900})
                median = check(page, url, folder)
                if arguments.screenshot:
                    page.screenshot(path=arguments.screenshot)
                browser.close()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=40)
    print(f"watch page: ok, {median:.1f} ms to draw {3 * POINTS} points")


main()
