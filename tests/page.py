"""Test the page of `nextword serve` in headless Chromium.

    pip install playwright    # also requires Chromium, e.g. `apt-get install chromium`
    python tests/page.py target/release/nextword runs/quickstart/best [SCREENSHOT_FOLDER]

Types, streams, stops and inspects probabilities by mouse and keyboard, wide and narrow. Fails on any
console error and on any request to another server.
"""

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

from openai_client import Server, with_chat_template
from playwright.sync_api import expect, sync_playwright

DONE = re.compile(r"\d tokens? in ")  # the status after a completion


def watch(page, server, errors):
    page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: errors.append(str(e)))

    def request(r):
        if not r.url.startswith(server.url):
            errors.append(f"unexpected request to {r.url}")

    page.on("request", request)


def complete(page):
    page.fill("#prompt", "One day <img src=x onerror=alert(1)>")
    page.fill("#max_tokens", "24")
    page.fill("#seed", "5")
    page.keyboard.press("Tab")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_contain_text(DONE, timeout=20_000)
    assert page.locator("#text img").count() == 0, "generated text is rendered as markup"
    tokens = page.locator("#text .piece")
    assert tokens.count() > 3, "no tokens"
    first = page.locator("#text").inner_text()

    tokens.nth(1).hover()
    rows = page.locator("#token tbody tr")
    assert rows.count() >= 5
    assert "%" in rows.first.inner_text()
    assert page.locator("#token tr.drawn").count() == 1

    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == tokens.nth(1).inner_text()

    page.click("#again")
    expect(page.locator("#status")).to_contain_text(DONE, timeout=20_000)
    assert page.locator("#text").inner_text() == first, "a seeded completion changes"


def ignore_eos(route):
    """Make the model continue after the EOS token."""
    route.continue_(post_data=json.dumps({**route.request.post_data_json, "ignore_eos": True}))


def stop(page):
    page.route("**/v1/completions", ignore_eos)
    page.fill("#max_tokens", "20000")
    page.click("#complete-form .primary")
    expect(page.locator("#text .piece").nth(3)).to_be_visible(timeout=20_000)
    page.click("#complete-form .stop")
    expect(page.locator("#status")).to_have_text("stopped")
    length = len(page.locator("#text").inner_text())
    page.wait_for_timeout(200)
    assert len(page.locator("#text").inner_text()) == length, "the text grows after Stop"
    page.unroute("**/v1/completions")


def chat(page):
    page.select_option("#model", "chat")
    page.focus("#tab-complete")
    page.keyboard.press("ArrowRight")
    page.fill("#max_tokens", "16")
    page.fill("#said", "Tell me of a fox")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text(DONE, timeout=20_000)
    assert page.locator(".message").count() == 2
    page.click("#retry")
    expect(page.locator("#status")).to_contain_text(DONE, timeout=20_000)
    assert page.locator(".message").count() == 2
    page.locator(".message.assistant .piece").first.hover()
    assert page.locator("#token").is_visible()


def sse(*chunks):
    return "".join(f"data: {json.dumps({'choices': [{'index': 0, **c}]})}\n\n" for c in chunks) + "data: [DONE]\n\n"


def multi_token_characters(page):
    """All tokens of a multi-token character are shown, and later characters keep their own tokens."""
    def chunk(text, tokens, offsets):
        return {"text": text, "logprobs": {
            "tokens": tokens, "token_logprobs": [-0.1] * len(tokens), "text_offset": offsets,
            "top_logprobs": [{t: -0.1, "other": -3} for t in tokens],
        }}

    body = sse(chunk("", ["\\xE2"], [0]), chunk("", ["\\x9C"], [0]), chunk("✓🦊k go", ["\\x93", "🦊k", " go"], [0, 1, 3]))
    respond = lambda route: route.fulfill(body=body, content_type="text/event-stream")
    page.route("**/v1/completions", respond)
    page.click("#again")
    tokens = page.locator("#text .piece")
    expect(tokens).to_have_count(3)
    assert tokens.all_inner_texts() == ["✓", "🦊k", " go"], tokens.all_inner_texts()
    for i, sampled in enumerate([["\\xE2", "\\x9C", "\\x93"], ["🦊k"], [" go"]]):
        tokens.nth(i).hover()
        shown = page.locator("#token tr.drawn td:first-child").all_text_contents()
        assert shown == sampled, shown
    page.unroute("**/v1/completions")


def truncated_prompt(page):
    """A prompt longer than the context is truncated, and the page says so."""
    assert page.locator("#text .cut").count() == 0
    page.fill("#prompt", "One day a fox went home. " * 400)
    page.fill("#max_tokens", "4")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#text .cut")).to_contain_text("left out")
    expect(page.locator("#status")).to_contain_text(DONE, timeout=20_000)


def reset_while_streaming(page):
    """A conversation reset while streaming leaves no traces in the next one."""
    sent = []

    def watch_route(route):
        sent.append([m["content"] for m in route.request.post_data_json["messages"]])
        ignore_eos(route)

    page.route("**/v1/chat/completions", watch_route)
    page.fill("#max_tokens", "20000")
    tokens = page.locator(".message.assistant .piece")

    def press(button):  # by keyboard, since the growing reply moves the button
        page.focus(button)
        page.keyboard.press("Enter")

    for message in ("one", "two"):
        press("#reset")
        page.fill("#said", message)
        page.keyboard.press("Enter")
        expect(tokens.nth(3)).to_be_visible(timeout=20_000)
    press("#chat-form .stop")
    expect(page.locator("#status")).to_have_text("stopped")
    assert sent == [["one"], ["two"]], sent
    assert page.locator(".message").count() == 2
    page.unroute("**/v1/chat/completions")


def no_chat(page):
    """A model that cannot chat says so in a reader's words, and has no form to fail with."""
    page.select_option("#model", "plain")
    expect(page.locator("#no-chat")).to_contain_text("has not learned to answer in turns")
    expect(page.locator("#chat-form")).to_be_hidden()
    assert "jinja" not in page.inner_text("body")
    page.select_option("#model", "chat")
    expect(page.locator("#no-chat")).to_be_hidden()
    expect(page.locator("#chat-form")).to_be_visible()


def another_model(page):
    """The list of predictions does not stay when another model is chosen."""
    page.click("#tab-complete")
    page.fill("#prompt", "One day")
    page.fill("#max_tokens", "8")
    page.click("#complete-form .primary")
    expect(page.locator("#status")).to_contain_text(DONE, timeout=20_000)
    page.locator("#text .piece").first.hover()
    expect(page.locator("#token")).to_be_visible()
    page.mouse.move(0, 0)
    page.select_option("#model", "plain")
    expect(page.locator("#token")).to_be_hidden()
    expect(page.locator("#hint")).to_be_visible()


def error(page):
    """An error of the server is shown."""
    body = json.dumps({"error": {"message": "`top_k` must be an integer; hint: use 40"}})
    page.route("**/v1/completions", lambda route: route.fulfill(status=400, body=body, content_type="application/json"))
    page.click("#complete-form .primary")
    expect(page.locator("#error")).to_contain_text("hint: use 40")
    page.unroute("**/v1/completions")


def style_of(page):
    """What must look the same on every page."""
    return page.evaluate(
        """() => {
      const style = (selector, ...names) => names.map((name) => getComputedStyle(document.querySelector(selector))[name]);
      return [style('body', 'backgroundColor', 'color', 'maxWidth'), style('.brand', 'color', 'fontFamily', 'fontSize'),
        style('h1', 'fontFamily', 'fontSize', 'color'), style('.primary', 'backgroundColor', 'color'), style('.site', 'borderBottomColor'),
        [...document.querySelectorAll('.site nav a')].map((a) => a.textContent)];
    }"""
    )


def explain(page):
    page.click("#tab-complete")
    page.fill("#prompt", "One day a fox")
    styles = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        styles.append(style_of(page))
    page.click("#explain")
    expect(page.locator(".card h2")).to_have_text("The prediction")
    expect(page.locator("[name=prompt]")).to_have_value("One day a fox")
    for scheme, style in zip(("light", "dark"), styles):
        page.emulate_media(color_scheme=scheme)
        assert style_of(page) == style, (scheme, style_of(page), style)
    page.emulate_media(color_scheme="light")
    page.click(".site nav a >> text=Home")
    expect(page.locator("#prompt")).to_be_visible()


def main():
    program, model_dir, *screenshots = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(program, f"plain={model_dir}", f"chat={with_chat_template(model_dir, folder)}")
        chromium = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        errors = []
        try:
            for width in (1280, 360):
                page = browser.new_page(viewport={"width": width, "height": 800})
                watch(page, server, errors)
                page.goto(server.url)
                expect(page.locator("#about")).to_contain_text("context of")
                if width == 360:
                    page.click("summary")
                for step in (complete, multi_token_characters, stop, truncated_prompt, chat, reset_while_streaming, no_chat, another_model):
                    step(page)
                    shown = page.evaluate("document.documentElement.scrollWidth")
                    assert shown <= width, f"{step.__name__}: {shown} pixels do not fit {width}"
                    if screenshots:
                        name = f"{step.__name__}-{width}.png"
                        page.screenshot(path=str(Path(screenshots[0]) / name), full_page=True)
                assert not errors, errors
                error(page)  # the browser itself logs a failed request in the console
                errors.clear()
                explain(page)
                assert not errors, errors
                page.close()
        finally:
            browser.close()
            server.stop()
    print("all page checks passed")


if __name__ == "__main__":
    main()
