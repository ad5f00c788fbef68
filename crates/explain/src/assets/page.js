// The page: state, navigation, hovering, pinned derivations, what-if, training steps.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const fill = (id, ...children) => $(id).replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
const state = {
  panes: data.panes.map((pane) => new Pane(pane)), step: 0, all: false, head: 0, position: null, decimals: 2,
  open: new Set(), trail: [], draw: () => draw(), edits: { ids: null, off: new Set(), embedding: new Map() }, learned: null,
};

function list() {
  const pane = state.panes[0], story = pane.story, many = story.config.n_layers > 1;
  const cards = [{ id: "words", title: "The words", term: "tokens", words: "The text is cut into pieces that the model knows, each with a number: its id.", body: tokensBody }];
  for (const step of story.steps) {
    const alone = step.op.kind === "join" && !step.op.weight && story.config.n_heads === 1;
    if (step.op.kind === "copy" || alone || (step.name === "logits_before_cap")) continue;
    cards.push({ id: step.name, title: step.title, term: step.term, words: step.words, formula: step.formula, layer: many ? step.layer : null,
      hasHeads: step.axes[0] === "head" && story.config.n_heads > 1, body: (pane) => (pane.byName.has(step.name) ? stepBody(pane, pane.byName.get(step.name), state) : null) });
  }
  cards.push({ id: "next", title: "The next words", term: "prompt token predictions, surprisal", words: "The model guesses after every word, those of the prompt too: in training it learns from all of them at once.", body: nextWordsBody });
  story.answer.forEach((_, n) => cards.push({ id: `answer-${n}`, title: `Next word: ${visible(story.answer[n].token.text)}`, term: "sampling", words: "From percentages to one word.",
    body: (pane) => (pane.story.answer[n] ? answerBody(pane, pane.story.answer[n]) : null) }));
  cards.push({ id: "contributions", title: "Who spoke for it", term: "direct logit attribution", words: "The chosen word's output value is a sum; each part comes from one place in the model.",
    body: (pane) => pane.story.contributions.map((c) => [h("h3", {}, `“${visible(c.token.text)}” after “${visible(pane.story.tokens[c.position].text)}”`), contributionBody(c)]) });
  cards.push({ id: "lens", title: "Guesses on the way", term: "logit lens", words: "How the answer forms from layer to layer.", body: (pane) => lensBody(pane, state) });
  cards.push({ id: "what-if", title: "What if?", term: "intervention, ablation", words: "Change a word, switch off a head or edit a number of an embedding, and see the next word's percentages move.", body: (pane) => (pane === state.panes[0] ? whatIfBody(pane) : null) });
  if (data.learning) cards.push({ id: "learning", title: "Watch it learn", term: "training dynamics", words: "The same sentence at each step of training that was kept.", body: (pane) => (pane === state.panes[0] ? learningBody() : null) });
  cards.push({ id: "verdict", title: "Is it true?", term: "verification", words: "Every number was computed a second time, by other code, from the weights and token ids.", body: verdictBody });
  return cards;
}

function tokensBody(pane) {
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ["word", "position", "id", "from"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, pane.story.tokens.map((t) => h("tr", {}, tokenHead(pane, t.position), h("td", {}, `${t.position}`), h("td", {}, `${t.id}`), h("td", {}, t.from === "prompt" ? "the prompt" : "the answer"))))));
}

function verdictBody(pane) {
  const verdict = pane.story.verdict;
  return [h("p", {}, verdict.sentence), h("details", {}, h("summary", {}, "tensor by tensor"), h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, ["tensor", "numbers", "largest difference"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, verdict.differences.map((d) => h("tr", {}, h("th", { scope: "row" }, d.name), h("td", {}, `${d.count}`), h("td", {}, d.largest.toExponential(1))))))))];
}

function whatIfBody(pane) {
  if (!pane.live) return h("p", {}, "This model is too large to travel in the page, so the page cannot compute. In a terminal: nextword explain RECORD PROMPT --what-if head=0.1");
  const { story } = pane, prompt = story.tokens.filter((t) => t.from === "prompt"), edits = state.edits, weights = { ...pane.allWeights() };
  const ids = edits.ids || story.tokens.map((t) => t.id);
  if (edits.embedding.size) {
    const table = weights["token_embedding.weight"], copy = Float64Array.from(table.data);
    for (const [at, value] of edits.embedding) copy[at] = value;
    weights["token_embedding.weight"] = { shape: table.shape, data: copy };
  }
  const last = prompt.length - 1, width = story.config.vocab_size;
  const before = (state.base ||= evaluate(story.steps, pane.allWeights(), story.tokens.map((t) => t.id)).probabilities);
  const after = evaluate(story.steps, weights, ids, edits.off).probabilities;
  const row = (values) => Array.from(rowOf(values, last)), was = row(before), now = row(after);
  const order = Array.from({ length: width }, (_, i) => i).sort((a, b) => Math.max(was[b], now[b]) - Math.max(was[a], now[a])).slice(0, 8);
  const changed = edits.off.size || edits.embedding.size || edits.ids;
  const swap = (position, id) => { edits.ids = [...ids]; edits.ids[position] = id; draw(); };
  const dims = Math.min(story.config.d_model, 8), table = weights["token_embedding.weight"];
  const edited = state.editedToken ?? prompt[last].id;
  return [
    h("h3", {}, "Change a word"), h("div", { class: "words" }, prompt.map((t) => h("select", { "aria-label": `word at position ${t.position}`, "data-swap": t.position, onchange: (e) => swap(t.position, Number(e.target.value)) },
      Array.from({ length: width }, (_, id) => h("option", { value: id, selected: ids[t.position] === id }, visible(pane.text(id))))))),
    h("h3", {}, "Switch off a head"), h("div", { class: "words" }, Array.from({ length: story.config.n_layers }, (_, layer) => Array.from({ length: story.config.n_heads }, (_, head) => {
      const key = `${layer}.${head}`;
      return h("button", { "aria-pressed": edits.off.has(key), "data-off": key, onclick: () => { if (!edits.off.delete(key)) edits.off.add(key); draw(); } },
        story.config.n_layers > 1 ? `layer ${layer + 1}, head ${head + 1}` : `head ${head + 1}`);
    }))),
    h("h3", {}, "Edit an embedding"), h("div", { class: "words" },
      h("select", { "aria-label": "the word whose embedding is edited", onchange: (e) => { state.editedToken = Number(e.target.value); draw(); } },
        [...new Set(ids.slice(0, last + 1))].map((id) => h("option", { value: id, selected: id === edited }, visible(pane.text(id))))),
      Array.from({ length: dims }, (_, dim) => h("input", { type: "number", step: 0.1, "aria-label": `number ${dim}`, "data-embedding": dim, value: table.data[edited * story.config.d_model + dim].toFixed(4),
        onchange: (e) => { const value = Number(e.target.value); if (Number.isFinite(value)) edits.embedding.set(edited * story.config.d_model + dim, value); draw(); } }))),
    h("h3", {}, "The next word after the prompt"),
    bars(order.flatMap((id) => [{ name: visible(pane.text(id)), value: now[id], text: `${percent(now[id], 2)}`, class: now[id] === Math.max(...now) ? "chosen" : "" },
      ...(changed ? [{ name: "", value: was[id], ghost: true, text: `was ${percent(was[id], 2)}` }] : [])]), 1),
    changed ? h("button", { id: "reset", onclick: () => { state.edits = { ids: null, off: new Set(), embedding: new Map() }; draw(); } }, "as it was") : null,
  ];
}

// {sentences: [{prompt, steps: [{step, loss, tokens, patterns: [layer][head][query][key], next: [[{text, probability}]]}]}], notes}
function learningBody() {
  const sentence = data.learning.sentences[state.sentence || 0], steps = sentence.steps;
  const at = Math.min(state.learned ?? steps.length - 1, steps.length - 1), now = steps[at], n = now.tokens.length;
  const layer = Math.min(state.learnedLayer || 0, now.patterns.length - 1), pattern = now.patterns[layer][Math.min(state.head, now.patterns[layer].length - 1)];
  const cells = pattern.flatMap((row, query) => row.map((share, key) => h("i", { "data-p": query, "data-k": key,
    class: key > query ? "masked" : null, style: key > query ? null : shade(share), title: `${visible(now.tokens[query])} looks at ${visible(now.tokens[key])}: ${percent(share)}` })));
  return [
    data.learning.sentences.length > 1 ? h("select", { "aria-label": "sentence", onchange: (e) => { state.sentence = Number(e.target.value); draw(); } },
      data.learning.sentences.map((s, i) => h("option", { value: i, selected: i === (state.sentence || 0) }, s.prompt))) : null,
    h("p", {}, h("label", {}, h("strong", {}, `step ${now.step}`), now.loss === null ? "" : `, loss ${now.loss.toFixed(4)}`,
      h("input", { type: "range", id: "slider", min: 0, max: steps.length - 1, value: at, "aria-label": "training step", oninput: (e) => { state.learned = Number(e.target.value); draw(); $("slider").focus(); } }))),
    now.patterns.length > 1 ? h("div", { class: "heads" }, now.patterns.map((_, i) => h("button", { "aria-pressed": i === layer, onclick: () => { state.learnedLayer = i; draw(); } }, `layer ${i + 1}`))) : null,
    h("div", { class: "picture", role: "img", "aria-label": "attention percentages as shades", style: `grid-template-columns:repeat(${n},auto);--size:${Math.floor(420 / n)}px` }, cells),
    h("h3", {}, `After “${visible(now.tokens[n - 1])}”`),
    bars(now.next[n - 1].map((guess) => ({ name: visible(guess.text), value: guess.probability, text: percent(guess.probability) })), 1),
    (data.learning.notes || []).map((note) => h("p", { class: "note" }, note)),
  ];
}

function cardOf(card, number, total) {
  const layer = card.layer === null || card.layer === undefined ? "" : `Layer ${card.layer + 1} · `;
  return h("section", { class: `card${number === state.step ? " current" : ""}`, id: `step-${number + 1}`, "aria-labelledby": `title-${number}` },
    h("p", { class: "kicker" }, `${layer}${number + 1} of ${total}`), h("h2", { id: `title-${number}` }, card.title.charAt(0).toUpperCase() + card.title.slice(1)), h("p", { class: "term" }, card.term),
    h("p", {}, card.words), card.formula ? h("p", {}, h("span", { class: "formula" }, card.formula)) : null,
    card.hasHeads ? h("div", { class: "heads", role: "group", "aria-label": "head" }, Array.from({ length: state.panes[0].story.config.n_heads }, (_, head) =>
      h("button", { "aria-pressed": head === state.head, onclick: () => { state.head = head; draw(); } }, `head ${head + 1}`))) : null,
    h("div", { class: `panes${state.panes.length > 1 ? " two" : ""}` }, state.panes.map((pane) => {
      const body = card.body(pane);
      return body ? h("div", {}, state.panes.length > 1 ? h("h3", {}, `${pane.story.model.name}: ${pane.story.prompt}`) : null, body) : null;
    })));
}

let cards = [];
function draw() {
  cards = list();
  state.step = Math.max(0, Math.min(state.step, cards.length - 1));
  const scroll = window.scrollY;
  document.body.classList.toggle("one", !state.all);
  const shown = state.all ? cards.map((card, i) => cardOf(card, i, cards.length)) : [cardOf(cards[state.step], state.step, cards.length)];
  $("cards").replaceChildren(...shown);
  drawBar();
  drawWhy();
  window.scrollTo(0, scroll);
  remember();
}

function drawBar() {
  const button = (label, attributes) => h("button", attributes, label);
  const go = (step) => { state.step = step; draw(); const at = $(`step-${step + 1}`); if (state.all && at) at.scrollIntoView(); };
  fill("bar", 
    button("← Back", { id: "back", disabled: state.step === 0, onclick: () => go(state.step - 1) }),
    h("span", { id: "count" }, `${state.step + 1} of ${cards.length}`),
    button("Next →", { id: "forward", disabled: state.step === cards.length - 1, onclick: () => go(state.step + 1) }),
    h("select", { id: "jump", "aria-label": "go to a step", onchange: (e) => go(Number(e.target.value)) }, cards.map((card, i) =>
      h("option", { value: i, selected: i === state.step }, `${i + 1}. ${card.layer === null || card.layer === undefined ? "" : `L${card.layer + 1} `}${card.title}`))),
    h("span", { class: "grow" }),
    h("label", {}, h("span", {}, "word"), h("select", { id: "position", "aria-label": "the word that is looked at closely", onchange: (e) => { state.position = Number(e.target.value); draw(); } }, state.panes[0].story.tokens.map((t) =>
      h("option", { value: t.position, selected: t.position === (state.position ?? state.panes[0].story.tokens.length - 1) }, `${visible(t.text)} (${t.position})`)))),
    h("label", {}, h("span", {}, "decimals"), h("select", { "aria-label": "decimals", onchange: (e) => { state.decimals = Number(e.target.value); draw(); } }, [2, 4, 9].map((n) => h("option", { value: n, selected: n === state.decimals }, `${n}`)))),
    button(state.all ? "One at a time" : "All steps", { id: "view", "aria-pressed": state.all, onclick: () => { state.all = !state.all; draw(); } }),
  );
}

function drawHead() {
  const { story } = state.panes[0];
  document.title = `${story.model.name || "nextword"}: ${story.prompt}`;
  fill("header", 
    h("h1", {}, "From word to next word"),
    h("p", { class: "soft" }, `${story.model.name || "a model"}, step ${story.model.step.toLocaleString("en")}, ${story.model.parameters.toLocaleString("en")} parameters`),
    state.panes.map((pane) => h("div", { class: "words" }, pane.story.tokens.filter((t) => t.from === "prompt").map((t) => h("span", { class: "word", "data-p": t.position }, visible(t.text), h("small", {}, `${t.position}`))),
      h("span", { class: "soft" }, "→"), pane.story.answer.map((a) => h("span", { class: "word answer", "data-p": a.after + 1 }, visible(a.token.text))))),
    h("span", { class: `badge${state.panes.every((pane) => pane.story.verdict.verified) ? "" : " bad"}` }, story.verdict.sentence.split(";")[0].replace(/:.*/, "") + `: largest difference ${Math.max(...story.verdict.differences.map((d) => d.largest)).toExponential(1)}`),
    story.unknown.length ? h("p", { class: "note" }, `Not in the vocabulary: ${story.unknown.join(", ")}`) : null,
    story.truncated ? h("p", { class: "note" }, `The prompt's first ${story.truncated} words did not fit the context.`) : null,
    story.notes.map((note) => h("p", { class: "note" }, note)),
  );
  fill("footer", `Keys: ← → steps, a all steps, Enter on a number shows where it comes from, Esc closes it. Made by nextword ${story.model.version}; this page needs no connection.`);
}

function drawWhy() {
  const current = state.trail[state.trail.length - 1];
  document.querySelectorAll("td.pinned").forEach((cell) => cell.classList.remove("pinned"));
  $("why").classList.toggle("empty", !current);
  if (!current) {
    fill("why", h("h2", {}, "Where does it come from?"), h("p", { class: "soft" }, "Choose any number: here stands its formula with the numbers that go in. Each of them can be asked in turn, down to the weights and the words."));
    return;
  }
  const pane = state.panes[current.pane], found = pane.derive(current.name, current.index);
  const cell = document.querySelector(`td[data-pane="${current.pane}"][data-name="${current.name}"][data-index="${current.index.join(",")}"]`);
  if (cell) cell.classList.add("pinned");
  const open = (link) => { state.trail.push({ pane: current.pane, name: link[0], index: link[1] }); drawWhy(); remember(); };
  const off = found.result !== null && found.value !== null && Math.abs(found.result - found.value) > 1e-3 * Math.max(1, Math.abs(found.value));
  fill("why", 
    h("div", { class: "trail" }, h("button", { id: "why-back", disabled: state.trail.length < 2, onclick: () => { state.trail.pop(); drawWhy(); remember(); } }, "← back"),
      h("button", { id: "why-close", "aria-label": "close", onclick: () => { state.trail = []; drawWhy(); remember(); } }, "close")),
    h("h2", {}, found.title), h("p", { class: "term" }, found.term), h("p", { class: "value", id: "why-value" }, found.value === null ? "hidden" : showNumber(found.value, current.name === "tokens" ? 0 : 6)),
    h("p", {}, h("code", { id: "why-address" }, found.address)), h("p", {}, h("span", { class: "formula" }, found.formula)),
    found.filled ? h("p", { id: "why-filled" }, `= ${found.filled}`) : null,
    found.result !== null && found.operands.length ? h("p", { class: "soft", id: "why-result", "data-result": found.result }, `= ${showNumber(found.result, 6)}${off ? " — differs from the number above" : ""}`) : null,
    h("ol", {}, found.operands.slice(0, 64).map((operand) => h("li", {}, h("button", { disabled: !operand.link, title: operand.link ? `${operand.link[0]} [${operand.link[1].join(", ")}]` : "a setting of the model", onclick: () => open(operand.link) },
      h("span", {}, operand.link ? `${operand.role} · ${operand.link[0].replace("hook_", "")}[${operand.link[1].join(",")}]` : operand.role), h("span", {}, showNumber(operand.value, 4)))))),
    found.operands.length > 64 ? h("p", { class: "soft" }, `and ${found.operands.length - 64} more`) : null,
    found.operands.length ? null : h("p", { class: "soft" }, "Here the chain ends."),
  );
}

function light(position, key) {
  document.querySelectorAll(".lit").forEach((element) => element.classList.remove("lit"));
  if (position === undefined) return;
  document.querySelectorAll(`th[data-p="${position}"], .word[data-p="${position}"]`).forEach((element) => element.classList.add("lit"));
  if (key !== undefined) document.querySelectorAll(`th[data-p="${key}"], .word[data-p="${key}"]`).forEach((element) => element.classList.add("lit"));
  else document.querySelectorAll(`td[data-p="${position}"], td[data-k="${position}"]`).forEach((element) => element.classList.add("lit"));
}

const place = (event) => event.target.closest("[data-p]");
document.addEventListener("mouseover", (event) => { const at = place(event); light(at?.dataset.p, at?.dataset.k); });
document.addEventListener("focusin", (event) => { const at = place(event); light(at?.dataset.p, at?.dataset.k); });
function pin(event) {
  const cell = event.target.closest("td.n");
  if (!cell) return;
  state.trail = [{ pane: Number(cell.dataset.pane), name: cell.dataset.name, index: cell.dataset.index.split(",").map(Number) }];
  drawWhy();
  remember();
}
document.addEventListener("click", pin);
document.addEventListener("keydown", (event) => {
  const typing = /^(SELECT|INPUT|TEXTAREA)$/.test(event.target.tagName);
  if ((event.key === "Enter" || event.key === " ") && event.target.matches("td.n")) { event.preventDefault(); pin(event); return; }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "ArrowRight") $("forward").click();
  else if (event.key === "ArrowLeft") $("back").click();
  else if (event.key === "a") $("view").click();
  else if (event.key === "Escape") { state.trail = []; drawWhy(); remember(); }
});

// Deep links: #step=3&view=all&head=1&position=2&why=blocks.0.attn.hook_pattern:0,3,1
function remember() {
  const link = new URLSearchParams({ step: state.step + 1 }), why = state.trail[state.trail.length - 1];
  if (state.all) link.set("view", "all");
  if (state.head) link.set("head", state.head);
  if (state.position !== null) link.set("position", state.position);
  if (why) link.set("why", `${why.name}:${why.index.join(",")}${why.pane ? `:${why.pane}` : ""}`);
  const hash = `#${link.toString().replaceAll("%3A", ":").replaceAll("%2C", ",")}`;
  if (location.hash !== hash) history.replaceState(null, "", hash);
}
function recall() {
  const link = new URLSearchParams(location.hash.slice(1)), number = (name, none) => (link.has(name) ? Number(link.get(name)) || 0 : none);
  state.step = number("step", 1) - 1;
  state.all = link.get("view") === "all";
  state.head = Math.min(number("head", 0), state.panes[0].story.config.n_heads - 1);
  state.position = number("position", null);
  const [name, index, pane] = (link.get("why") || "").split(":");
  state.trail = name && index ? [{ pane: Math.min(Number(pane || 0), state.panes.length - 1), name, index: index.split(",").map(Number) }] : [];
}
window.addEventListener("hashchange", () => { recall(); draw(); });
recall();
drawHead();
draw();
