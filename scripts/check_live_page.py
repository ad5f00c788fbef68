"""Test the /explain page of a running server with two models, wide and narrow, with and without an API key.

    python scripts/check_live_page.py target/release/nextword runs/quickstart docs/models/statquest
        [--screenshots FOLDER]

Requires the same packages as check_page.py.
"""

import argparse
import pathlib
import re
import signal
import subprocess
import sys
import threading

from check_page import (
    at_each_size, charts, expect, fits, go, hovering, inspecting, number, readable, removing, training_step, walk,
    watch_errors, what_if,
)  # fmt: skip


class Server:
    def __init__(self, program, *args):
        self.process = subprocess.Popen([program, "serve", *args, "--port", "0"], stderr=subprocess.PIPE, text=True)
        line = next((line for line in self.process.stderr if "listening on " in line), None)
        if line is None:
            sys.exit("the server did not start")
        self.url = line.split("listening on ")[1].split()[0]
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=40)


def wait_for_report(page):
    """Wait until the report of the prompt in the form is shown."""
    expect(page.locator("#busy")).to_have_text("", timeout=30_000)
    expect(page.locator(".card")).not_to_have_count(0)


def check_live(page, server):
    errors = watch_errors(page, server.url)
    page.goto(f"{server.url}/explain")
    expect(page.locator("select[name=model] option")).to_have_count(2)
    page.fill("[name=prompt]", "One day <img src=x onerror=alert(1)>")
    page.keyboard.press("Enter")
    wait_for_report(page)
    assert page.locator("img").count() == 0, "prompt text is rendered as markup"
    assert "prompt=One+day" in page.url
    page.fill("[name=prompt]", "One day a fox")
    page.click("#explain")
    wait_for_report(page)
    assert "fox" in page.inner_text("#bar").replace("\n", "") or page.locator("#bar .word").count() > 4
    for part in (walk, readable, hovering, inspecting, charts):
        part(page)

    # The page shows the values that the server returned.
    story = page.evaluate("async () => (await fetch('/explain', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(state.panels[0].request)})).json()")
    go(page, "next-token predictions")
    assert [number(text) for text in page.locator("td.tint").all_inner_texts()] == [round(100 * next["top"][0]["probability"], 1) for next in story["next_words"]]
    requests = []
    page.on("request", lambda r: requests.append(r.post_data_json) if r.method == "POST" else None)
    what_if(page)
    assert any(body.get("what_if") for body in requests), "edits are sent to the server"
    removing(page)
    training_step(page)
    assert page.locator(".site nav a").all_inner_texts() == ["Home", "Explain", "API", "Metrics"]

    # Compare with a second prompt, then with a second model; use browser history.
    page.evaluate("document.querySelector('#ask details').open = true")
    page.fill("[name=compare]", "One day a cat")
    page.click("#explain")
    wait_for_report(page)
    go(page, "token embedding")
    expect(page.locator(".pane")).to_have_count(2)
    assert page.locator("td.differs").count() > 0
    page.fill("[name=compare]", "")
    page.select_option("[name=beside]", index=2)
    page.click("#explain")
    wait_for_report(page)
    assert page.evaluate("new Set(state.panels.map((panel) => panel.story.model.name)).size") == 2, "two models are shown side by side"
    fits(page, "two models")
    page.go_back()
    wait_for_report(page)
    expect(page.locator("[name=compare]")).to_have_value("One day a cat")
    expect(page.locator("[name=beside]")).to_have_value("")
    page.reload()
    wait_for_report(page)
    assert page.evaluate("state.panels[1].story.prompt") == "One day a cat", "the URL restores the prompt"

    # The report of a long prompt omits details; a card that needs them requests its layer.
    page.fill("[name=compare]", "")
    page.fill("[name=prompt]", "One day a fox went to the river and met a bear. " * 5)
    page.click("#explain")
    wait_for_report(page)
    complete = page.evaluate("state.panels[0].story.steps.every((step) => state.panels[0].story.tensors[step.name])")
    assert not complete, "this report should be incomplete"
    go(page, "the prediction")
    walk(page)
    requests.clear()
    page.goto(f"{page.url.split('#')[0]}#step=blocks.1.hook_resid_mid&view=all")
    page.reload()
    wait_for_report(page)
    expect(page.locator(".card [aria-busy]")).to_have_count(0, timeout=60_000)
    layers = page.evaluate("state.panels[0].story.config.n_layers")
    assert sorted(body["layer"] for body in requests if "layer" in body) == list(range(layers)), "each layer is requested once"
    page.click("#one")
    page.locator(".card td.n").first.click()
    expect(page.locator("#why-address")).to_contain_text("blocks.1.hook_resid_pre[")
    requests.clear()
    page.goto(f"{page.url.split('#')[0]}#step=blocks.2.hook_resid_post")  # present, but its summands are not
    page.reload()
    wait_for_report(page)
    expect(page.locator(".card td.n").first).to_be_visible(timeout=20_000)
    expect(page.locator("#trouble")).to_be_hidden()
    assert 2 in [body["layer"] for body in requests if "layer" in body]
    assert not errors, errors

    # The server's error message is shown; the browser also logs the failed request.
    page.evaluate("document.querySelector('#ask details').open = true")
    page.fill("[name=max_tokens]", "33")
    page.evaluate("document.querySelector('#form').noValidate = true")
    page.click("#explain")
    expect(page.locator("#trouble")).to_contain_text("max_tokens")
    page.goto(f"{server.url}/explain?prompt=One+day+a+fox")  # For the screenshots.
    wait_for_report(page)


def check_key(program, model):
    """With an API key, the browser asks for it once and sends it with each request."""
    server = Server(program, model, "--api-key", "sesame")
    credentials = {"username": "", "password": "sesame"}

    def check(anonymous):
        response = anonymous.request.get(f"{server.url}/explain")
        assert response.status == 401 and response.headers["www-authenticate"].startswith("Basic")
        page = anonymous.context.browser.new_context(http_credentials=credentials).new_page()
        errors = watch_errors(page, server.url)
        page.goto(f"{server.url}/explain?prompt=One+day")
        wait_for_report(page)
        go(page, "tokens")
        page.locator(".card td.n").first.click()
        expect(page.locator("#why-address")).to_have_text(re.compile("tokens"))
        assert not errors, errors

    try:
        at_each_size(check, None)
    finally:
        server.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="nextword executable")
    parser.add_argument("model", help="model folder")
    parser.add_argument("other", help="second model folder, to compare with")
    parser.add_argument("--screenshots", type=pathlib.Path, help="folder for screenshots")
    options = parser.parse_args()
    server = Server(options.program, options.model, options.other)
    try:
        at_each_size(lambda page: check_live(page, server), options.screenshots)
    finally:
        server.stop()
    check_key(options.program, options.model)


if __name__ == "__main__":
    main()
