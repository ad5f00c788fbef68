"""Opens explained pages in Chromium, offline, and uses them as a reader does.

    nextword explain RUN "what is statquest" --compare "statquest is what" --over-training --out page.html
    python scripts/check_page.py page.html [--screenshots FOLDER]

Needs `playwright` and a Chromium (CHROMIUM=/usr/bin/chromium).
"""

import argparse
import math
import os
import pathlib

from playwright.sync_api import sync_playwright


def number(text):
    return float(text.replace("−", "-").replace("%", "").strip())


def check(page, url, requests):
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.on("request", lambda request: requests.append(request.url))

    page.goto(f"{url}#step=1")
    total = int(page.inner_text("#count").split(" of ")[1])
    assert page.locator(".card").count() == 1, "a beginner sees one card"
    for step in range(2, total + 1):  # every card opens by keyboard
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#count") == f"{step} of {total}"
        assert page.inner_text(".card h2"), step
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"card {step} is {wide} pixels too wide"
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#count") == f"{total - 1} of {total}"
    page.keyboard.press("a")
    assert page.locator(".card").count() == total, "an expert sees all"

    # Every number that is shown is derived to itself, in both panes.
    wrong = page.evaluate(
        """() => {
      const wrong = [];
      state.panes.forEach((pane) => pane.story.steps.forEach((step) => {
        const size = step.shape.reduce((a, b) => a * b, 1);
        for (let at = 0; at < size; at++) {
          const index = []; let left = at;
          for (const length of [...step.shape].reverse()) { index.unshift(left % length); left = Math.floor(left / length); }
          const found = pane.derive(step.name, index);
          if ((found.value === null) !== (found.result === null)) wrong.push(found.address);
          else if (found.value !== null && !(Math.abs(found.value - found.result) <= 1e-5 * Math.max(1, Math.abs(found.value)))) wrong.push(`${found.address}: ${found.value} ${found.result}`);
        }
      }));
      return wrong;
    }"""
    )
    assert not wrong, wrong[:5]

    # The page's own pass equals the model's.
    off = page.evaluate(
        """() => Math.max(...state.panes.map((pane) => {
      const values = evaluate(pane.story.steps, pane.allWeights(), pane.story.tokens.map((t) => t.id));
      return Math.max(...Object.entries(pane.story.tensors).flatMap(([name, tensor]) => tensor.data.map((x, i) =>
        x === null ? 0 : Math.abs(x - values[name].data[i]) / Math.max(1, Math.abs(x)))));
    }))"""
    )
    assert off <= 1e-5, off

    page.goto(f"{url}#step=9")
    page.reload()
    cell = page.locator("td.n").nth(1)
    cell.hover()
    assert page.locator(".word.lit").count() >= 1, "hovering lights the word up at the top"
    cell.click()
    address = page.inner_text("#why-address")
    assert "[" in address and page.locator("td.pinned").count() == 1
    assert "why=" in page.url, "a deep link"
    for _ in range(30):  # down to where nothing comes before
        links = page.locator("#why li button:not([disabled])")
        if links.count() == 0:
            break
        links.last.click()
    assert "Here the chain ends." in page.inner_text("#why"), page.inner_text("#why")
    page.reload()
    assert "Here the chain ends." in page.inner_text("#why"), "the link leads back to it"
    page.keyboard.press("Escape")
    assert page.locator("td.pinned").count() == 0
    page.locator("td.n").first.focus()
    page.keyboard.press("Enter")
    assert page.inner_text("#why-address"), "a number is pinned by keyboard"
    page.keyboard.press("Escape")

    assert page.locator(".panes.two").count() == 1, "two prompts side by side"
    assert page.locator("td.differs").count() > 0, "differences are marked"

    def go(title):
        names = page.locator("#jump option").all_inner_texts()
        page.select_option("#jump", index=next(i for i, name in enumerate(names) if title in name))

    go("What if?")
    likeliest = page.inner_text(".bars .chosen >> nth=0")
    page.click("[data-off='0.0']")
    assert page.locator(".bars .ghost").count() > 0, "what it was stands beside it"
    assert page.get_attribute("[data-off='0.0']", "aria-pressed") == "true"
    changed = page.inner_text(".card")
    page.click("#reset")
    assert page.inner_text(".bars .chosen >> nth=0") == likeliest
    page.select_option("[data-swap='0']", index=1)
    assert page.inner_text(".card") != changed
    page.click("#reset")
    page.fill("[data-embedding='0']", "3.5")
    page.keyboard.press("Tab")
    assert page.locator(".bars .ghost").count() > 0, "an edited embedding moves the percentages"

    go("Watch it learn")
    last = page.inner_text(".card strong")
    page.focus("#slider")
    page.keyboard.press("Home")
    assert page.inner_text(".card strong") == "step 0" != last, "the slider goes back to the beginning"
    assert not errors, errors
    shares = [number(text) for text in page.locator(".bars > span:nth-child(3n)").all_inner_texts()]
    assert math.isclose(sum(shares), 100, abs_tol=1), shares


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("--screenshots", type=pathlib.Path)
    options = parser.parse_args()
    url = options.page.resolve().as_uri()
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for width, height in ((1280, 900), (360, 760)):
            context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
            requests = []
            check(context.new_page(), url, requests)
            leaving = [request for request in requests if not request.startswith(("file:", "data:"))]
            assert not leaving, leaving
            if options.screenshots:
                options.screenshots.mkdir(parents=True, exist_ok=True)
                page = context.new_page()
                for step in (3, 9, 20):
                    page.goto(f"{url}#step={step}")
                    page.reload()
                    page.screenshot(path=options.screenshots / f"{width}-{step}.png")
            print(f"{width} x {height}: all as it should be, no request left the page")
        browser.close()


if __name__ == "__main__":
    main()
