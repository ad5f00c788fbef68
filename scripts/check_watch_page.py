"""Test the page of `nextword watch` in Chromium: three runs that grow while it is open, with 10,000 points each, whose
files are also rewritten, with samples and probes.

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


def line(run, step, seconds=10):
    value = {"step": step, "tokens": 64 * step, "loss": 5 / (1 + step / 500) + run / 10, "lr": 1e-3,
             "grad_norm": 1 + 1 / step, "tokens_per_second": 5000, "memory": (100 + run) * 2**20, "elapsed": step / seconds}
    if step % 100 == 0:
        value |= {"val_loss": value["loss"] + 0.1}
    return json.dumps(value) + "\n"


def write_probe(run, step, tokens=("a", " fox", " ran")):
    (run / "probes").mkdir(exist_ok=True)
    weights = [[1 / (query + 1) if key <= query else 0 for key in range(len(tokens))] for query in range(len(tokens))]
    predictions = [[{"id": 0, "text": f"word {step}", "probability": 0.75}] for _ in tokens]
    sentence = {"prompt": "".join(tokens), "tokens": tokens, "patterns": [[weights, weights]], "next": predictions}
    (run / f"probes/step-{step:08}.json").write_text(json.dumps({"step": step, "loss": 1.0, "sentences": [sentence]}))


def write_runs(folder):
    for run in range(3):
        (folder / f"run-{run}/samples").mkdir(parents=True)
        (folder / f"run-{run}/run.toml").write_text("[train]\nsteps = 20000\n")
        (folder / f"run-{run}/metrics.jsonl").write_text("".join(line(run, step) for step in range(1, POINTS + 1)))
        (folder / f"run-{run}/samples/step-00000100.txt").write_text("<b>sample</b>")
    for step in [0, 100, 200]:
        write_probe(folder / "run-0", step)


def check(page, url, folder):
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    expect(page.locator("#runs label")).to_have_count(3)
    expect(page.locator("#runs small").first).to_have_text(f"{POINTS} / 20000")
    expect(page.locator("figure:visible")).to_have_count(6)
    titles = page.locator("figure h2").all_inner_texts()
    assert {"gradient norm", "tokens per second", "memory (MiB)"} <= set(titles), titles
    assert page.locator("#samples pre").first.inner_text() == "<b>sample</b>", "samples are text, not markup"
    # A run that continues is followed.
    with (folder / "run-1/metrics.jsonl").open("a") as file:
        file.write("".join(line(1, step) for step in range(POINTS + 1, POINTS + 51)))
    expect(page.locator("#runs small").nth(1)).to_have_text(f"{POINTS + 50} / 20000")
    check_samples(page, folder)
    check_probes(page, folder)
    check_rewritten(page, folder)
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


def check_samples(page, folder):
    """New samples are added above the earlier ones."""
    (folder / "run-0/samples/step-00000200.txt").write_text("a second sample")
    (folder / "run-0/samples/step-00000300.txt").write_text("a third sample")
    article = page.locator("#samples article").first
    expect(article.locator("pre")).to_have_text(["a third sample", "a second sample", "<b>sample</b>"])
    expect(article.locator("h3").first).to_have_text("step 300")


def check_probes(page, folder):
    """The slider shows each step that was recorded, and follows the newest one if it is at the end."""
    section = page.locator("#probes")
    step, prediction = section.locator("output"), section.locator("table").nth(1)
    slider = section.locator("input[type=range]")
    expect(step).to_have_text("step 200")
    expect(prediction).to_contain_text("word 200")
    expect(section.locator("table").first.locator("td")).to_have_text(["1.00", "", "", "0.50", "0.50", "", "0.33", "0.33", "0.33"])
    write_probe(folder / "run-0", 300)
    expect(step).to_have_text("step 300")
    slider.fill("1")
    expect(prediction).to_contain_text("word 100")
    expect(prediction).to_contain_text("75.0 %")
    section.get_by_role("button", name="a", exact=True).click()
    expect(prediction.locator("caption")).to_have_text('next word after "a"')
    write_probe(folder / "run-0", 400)
    expect(slider).to_have_attribute("max", "4")
    expect(step).to_have_text("step 100")  # where the user left it


def check_rewritten(page, folder):
    """A run that is resumed from an earlier step, or started again, is shown as its files are now."""
    for steps, seconds in [(POINTS - 500, 20), (POINTS + 200, 30)]:
        lines = "".join(line(2, step, seconds) for step in range(1, steps + 1))
        (folder / "run-2/metrics.jsonl").write_text(lines)
        expect(page.locator("#runs small").nth(2)).to_have_text(f"{steps} / 20000")
        points = page.evaluate("() => runs.get('run-2').series.loss.steps.length")
        assert points == steps, f"{points} points of {steps}"


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
