"""Starts a server with two records and uses its page under /explain, wide and narrow, without and with a key.

    python scripts/check_live_page.py target/release/nextword runs/quickstart docs/records/statquest
        [--screenshots FOLDER]

Needs what check_page.py needs.
"""

import argparse
import pathlib
import re
import signal
import subprocess
import sys
import threading

from check_page import asking, expect, fits, go, hovering, number, pictures, readable, sized, walk, watched, what_if


class Server:
    def __init__(self, program, *args):
        self.process = subprocess.Popen([program, "serve", *args, "--port", "0"], stderr=subprocess.PIPE, text=True)
        line = next((line for line in self.process.stderr if "listening on " in line), None)
        if line is None:
            sys.exit("the server does not start")
        self.url = line.split("listening on ")[1].split()[0]
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=40)


def told(page):
    """Waits for the story of the prompt in the form."""
    expect(page.locator("#busy")).to_have_text("", timeout=30_000)
    expect(page.locator(".card")).not_to_have_count(0)


def check_live(page, server):
    trouble = watched(page, server.url)
    page.goto(f"{server.url}/explain")
    expect(page.locator("select[name=model] option")).to_have_count(2)
    page.fill("[name=prompt]", "One day <img src=x onerror=alert(1)>")
    page.keyboard.press("Enter")
    told(page)
    assert page.locator("img").count() == 0, "text becomes markup"
    assert "prompt=One+day" in page.url
    page.fill("[name=prompt]", "One day a fox")
    page.click("#explain")
    told(page)
    assert "fox" in page.inner_text("#bar").replace("\n", "") or page.locator("#bar .word").count() > 4
    for part in (walk, readable, hovering, asking, pictures):
        part(page)

    # What the page shows is what the server says.
    story = page.evaluate("async () => (await fetch('/explain', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(state.panes[0].request)})).json()")
    go(page, "the next words")
    assert [number(text) for text in page.locator("td.tint").all_inner_texts()] == [round(100 * next["top"][0]["probability"], 1) for next in story["next_words"]]
    asked = []
    page.on("request", lambda r: asked.append(r.post_data_json) if r.method == "POST" else None)
    what_if(page)
    assert any(body.get("what_if") for body in asked), "changes are asked of the server"

    # A prompt beside it, then a model; back and forth as browsers do.
    page.evaluate("document.querySelector('#ask details').open = true")
    page.fill("[name=compare]", "One day a cat")
    page.click("#explain")
    told(page)
    go(page, "word embedding")
    expect(page.locator(".pane")).to_have_count(2)
    assert page.locator("td.differs").count() > 0
    page.fill("[name=compare]", "")
    page.select_option("[name=beside]", index=2)
    page.click("#explain")
    told(page)
    assert page.evaluate("new Set(state.panes.map((pane) => pane.story.model.name)).size") == 2, "two models side by side"
    fits(page, "two models")
    page.go_back()
    told(page)
    expect(page.locator("[name=compare]")).to_have_value("One day a cat")
    expect(page.locator("[name=beside]")).to_have_value("")
    page.reload()
    told(page)
    assert page.evaluate("state.panes[1].story.prompt") == "One day a cat", "the address holds the question"

    # A long prompt's story leaves details out; a card that needs them asks for its layer.
    page.fill("[name=compare]", "")
    page.fill("[name=prompt]", "One day a fox went to the river and met a bear. " * 5)
    page.click("#explain")
    told(page)
    whole = page.evaluate("state.panes[0].story.steps.every((step) => state.panes[0].story.tensors[step.name])")
    assert not whole, "this story is meant to be too long"
    go(page, "the words")
    walk(page)
    asked.clear()
    page.goto(f"{page.url.split('#')[0]}#step=blocks.1.hook_resid_mid&view=all")
    page.reload()
    told(page)
    expect(page.locator(".card [aria-busy]")).to_have_count(0, timeout=20_000)
    layers = page.evaluate("state.panes[0].story.config.n_layers")
    assert sorted(body["layer"] for body in asked if "layer" in body) == list(range(layers)), "one question a layer"
    page.click("#one")
    page.locator(".card td.n").first.click()
    expect(page.locator("#why-address")).to_contain_text("blocks.1.hook_resid_pre[")
    asked.clear()
    page.goto(f"{page.url.split('#')[0]}#step=blocks.2.hook_resid_post")  # here, its summands are not
    page.reload()
    told(page)
    expect(page.locator(".card td.n").first).to_be_visible(timeout=20_000)
    expect(page.locator("#trouble")).to_be_hidden()
    assert 2 in [body["layer"] for body in asked if "layer" in body]
    assert not trouble, trouble

    # What the server refuses is told in its words; the browser notes the refusal in the console.
    page.evaluate("document.querySelector('#ask details').open = true")
    page.fill("[name=max_tokens]", "33")
    page.evaluate("document.querySelector('#form').noValidate = true")
    page.click("#explain")
    expect(page.locator("#trouble")).to_contain_text("max_tokens")
    page.goto(f"{server.url}/explain?prompt=One+day+a+fox")  # For the pictures.
    told(page)


def check_key(program, record):
    """With a key the browser asks for it once, and all questions carry it."""
    server = Server(program, record, "--api-key", "sesame")
    credentials = {"username": "", "password": "sesame"}

    def check(stranger):
        refused = stranger.request.get(f"{server.url}/explain")
        assert refused.status == 401 and refused.headers["www-authenticate"].startswith("Basic")
        page = stranger.context.browser.new_context(http_credentials=credentials).new_page()
        trouble = watched(page, server.url)
        page.goto(f"{server.url}/explain?prompt=One+day")
        told(page)
        page.locator("td.n").first.click()
        expect(page.locator("#why-address")).to_have_text(re.compile("tokens"))
        assert not trouble, trouble

    try:
        sized(check, None)
    finally:
        server.stop()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("record")
    parser.add_argument("other")
    parser.add_argument("--screenshots", type=pathlib.Path)
    options = parser.parse_args()
    server = Server(options.program, options.record, options.other)
    try:
        sized(lambda page: check_live(page, server), options.screenshots)
    finally:
        server.stop()
    check_key(options.program, options.record)


if __name__ == "__main__":
    main()
