#!/usr/bin/env python3
"""Make the pictures of README.md from real runs.

    pip install playwright
    python scripts/make_pictures.py target/release/nextword

Trains configs/statquest.toml and configs/quickstart.toml in a temporary folder (some minutes) and writes
docs/images/explain.png (a screenshot of the page of `nextword explain`, in headless Chromium:
`apt-get install chromium`, or set CHROMIUM=PATH) and docs/images/loss.svg (`nextword plot`).
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

try:
    from playwright.sync_api import expect, sync_playwright
except ImportError:
    sys.exit("playwright is not installed; hint: pip install playwright")

ROOT = pathlib.Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"


def screenshot(page_file, image):
    """Open the attention weights, trace one of them back, and take a picture."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 760}, color_scheme="light")
        page.goto(page_file.as_uri())
        page.locator(".card h2").first.wait_for()
        while "attention weights" not in page.inner_text(".card h2").lower():
            page.keyboard.press("ArrowRight")
        page.locator("#cards td.n").nth(1).click()
        expect(page.locator("#why-address")).to_contain_text("hook_pattern[")
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=str(image))
        browser.close()


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    program = str(pathlib.Path(sys.argv[1]).resolve())
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)

        def run(*arguments):
            subprocess.run([program, *map(str, arguments)], cwd=folder, check=True)

        run("train", ROOT / "configs" / "statquest.toml", "--quiet")
        run("explain", "runs/statquest", "what is statquest", "--over-training", "--out", "page.html")
        screenshot(folder / "page.html", IMAGES / "explain.png")
        run("train", ROOT / "configs" / "quickstart.toml", "--quiet")
        run("plot", "runs/quickstart", "--out", IMAGES / "loss.svg")


if __name__ == "__main__":
    main()
