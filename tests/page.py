"""The page of `nextword serve` in headless Chromium.

    pip install playwright    # and a Chromium, as of `apt-get install chromium`
    python tests/page.py target/release/nextword runs/quickstart/best [FOLDER FOR PICTURES]

Types, streams, stops, reads probabilities, by mouse and by keyboard, wide and narrow; fails on any
error in the console and on any request to somewhere else.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from openai_client import Server, talker
from playwright.sync_api import expect, sync_playwright


def watch(page, server, trouble):
    page.on("console", lambda m: trouble.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: trouble.append(str(e)))

    def request(r):
        if not r.url.startswith(server.url):
            trouble.append(f"a request to {r.url}")

    page.on("request", request)


def complete(page):
    page.fill("#prompt", "One day <img src=x onerror=alert(1)>")
    page.fill("#max_tokens", "24")
    page.fill("#seed", "5")
    page.keyboard.press("Tab")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_contain_text("tokens in", timeout=20_000)
    assert page.locator("#text img").count() == 0, "text becomes markup"
    pieces = page.locator("#text .piece")
    assert pieces.count() > 3, "no tokens"
    first = page.locator("#text").inner_text()

    pieces.nth(1).hover()
    rows = page.locator("#token tbody tr")
    assert rows.count() >= 5
    assert "%" in rows.first.inner_text()
    assert page.locator("#token tr.drawn").count() == 1

    pieces.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == pieces.nth(1).inner_text()

    page.click("#again")
    expect(page.locator("#status")).to_contain_text("tokens in", timeout=20_000)
    assert page.locator("#text").inner_text() == first, "a seeded answer changes"


def endless(route):
    """Lets the model write on behind its end token."""
    route.continue_(post_data=json.dumps({**route.request.post_data_json, "ignore_eos": True}))


def stop(page):
    page.route("**/v1/completions", endless)
    page.fill("#max_tokens", "20000")
    page.click("#complete-form .primary")
    expect(page.locator("#text .piece").nth(3)).to_be_visible(timeout=20_000)
    page.click("#complete-form .stop")
    expect(page.locator("#status")).to_have_text("stopped")
    length = len(page.locator("#text").inner_text())
    page.wait_for_timeout(200)
    assert len(page.locator("#text").inner_text()) == length, "it goes on after Stop"
    page.unroute("**/v1/completions")


def chat(page):
    page.select_option("#model", "talker")
    page.focus("#tab-complete")
    page.keyboard.press("ArrowRight")
    page.fill("#max_tokens", "16")
    page.fill("#said", "Tell me of a fox")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("tokens in", timeout=20_000)
    assert page.locator(".message").count() == 2
    page.click("#retry")
    expect(page.locator("#status")).to_contain_text("tokens in", timeout=20_000)
    assert page.locator(".message").count() == 2
    page.locator(".message.assistant .piece").first.hover()
    assert page.locator("#token").is_visible()


def sse(*chunks):
    return "".join(f"data: {json.dumps({'choices': [{'index': 0, **c}]})}\n\n" for c in chunks) + "data: [DONE]\n\n"


def parts_of_characters(page):
    """Of a character of several tokens all are shown, and those behind it keep their own."""
    def told(text, tokens, offsets):
        return {"text": text, "logprobs": {
            "tokens": tokens, "token_logprobs": [-0.1] * len(tokens), "text_offset": offsets,
            "top_logprobs": [{t: -0.1, "other": -3} for t in tokens],
        }}

    body = sse(told("", ["\\xE2"], [0]), told("", ["\\x9C"], [0]), told("✓🦊k go", ["\\x93", "🦊k", " go"], [0, 1, 3]))
    answer = lambda route: route.fulfill(body=body, content_type="text/event-stream")
    page.route("**/v1/completions", answer)
    page.click("#again")
    pieces = page.locator("#text .piece")
    expect(pieces).to_have_count(3)
    assert pieces.all_inner_texts() == ["✓", "🦊k", " go"], pieces.all_inner_texts()
    for at, drawn in enumerate([["\\xE2", "\\x9C", "\\x93"], ["🦊k"], [" go"]]):
        pieces.nth(at).hover()
        shown = page.locator("#token tr.drawn td:first-child").all_text_contents()
        assert shown == drawn, shown
    page.unroute("**/v1/completions")


def too_long(page):
    """What does not fit the model is left out, and is said to be."""
    assert page.locator("#text .cut").count() == 0
    page.fill("#prompt", "One day a fox went home. " * 400)
    page.fill("#max_tokens", "4")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#text .cut")).to_contain_text("left out")
    expect(page.locator("#status")).to_contain_text("tokens in", timeout=20_000)


def begin_anew(page):
    """A conversation that is left while the model answers leaves nothing in the next one."""
    asked = []

    def watched(route):
        asked.append([m["content"] for m in route.request.post_data_json["messages"]])
        endless(route)

    page.route("**/v1/chat/completions", watched)
    page.fill("#max_tokens", "20000")
    pieces = page.locator(".message.assistant .piece")

    def press(button):  # by keyboard: the growing answer moves it under the mouse
        page.focus(button)
        page.keyboard.press("Enter")

    for said in ("one", "two"):
        press("#reset")
        page.fill("#said", said)
        page.keyboard.press("Enter")
        expect(pieces.nth(3)).to_be_visible(timeout=20_000)
    press("#chat-form .stop")
    expect(page.locator("#status")).to_have_text("stopped")
    assert asked == [["one"], ["two"]], asked
    assert page.locator(".message").count() == 2
    page.unroute("**/v1/chat/completions")


def error(page):
    page.select_option("#model", "plain")
    page.fill("#said", "hello")
    page.click("#chat-form .primary")
    expect(page.locator("#error")).to_contain_text("chat_template.jinja")


def explain(page):
    page.click("#tab-complete")
    page.fill("#prompt", "One day a fox")
    page.click("#explain")
    expect(page.locator(".card h2")).to_have_text("The words")
    expect(page.locator("[name=prompt]")).to_have_value("One day a fox")


def main():
    program, record, *pictures = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(program, f"plain={record}", f"talker={talker(record, folder)}")
        chromium = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        trouble = []
        try:
            for width in (1280, 360):
                page = browser.new_page(viewport={"width": width, "height": 800})
                watch(page, server, trouble)
                page.goto(server.url)
                expect(page.locator("#about")).to_contain_text("context of")
                if width == 360:
                    page.click("summary")
                for step in (complete, parts_of_characters, stop, too_long, chat, begin_anew):
                    step(page)
                    shown = page.evaluate("document.documentElement.scrollWidth")
                    assert shown <= width, f"{step.__name__}: {shown} pixels do not fit {width}"
                    if pictures:
                        name = f"{step.__name__}-{width}.png"
                        page.screenshot(path=str(Path(pictures[0]) / name), full_page=True)
                assert not trouble, trouble
                error(page)  # a refused request is in the console by the browser's own will
                trouble.clear()
                explain(page)
                assert not trouble, trouble
                page.close()
        finally:
            browser.close()
            server.stop()
    print("the page holds")


if __name__ == "__main__":
    main()
