"""Test an exported explain page in headless Chromium, offline, wide and narrow.

    nextword explain RUN "what is statquest" --compare "statquest is what" --over-training --out page.html
    python scripts/check_page.py page.html [--screenshots FOLDER]

Fails on console errors and on any network request. Requires `pip install playwright` and Chromium
(`apt-get install chromium`, or set CHROMIUM=PATH). check_live_page.py tests the page of a server.
"""

import argparse
import json
import math
import os
import pathlib
import re
import shutil
import sys

try:
    from playwright.sync_api import expect, sync_playwright
except ImportError:
    sys.exit("playwright is not installed; hint: pip install playwright")

SIZES = ((1280, 900), (360, 760))


def number(text):
    return float(re.search(r"[−-]?[\d.]+", text.replace("−", "-"))[0])


def watch_errors(page, allowed):
    """Collect page errors and requests outside `allowed` in a list."""
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    page.on("request", lambda r: None if r.url.startswith(allowed) else errors.append(f"unexpected request to {r.url}"))
    return errors


def titles(page):
    return [re.sub(r"^\d+\. (L\d+ )?", "", name) for name in page.locator("#jump option").all_inner_texts()]


def go(page, title):
    page.select_option("#jump", index=next(i for i, name in enumerate(titles(page)) if title in name))


def fits(page, label):
    excess = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert excess <= 0, f"{label}: {excess} pixels too wide"


def walk(page):
    """Every card opens by keyboard and by button, one at a time, and fits."""
    total = page.locator("#jump option").count()
    assert page.locator(".card").count() == 1, "one card is shown by default"
    seen = set()
    for step in range(1, total + 1):
        assert page.text_content("#count") == f"{step} of {total}"
        seen.add(page.inner_text(".card h2"))
        expect(page.locator(".card [aria-busy]")).to_have_count(0, timeout=20_000)
        assert page.locator(".card table, .card .bars, .card p").count() > 1, f"card {step} is empty"
        fits(page, f"card {step}")
        if step < total:
            page.keyboard.press("ArrowRight")
    assert len(seen) > 8
    assert page.is_disabled("#forward")
    page.click("#back")
    assert page.text_content("#count") == f"{total - 1} of {total}"
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.click(".onward button")
    top = page.evaluate("document.querySelector('.card h2').getBoundingClientRect().top / innerHeight")
    assert 0 < top < 0.7, f"the next card should start in view, not at {top}"
    assert page.text_content("#count") == f"{total} of {total}", "the button on the card opens the next one"
    page.keyboard.press("ArrowLeft")
    page.click("#all")
    expect(page.locator(".card")).to_have_count(total)
    fits(page, "all cards")
    page.keyboard.press("a")
    assert page.locator(".card").count() == 1, "the key returns to one card"


def overview(page, url):
    """The page opens on the prediction after the prompt; boxes in the picture of the model open cards."""
    page.goto("about:blank")
    page.goto(url)
    assert page.inner_text(".card h2") == "The prediction"
    prompt = page.evaluate("tokensOf(state.panels[0])[focusOf(state.panels[0])].text")
    predicted = page.evaluate("state.panels[0].story.answer[0].token.text")
    assert page.locator("#bar .word[aria-pressed=true]").first.inner_text().startswith(prompt)
    assert predicted in page.inner_text(".headline") and page.locator(".overview .bars .chosen").count() > 0
    boxes = page.locator("#cards .model-map .map-box").count()
    layers = page.evaluate("state.panels[0].story.config.n_layers")
    assert boxes >= 9 and page.locator("#cards .map-layer").count() == (layers if layers > 1 else 0)
    page.locator("#cards .map-box", has_text="scores").first.click()
    assert page.inner_text(".card h2") == "Attention scores"
    if page.locator(".map-inline summary").is_visible():
        page.click(".map-inline summary")
    here = page.locator(".map-box.here:visible")
    assert here.count() == 1 and here.text_content().startswith("scores"), "the picture marks the current card"
    fits(page, "the picture of the model")
    if page.locator("#history").count():
        page.click("#history")
        assert page.inner_text(".card h2") == "Training history", "the slider is one click from the start"


def reasons(page):
    """Each step says why it is there, and tables that are too wide say that they scroll."""
    for step in range(page.locator("#jump option").count()):
        page.select_option("#jump", index=step)
        title = page.inner_text(".card h2")
        if page.evaluate("cards[state.step].formula !== undefined"):
            assert len(page.inner_text(".reason")) > 40, title
        assert "darker" not in page.inner_text(".card"), f"{title}: in dark mode, a larger value is lighter"
        wide = "[...document.querySelectorAll('.scroll')].filter((each) => each.scrollWidth - each.clientWidth > 1)"
        assert page.evaluate(f"{wide}.every((each) => each.classList.contains('overflows'))"), f"{title}: a table is cut"
        assert page.locator(".scroll.overflows:not(.tighter):has(> table)").count() == 0, f"{title}: a table scrolls before its cells are made smaller"
        overlap = page.evaluate("document.querySelectorAll('.overflows').length > 0 || document.documentElement.scrollWidth <= innerWidth")
        assert overlap, title


def removing(page):
    """Without a part of the model, the predictions change, and the change is shown at every position."""
    go(page, "what if?")
    parts = page.locator("[data-remove]")
    assert parts.count() >= 1
    for n in range(parts.count()):
        parts.nth(n).click()
        table = page.locator("#outcome:not([aria-busy]) table")
        table.first.wait_for()  # The server computes it.
        changes = table.locator("tr td:last-child").all_inner_texts()
        assert any(number(change) != 0 for change in changes), parts.nth(n).inner_text()
        fits(page, "a removed part")
        page.click("#reset")
    page.locator("[data-remove]").first.click()
    page.click("[data-off='0.0']")
    assert page.evaluate("editList(state.edits).length") == 2, "edits can be combined"
    page.click("#reset")


def training_step(page):
    """Loss and gradient on the card follow from each other."""
    go(page, "training step")
    steps = page.evaluate("state.panels[0].story.training")
    assert len(steps) == 2 and page.locator(".gradient").count() >= 2
    for step in steps:
        assert math.isclose(step["loss"], -math.log(step["probability"]), abs_tol=1e-9)
        assert math.isclose(step["gradient"], step["finite_difference"], rel_tol=1e-4, abs_tol=1e-7), step
        assert step["new_loss"] <= step["loss"]
    shown = [number(text) for text in page.locator(".gradient").first.locator(".figure").all_inner_texts()]
    assert len(shown) == 6, shown
    page.locator(".linked").first.click()
    expect(page.locator("#why-address")).to_have_text(steps[0]["weight"])
    fits(page, "training step")
    page.keyboard.press("Escape")


def statements(page):
    """What the cards say about predictions, samples and the model is true of the values that they show."""
    go(page, "next-token predictions")
    rows = page.locator(".pane").first.locator("tbody tr").all()
    for row in rows:
        top, actual = (row.locator(".words-cell").nth(n).inner_text() for n in (0, 1))
        assert actual == "–" or (top == actual.removesuffix(" ✓")) == actual.endswith("✓"), (top, actual)
    # A sampled token that is not the most likely one is not called the prediction.
    said = page.evaluate(
        """() => {
      const [panel] = state.panels, { story } = panel, answer = story.answer[0], top = story.next_words[focusOf(panel)].top;
      const greedy = predictionSentence(panel);
      story.answer[0] = { ...answer, token: top[1], uniform: 0.5 };
      const sampled = predictionSentence(panel);
      story.answer[0] = answer;
      return { greedy, sampled, texts: top.slice(0, 2).map((token) => quoted(token.text)) };
    }"""
    )
    assert f"predicts {said['texts'][0]}" in said["greedy"] and "sampled" not in said["greedy"], said
    assert f"predicts {said['texts'][0]}" in said["sampled"] and said["sampled"].endswith("was sampled. "), said
    go(page, "decoder-only or encoder-decoder")
    has_feed_forward = page.evaluate("state.panels[0].story.config.feed_forward !== 'none'")
    boxes = page.locator(".card figure").first.locator("svg text", has_text="feed-forward").count()
    assert boxes == 2 + has_feed_forward, "the picture shows a feed-forward network only if the model has one"
    # Words that the model does not have are named on the first card and in the titles of the panels.
    unseen = page.evaluate(
        """() => {
      const { story } = state.panels[0];
      story.unknown = ["nice"];
      const found = [overviewBody(state.panels[0]).querySelector(".unseen").textContent, panelTitle(state.panels[0])];
      story.unknown = [];
      return found;
    }"""
    )
    assert all("nice" in text for text in unseen), unseen


def copying(page):
    """The button of a card copies its values, and a card without values has no button."""
    found = page.evaluate(
        """() => cards.map((card, n) => {
      const built = cardOf(card, n), rows = valueRows(built.querySelector(".panes"));
      return [card.title, Boolean(built.querySelector(".copy")), rows.join("\\n")];
    })"""
    )
    for title, has_button, text in found:
        assert has_button and re.search(r"\d", text) or title.startswith("decoder-only"), f"{title}: {text!r}"
        assert "\t" in text, title
    copied = {title: text for title, _, text in found}
    assert re.search(r"\t\d+\.\d\d %", copied["the prediction"]), copied["the prediction"]
    assert "its gradient\t" in copied["training step"] and "the loss after a step of all weights\t" in copied["training step"]
    assert "sum\t" in copied["direct logit attribution"]


def planes(page):
    """The labels of points on a plane lie within its frame and do not overlap, and its axes have numbers."""
    for title in ("token embedding", "query", "key", "value"):
        go(page, title)
        for plane in page.locator("#cards svg.plane").all():
            found = plane.evaluate(
                """(svg) => {
              const frame = svg.getBoundingClientRect(), boxes = [...svg.querySelectorAll("text.label")].map((each) => each.getBoundingClientRect());
              const isInside = (box) => box.left >= frame.left && box.right <= frame.right && box.top >= frame.top && box.bottom <= frame.bottom;
              const apart = (a, b) => a.right <= b.left + 1 || b.right <= a.left + 1 || a.bottom <= b.top + 5 || b.bottom <= a.top + 5;
              return [boxes.every(isInside), boxes.every((a, n) => boxes.slice(n + 1).every((b) => apart(a, b))), svg.querySelectorAll("text.tick").length];
            }"""
            )
            assert found[0] and found[1] and found[2] > 4, (title, found)


def all_steps(page):
    """The view of all steps opens at the current card, and a derivation closes with its card."""
    total = page.locator("#jump option").count()
    page.select_option("#jump", index=total - 2)
    page.keyboard.press("a")
    top = page.evaluate(f"document.getElementById('step-{total - 1}').getBoundingClientRect().top / innerHeight")
    assert -0.1 < top < 0.9, f"the current card is at {top}"
    page.keyboard.press("a")
    go(page, "token embedding")
    page.locator("#cards td.n").first.click()
    expect(page.locator("#why-address")).to_be_visible()
    page.click("#forward")
    expect(page.locator("#why-address")).to_have_count(0)


def changed_panel(page):
    """Where two panels are compared, what-if changes the model of the chosen one."""
    go(page, "what if?")
    if page.locator("#edited").count() == 0:
        return
    page.select_option("#edited", index=1)
    prompt = page.evaluate("panelTitle(state.panels[1])")
    assert page.inner_text(".pane-title") == prompt
    page.click("[data-off='0.0']")
    assert has_changes(page)
    fits(page, "what if in the second panel")
    page.select_option("#edited", index=0)
    assert page.locator("#reset").count() == 0, "the edits belong to one panel"


def hovering(page):
    go(page, "attention weights")
    page.mouse.move(0, 0)
    assert page.locator(".lit").count() == 0
    word = page.locator("#bar .word").nth(1)
    word.hover()
    lit = page.locator("td.lit")
    assert lit.count() > 1 and page.locator("th.lit").count() >= 2, "a word highlights its row and column"
    positions = lit.evaluate_all("cells => cells.map((cell) => [cell.dataset.p, cell.dataset.k])")
    assert all("1" in position for position in positions), positions
    page.locator("td.n").first.hover()
    assert page.locator("#bar .word.lit").count() >= 1, "a value highlights its words"
    word.click()
    assert word.get_attribute("aria-pressed") == "true"
    assert page.locator("th.closely").first.inner_text() in word.inner_text(), "a selected word is highlighted in the table"
    fits(page, "attention weights")


def inspecting(page):
    """Trace a value back to its origin, by link and by keyboard."""
    go(page, "attention weights")
    cell = page.locator("td.n").nth(1)
    value = cell.inner_text()
    cell.click()
    expect(page.locator("#why-address")).to_contain_text("hook_pattern[")
    assert page.locator("td.pinned").count() >= 1
    assert math.isclose(100 * number(page.inner_text("#why-value")), number(value), abs_tol=0.06)
    assert math.isclose(number(page.inner_text("#why-result")), number(page.inner_text("#why-value")), abs_tol=1e-4)
    assert "why=blocks.0.attn.hook_pattern" in page.url, "a deep link"
    for _ in range(40):
        address = page.inner_text("#why-address")
        links = page.locator("#why :is(li, td) button:not([disabled])")
        if links.count() == 0:
            break
        links.last.click()
        expect(page.locator("#why-address")).not_to_have_text(address)
    expect(page.locator("#why")).to_contain_text("The chain ends here.")
    end = page.inner_text("#why-address")
    page.reload()
    expect(page.locator("#why-address")).to_have_text(end, timeout=20_000)
    page.keyboard.press("Escape")
    assert page.locator("td.pinned, #why-address").count() == 0

    go(page, "token embedding")
    page.evaluate("document.querySelector('#cards td.n').focus()")
    first = page.evaluate("document.activeElement.dataset.index")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    after = page.evaluate("document.activeElement.dataset.index")
    assert [int(n) + 1 for n in first.split(",")] == [int(n) for n in after.split(",")], "arrow keys move within a table"
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid", "focus is visible"
    assert page.locator("#cards table").first.locator("[tabindex='0']").count() == 1, "a table is one tab stop"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.index") == after, "focus stays on the cell"
    page.keyboard.press("a")
    page.keyboard.press("a")
    page.focus("#all")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "all", "focus stays on the button"
    page.click("#one")
    expect(page.locator("#why-address")).to_contain_text(f"hook_embed[position={after.split(',')[0]}")
    fits(page, "a pinned value")
    page.keyboard.press("Escape")


def charts(page):
    """Shades, lines and dots match the values."""
    go(page, "attention weights")
    percentages = page.locator("#cards .scroll td[data-k]:not(.masked)").all_inner_texts()
    tints = page.locator(".pane:first-child .picture").first.locator("i.shade").evaluate_all("cells => cells.map((cell) => Number(cell.style.getPropertyValue('--tint')))")
    assert len(tints) >= 3
    for percentage, tint in zip(percentages, tints):
        assert abs(number(percentage) / 100 - tint) < 0.002, (percentage, tint)
    assert page.locator(".looks .look").count() >= 1


def has_changes(page):
    """Return whether the outcome shows changed probabilities."""
    outcome = page.locator("#outcome:not([aria-busy]) .bars").inner_text(timeout=20_000)
    return any(number(change) != 0 for change in re.findall(r"\(([+−][\d.]+)\)", outcome))


def what_if(page):
    """Each kind of edit changes the probabilities, and a reset restores them."""
    go(page, "what if?")
    shown = page.locator("#outcome:not([aria-busy]) .bars")
    before = shown.inner_text(timeout=20_000)
    page.click("[data-off='0.0']")
    expect(page.locator("#outcome .was").first).to_be_visible()
    assert page.get_attribute("[data-off='0.0']", "aria-pressed") == "true"
    assert has_changes(page), "an ablated head changes the probabilities"
    probabilities = [number(text) for text in page.locator("#outcome .amount").all_inner_texts()]
    assert 0 < sum(probabilities) <= 100.1, probabilities
    fits(page, "what if")
    page.click("#reset")
    expect(shown).to_have_text(re.compile(re.escape(before.split("\n")[0])))
    assert page.locator("#outcome .was").count() == 0
    assert shown.inner_text() == before

    swap = page.locator("[data-swap='0']")
    if swap.evaluate("it => it.tagName") == "SELECT":
        swap.select_option(index=1)
        chosen = 1
    else:
        chosen = page.evaluate("state.panels[0].vocabulary.findIndex((text) => /^[A-Z]$/.test(text))")
        swap.fill(page.evaluate("(id) => state.panels[0].vocabulary[id]", chosen))
        swap.press("Enter")
    expect(page.locator("#reset")).to_be_visible()
    assert page.evaluate("state.edits.tokens.get(0)") == chosen
    page.click("#reset")
    field = page.locator("[data-embedding='1']")
    field.fill("3.5")
    field.press("Tab")
    expect(page.locator("#outcome .was").first).to_be_visible()
    assert has_changes(page), "an edited embedding changes the probabilities"
    page.click("#reset")


def derivations(page):
    """In both panels, every value equals its derivation, and the page's forward pass matches the model's."""
    wrong = page.evaluate(
        """() => {
      const wrong = [];
      state.panels.forEach((panel) => panel.story.steps.forEach((step) => {
        const size = step.shape.reduce((a, b) => a * b, 1);
        for (let at = 0; at < size; at++) {
          const index = []; let left = at;
          for (const length of [...step.shape].reverse()) { index.unshift(left % length); left = Math.floor(left / length); }
          const found = panel.derive(step.name, index);
          if ((found.value === null) !== (found.result === null)) wrong.push(found.address);
          else if (found.value !== null && !(Math.abs(found.value - found.result) <= 1e-5 * Math.max(1, Math.abs(found.value)))) wrong.push(`${found.address}: ${found.value} ${found.result}`);
        }
      }));
      return wrong;
    }"""
    )
    assert not wrong, wrong[:5]
    error = page.evaluate(
        """() => Math.max(...state.panels.map((panel) => {
      const values = evaluate(panel.story.steps, panel.allWeights(), panel.story.tokens.map((t) => t.id));
      return Math.max(...Object.entries(panel.story.tensors).flatMap(([name, tensor]) => tensor.data.map((x, i) =>
        x === null ? 0 : Math.abs(x - values[name].data[i]) / Math.max(1, Math.abs(x)))));
    }))"""
    )
    assert error <= 1e-5, error
    # A value missing from the page is neither 0 nor the end of the chain.
    absent = page.evaluate(
        """() => {
      const panel = new Panel({...state.panels[0], weights: null}), q = 'blocks.0.attn.hook_q';
      const noWeights = localSource.why(panel, q, [0, 1, 0]);
      const other = localSource.why(panel, 'blocks.9.hook_resid_mid', [1, 0]), weight = localSource.why(panel, 'blocks.0.attention.query.weight', [0, 1]);
      return [noWeights, other, weight].map((found) => [found.isIncomplete, found.result, found.title]);
    }"""
    )
    assert [found[:2] for found in absent] == [[True, None]] * 3 and "weight" in absent[2][2] and "weight" not in absent[1][2], absent
    # A missing tensor is recomputed when its card is opened.
    page.evaluate("state.saved = state.panels[0].story.tensors['blocks.0.attn.hook_pattern']; delete state.panels[0].story.tensors['blocks.0.attn.hook_pattern']")
    go(page, "attention weights")
    equal = page.evaluate("state.panels[0].story.tensors['blocks.0.attn.hook_pattern'].data.every((x, i) => x === null ? state.saved.data[i] === null : Math.abs(x - state.saved.data[i]) < 1e-5)")
    assert equal, "a missing tensor is recomputed exactly"


def comparing(page):
    go(page, "token embedding + position")
    assert page.locator(".panes.two .pane").count() == 2, "two panels are shown side by side"
    assert page.locator("td.differs").count() > 0, "differences are highlighted"
    page.evaluate("state.other = state.panels[1]; state.panels[1] = new Panel(state.panels[0]); draw()")
    assert page.locator(".differs").count() == 0, "equal values are not highlighted"
    page.evaluate("state.panels[1] = state.other; draw()")
    # The derivation of a value does not lie over the values, where there is room beside them.
    page.locator("#cards td.n").first.click()
    expect(page.locator("#why-address")).to_be_visible()
    why = page.locator("#why").bounding_box()
    covered = [box for box in (pane.bounding_box() for pane in page.locator(".pane").all()) if box["x"] + box["width"] > why["x"]]
    assert page.viewport_size["width"] < 900 or not covered, "the derivation covers a panel"
    page.keyboard.press("Escape")
    go(page, "tokens")
    rows = page.locator(".pane").first.locator("tbody tr")
    same = page.evaluate("state.panels[0].story.tokens.map((token, i) => token.text === state.panels[1].story.tokens[i]?.text)")
    for n, is_same in enumerate(same):
        assert rows.nth(n).locator(".differs").count() == (0 if is_same else 2), f"row {n} of the tokens"


def learning(page):
    go(page, "training history")
    last = page.inner_text("#moment strong")
    page.focus("#slider")
    page.keyboard.press("Home")
    assert page.inner_text("#moment strong") == "step 0" != last, "the slider returns to step 0"
    assert page.evaluate("document.activeElement.id") == "slider", "focus stays on the slider"
    box = page.locator("#slider").bounding_box()
    seen = set()
    page.mouse.move(box["x"] + 8, box["y"] + box["height"] / 2)
    page.mouse.down()
    for tenth in range(1, 11):  # dragged, not clicked
        page.mouse.move(box["x"] + 8 + (box["width"] - 16) * tenth / 10, box["y"] + box["height"] / 2)
        seen.add(page.inner_text("#moment strong"))
    page.mouse.up()
    assert len(seen) >= 6 and last in seen, f"dragging the slider shows only {seen}"
    page.keyboard.press("Home")
    probabilities = [number(text) for text in page.locator(".bars .amount").all_inner_texts()]
    assert math.isclose(sum(probabilities), 100, abs_tol=1), probabilities
    page.select_option("#beside", index=page.locator("#beside option").count() - 1)
    assert page.locator(".picture").count() >= 2 and page.locator(".picture i.differs").count() > 0, "two steps are shown with differences"
    fits(page, "two steps")
    page.select_option("#beside", index=0)
    page.click("#play")
    expect(page.locator("#moment strong")).to_have_text(last, timeout=15_000)
    assert page.locator(".history polyline").count() >= 2


def readable(page):
    """Text contrast is at least 4.5 to 1 in light and dark mode."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        worst = page.evaluate(
            """() => {
          const light = (color) => { const [r, g, b] = color.match(/[\\d.]+/g).map((x) => { x /= 255; return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
          const behind = (at) => { for (; at; at = at.parentElement) { const color = getComputedStyle(at).backgroundColor; if (!/, 0\\)$|transparent|color/.test(color)) return color; } return 'rgb(255, 255, 255)'; };
          const ratio = (at) => { const pair = [light(getComputedStyle(at).color), light(behind(at))].sort((a, b) => b - a); return (pair[0] + 0.05) / (pair[1] + 0.05); };
          return [...document.querySelectorAll('h1, h2, h3, p, th, .word, .primary, button:not(:disabled), .chosen')].map((at) => [ratio(at), at.outerHTML.slice(0, 80)]).sort((a, b) => a[0] - b[0])[0];
        }"""
        )
        assert worst[0] >= 4.5, (scheme, worst)
    page.emulate_media(color_scheme="light")


def check_edits(page, expected):
    """Edits change the probabilities in the page as they do in the program."""
    for change in expected:
        found = page.evaluate("(edits) => localSource.whatIf(state.panels[0], edits).words", change["edits"])
        assert len(found) == len(change["words"]) > 2
        ours = {word["id"]: word for word in found}
        for word in change["words"]:
            for when in ("before", "after"):
                difference = abs(ours[word["id"]][when] - word[when])
                assert difference < 1e-6, (change["edits"], when, word, ours[word["id"]])
        positions = page.evaluate("(edits) => localSource.whatIf(state.panels[0], edits).positions", change["edits"])
        assert len(positions) == len(change["positions"])
        for ours, theirs in zip(positions, change["positions"]):
            assert ours["next"] == theirs["next"] and abs(ours["after"] - theirs["after"]) < 1e-6, (ours, theirs)


def check_file(page, url, expected):
    errors = watch_errors(page, ("file:", "data:"))
    overview(page, url)
    page.goto(f"{url}#step=1")
    check_edits(page, expected)
    for part in (walk, reasons, statements, copying, planes, all_steps, changed_panel, removing, training_step, readable, derivations, hovering, inspecting, charts, what_if, comparing, learning):
        part(page)
    page.goto(f"{url}#step=blocks.0.attn.hook_pattern&position=1&why=blocks.0.attn.hook_pattern:0,1,0")
    page.reload()
    assert page.inner_text(".card h2") == "Attention weights" and page.locator("th.closely").count() >= 1
    assert page.inner_text("#why-address") == "blocks.0.attn.hook_pattern[head=0,query=1,key=0]"
    for wrong in ("step=-3&head=99&position=-5", "step=x&position=1e9&head=0.5", "why=nothing:9,9", "step=9&why=hook_embed:99,99", "why=tokens:99:7"):
        page.goto(f"{url}#{wrong}")
        page.reload()
        assert page.locator(".card h2").count() == 1, f"the invalid URL fragment {wrong} does not open a card"
    page.keyboard.press("Escape")
    for title, selector in (("position encoding", "svg .dot"), ("logit lens", "td.tint"), ("next-token predictions", "td.tint")):
        go(page, title)
        assert page.locator(f".card {selector}").count() > 1, title
    go(page, "direct logit attribution")
    assert "✓" in page.inner_text(".card"), "the contributions do not add up"
    assert not errors, errors


def take_screenshots(page, folder, width):
    folder.mkdir(parents=True, exist_ok=True)
    for step in range(page.locator("#jump option").count()):
        page.select_option("#jump", index=step)
        expect(page.locator(".card [aria-busy]")).to_have_count(0)
        page.screenshot(path=folder / f"{width}-{step + 1:02}.png", full_page=True)


def at_each_size(check, folder, offline=False):
    """Run `check` at each viewport size, then take screenshots of all cards."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        sys.exit("Chromium not found; hint: apt-get install chromium, or set CHROMIUM=PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            for width, height in SIZES:
                page = browser.new_context(viewport={"width": width, "height": height}, offline=offline).new_page()
                page.set_default_timeout(15_000)
                check(page)
                if folder:
                    take_screenshots(page, folder, width)
                print(f"{width} x {height}: all checks passed, no unexpected requests")
        finally:
            browser.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=pathlib.Path, help="HTML file written by `nextword explain --out`")
    parser.add_argument("--changes", type=pathlib.Path, help="expected results of --what-if edits, as JSON")
    parser.add_argument("--screenshots", type=pathlib.Path, help="folder for screenshots")
    options = parser.parse_args()
    expected = json.loads(options.changes.read_text()) if options.changes else []
    url = options.page.resolve().as_uri()
    at_each_size(lambda page: check_file(page, url, expected), options.screenshots, offline=True)


if __name__ == "__main__":
    main()
