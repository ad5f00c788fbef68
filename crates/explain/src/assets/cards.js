// Cards: what one step shows, as tables, pictures and bars.
"use strict";

function h(tag, attributes = {}, ...children) {
  const element = tag === "svg" || h.inSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("aria-") && typeof value === "boolean") { element.setAttribute(name, String(value)); continue; }
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
function svg(attributes, build) {
  h.inSvg = true;
  try { return h("svg", attributes, build()); } finally { h.inSvg = false; }
}

const visible = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣") || "∅";
const percent = (p, digits = 1) => `${(100 * p).toFixed(digits)} %`;
const MOST_DIMS = 12, MOST_ROWS = 24;

// A table row's header: the token, which lights up everywhere.
const tokenHead = (pane, position, scope = "row") =>
  h("th", { scope, "data-p": position, title: `position ${position}` }, visible(pane.story.tokens[position].text));

function numberCell(pane, name, index, state, shown) {
  const value = pane.at(name, index), other = state.panes[1 - state.panes.indexOf(pane)];
  const position = index[pane.byName.get(name).axes.indexOf("position")];
  if (value === null) return h("td", { class: "masked", title: "hidden: a word does not see the future", "aria-label": "hidden" }, "–");
  const theirs = other && other.story.tensors[name] && index.every((i, a) => i < other.story.tensors[name].shape[a]) ? other.at(name, index) : null;
  const differs = theirs !== null && Math.abs(theirs - value) > 10 ** -state.decimals / 2;
  return h("td", {
    class: `n${differs ? " differs" : ""}`, tabindex: 0, role: "button", "data-p": position, "data-k": pane.byName.get(name).axes.includes("key") ? index[2] : null,
    "data-pane": state.panes.indexOf(pane), "data-name": name, "data-index": index.join(","),
    title: differs ? `${showNumber(theirs, state.decimals)} in the other` : null,
  }, shown ? shown(value) : showNumber(value, state.decimals));
}

// Which of `count` are shown, and a button for the others.
function some(count, most, state, key) {
  const all = state.open.has(key) || count <= most + 2;
  return { list: Array.from({ length: all ? count : most }, (_, i) => i), more: all ? 0 : count - most };
}
const moreButton = (more, what, key, state) =>
  more ? h("button", { onclick: () => { state.open.add(key); state.draw(); } }, `show ${more} more ${what}`) : null;

function rowsTable(pane, step, state) {
  const isHeads = step.axes[0] === "head", isTokens = step.axes.includes("token");
  const head = isHeads ? Math.floor((state.head * step.shape[0]) / pane.story.config.n_heads) : null;
  const width = step.shape[step.shape.length - 1], key = `${step.name}`;
  const dims = some(width, MOST_DIMS, state, key), rows = some(pane.story.tokens.length, MOST_ROWS, state, `${key}/rows`);
  const shown = step.op.kind === "softmax" ? (p) => percent(p, state.decimals) : null;
  const name = (dim) => (isTokens ? visible(pane.text(dim)) : `${dim}`);
  const table = h("table", {},
    h("caption", {}, isHeads && step.shape[0] > 1 ? `${step.shape[0] < pane.story.config.n_heads ? "key/value head" : "head"} ${head + 1} of ${step.shape[0]}` : null),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "word"), dims.list.map((dim) => h("th", { scope: "col" }, name(dim))))),
    h("tbody", {}, rows.list.map((position) => h("tr", {}, tokenHead(pane, position), dims.list.map((dim) =>
      numberCell(pane, step.name, isHeads ? [head, position, dim] : [position, dim], state, shown))))));
  return [h("div", { class: "scroll" }, table), moreButton(dims.more, isTokens ? "tokens" : "numbers", key, state), moreButton(rows.more, "words", `${key}/rows`, state)];
}

function sumTable(pane, step, state) {
  const width = step.shape[1], fit = width <= 4;
  if (!fit) return rowsTable(pane, step, state);
  const dims = Array.from({ length: width }, (_, i) => i), rows = some(pane.story.tokens.length, MOST_ROWS, state, `${step.name}/rows`);
  const part = (name, position) => dims.map((dim) => numberCell(pane, name, [position, dim], state));
  return [h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "word"), h("th", { colspan: width }, pane.byName.get(step.op.a)?.title || ""), h("th", {}, ""),
      h("th", { colspan: width }, pane.byName.get(step.op.b)?.title || ""), h("th", {}, ""), h("th", { colspan: width }, "sum"))),
    h("tbody", {}, rows.list.map((position) => h("tr", {}, tokenHead(pane, position), part(step.op.a, position), h("td", { class: "op" }, "+"),
      part(step.op.b, position), h("td", { class: "op" }, "="), part(step.name, position)))))), moreButton(rows.more, "words", `${step.name}/rows`, state)];
}

function squareTable(pane, step, state) {
  const isShare = step.op.kind === "softmax", seq = pane.story.tokens.length, head = state.head;
  const rows = some(seq, MOST_ROWS, state, `${step.name}/rows`), keys = some(seq, MOST_ROWS, state, `${step.name}/rows`);
  const shown = isShare ? (x) => percent(x, Math.max(1, state.decimals - 1)) : null;
  const table = h("table", {},
    h("caption", {}, `${step.shape[0] > 1 ? `head ${head + 1} of ${step.shape[0]}; ` : ""}each row: a word that asks; each column: a word that answers`),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, ""), keys.list.map((key) => tokenHead(pane, key, "col")), isShare ? h("th", { scope: "col" }, "sum") : null)),
    h("tbody", {}, rows.list.map((query) => h("tr", {}, tokenHead(pane, query), keys.list.map((key) => numberCell(pane, step.name, [head, query, key], state, shown)),
      isShare ? h("td", { class: "sum" }, percent(keys.list.reduce((sum, key) => sum + (pane.at(step.name, [head, query, key]) || 0), 0))) : null))));
  return [h("div", { class: "scroll" }, table), moreButton(rows.more, "words", `${step.name}/rows`, state), isShare ? picture(pane, step, head) : null];
}

const shade = (share) => `background-image:linear-gradient(rgba(var(--shade),${share.toFixed(3)}) 0 0)`;

// Percentages as a picture: the darker, the more.
function picture(pane, step, head) {
  const seq = pane.story.tokens.length;
  const cells = [];
  for (let query = 0; query < seq; query++) {
    for (let key = 0; key < seq; key++) {
      const share = pane.at(step.name, [head, query, key]);
      cells.push(h("i", { "data-p": query, "data-k": key, class: share === null ? "masked" : null, style: share === null ? null : shade(share),
        title: share === null ? null : `${visible(pane.story.tokens[query].text)} looks at ${visible(pane.story.tokens[key].text)}: ${percent(share)}` }));
    }
  }
  return h("div", { class: "picture", role: "img", "aria-label": "the percentages above as shades", style: `grid-template-columns:repeat(${seq},auto);--size:${Math.floor(420 / seq)}px` }, cells);
}

// The waves that positions are read from, with a dot where each word reads.
function curves(pane, step) {
  const width = step.shape[1], shownDims = Math.min(width, 6), places = Math.max(pane.story.config.context_length - 1, 1);
  const W = 560, H = 76, x = (p) => 26 + (p / Math.min(places, 63)) * (W - 40), y = (v) => H / 2 - v * 26;
  const limit = Math.min(places, 63);
  return Array.from({ length: shownDims }, (_, dim) => svg({ viewBox: `0 0 ${W} ${H}`, width: W, role: "img", "aria-label": `wave of number ${dim}` }, () => {
    const wave = dim % 2 ? Math.cos : Math.sin, f = frequencyOf(dim, width);
    const points = Array.from({ length: 241 }, (_, i) => (i / 240) * limit).map((p) => `${x(p).toFixed(1)},${y(wave(p * f)).toFixed(1)}`);
    return [h("text", { x: 0, y: H / 2 + 4 }, `${dim}`), h("line", { x1: 26, x2: W - 14, y1: H / 2, y2: H / 2, stroke: "var(--line)" }),
      h("polyline", { points: points.join(" "), fill: "none", stroke: "var(--accent)", "stroke-width": 1.5 }),
      pane.story.tokens.filter((t) => t.position <= limit).map((t) => h("circle", { cx: x(t.position), cy: y(wave(t.position * f)), r: 4.5, fill: "var(--warm)", "data-p": t.position },
        h("title", {}, `${visible(t.text)} at position ${t.position}: ${showNumber(wave(t.position * f))}`)))];
  }));
}

// How one word's value is mixed.
function mixture(pane, step, state) {
  const query = Math.min(state.position ?? pane.story.tokens.length - 1, pane.story.tokens.length - 1), head = state.head;
  const group = step.shape[0] / pane.story.tensors[step.op.v].shape[0], width = Math.min(step.shape[2], 6);
  const dims = Array.from({ length: width }, (_, i) => i), rows = [];
  for (let key = 0; key <= query; key++) {
    if (pane.at(step.op.pattern, [head, query, key]) !== null) rows.push(key);
  }
  rows.sort((a, b) => pane.at(step.op.pattern, [head, query, b]) - pane.at(step.op.pattern, [head, query, a]));
  const listed = rows.slice(0, 8).sort((a, b) => a - b);
  return [h("h3", {}, `How “${visible(pane.story.tokens[query].text)}” is mixed`), h("div", { class: "scroll" }, h("table", {}, h("tbody", {},
    listed.map((key) => h("tr", {}, tokenHead(pane, key), numberCell(pane, step.op.pattern, [head, query, key], state, (p) => percent(p)), h("td", { class: "op" }, "×"),
      dims.map((dim) => numberCell(pane, step.op.v, [Math.floor(head / group), key, dim], state)))),
    h("tr", {}, h("th", { scope: "row" }, "together"), h("td", {}, ""), h("td", { class: "op" }, "="), dims.map((dim) => numberCell(pane, step.name, [head, query, dim], state)))))),
    rows.length > 8 ? h("p", { class: "soft" }, `and ${rows.length - 8} words with smaller percentages`) : null];
}

function stepBody(pane, step, state) {
  switch (step.op.kind) {
    case "add": return sumTable(pane, step, state);
    case "scores": return squareTable(pane, step, state);
    case "softmax": return step.axes.includes("key") ? squareTable(pane, step, state) : rowsTable(pane, step, state);
    case "mix": return [rowsTable(pane, step, state), mixture(pane, step, state)];
    case "waves": return [rowsTable(pane, step, state), curves(pane, step)];
    default: return rowsTable(pane, step, state);
  }
}

// Bars: [{name, value, text, class}] as shares of the largest.
function bars(rows, most = Math.max(...rows.map((row) => Math.abs(row.value)), 1e-12)) {
  return h("div", { class: "bars" }, rows.map((row) => [
    h("span", { class: `name ${row.class || ""}`, title: row.name }, row.name),
    h("span", { class: `bar ${row.value < 0 ? "minus" : ""} ${row.ghost ? "ghost" : ""}` }, h("b", { style: `width:${((100 * Math.abs(row.value)) / most).toFixed(1)}%` })),
    h("span", { class: row.class || "" }, row.text)]));
}

function nextWordsBody(pane) {
  const rows = some(pane.story.next_words.length, 200, { open: new Set() }, "");
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ["after", "likeliest next word", "", "what came", "its percentage", "surprise"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.list.map((position) => {
      const next = pane.story.next_words[position], top = next.top[0];
      return h("tr", {}, tokenHead(pane, position), h("td", {}, visible(top.text)), h("td", {}, percent(top.probability)),
        h("td", { class: next.given ? "" : "chosen" }, next.next ? visible(next.next.text) : "–"), h("td", {}, next.next ? percent(next.next.probability) : "–"),
        h("td", {}, next.surprise === null ? "–" : `${next.surprise.toFixed(2)} bits`));
    }))));
}

function answerBody(pane, chosen) {
  const sampling = pane.story.sampling, tokens = pane.story.tokens, pass = tokens[chosen.after].pass;
  const fates = { top_k: "cut by top-k", top_p: "cut by top-p", min_p: "cut by min-p", forbidden: "forbidden", greedy: "not the likeliest" };
  return [
    h("p", {}, pass === 0 ? `The prompt was read in one pass of ${tokens.filter((t) => t.pass === 0).length} words.`
      : `Only “${visible(tokens[chosen.after].text)}” was computed; keys and values of the ${chosen.after} words before came from the cache.`),
    h("p", {}, chosen.uniform === null ? "Temperature 0: the likeliest word is taken."
      : `Temperature ${sampling.temperature}, seed ${sampling.seed}: the random number is ${chosen.uniform.toFixed(4)}, and it falls into the chosen word's share.`),
    bars(chosen.candidates.map((c) => ({ name: visible(c.text), value: c.probability, class: c.id === chosen.token.id ? "chosen" : c.cut ? "cut" : "",
      text: `${percent(c.probability, 2)}${c.cut ? `  ${fates[c.cut]}` : chosen.uniform === null ? "" : `  ${c.from.toFixed(3)}–${(c.from + c.share).toFixed(3)}`}` })), 1),
    chosen.more ? h("p", { class: "soft" }, `and ${chosen.more} words more`) : null,
  ];
}

function lensBody(pane, state) {
  const position = Math.min(state.position ?? pane.story.tokens.length - 1, pane.story.tokens.length - 1);
  return [h("p", {}, `If the model stopped early and went straight to the output layer: what it would say after “${visible(pane.story.tokens[position].text)}”.`),
    h("div", { class: "scroll" }, h("table", {}, h("tbody", {}, pane.story.lens.map((stage) => h("tr", {}, h("th", { scope: "row" }, `after ${stage.after}`),
      stage.top[position].slice(0, 3).map((guess) => h("td", {}, `${visible(guess.text)} ${percent(guess.probability)}`)))))))];
}

function contributionBody(contribution) {
  const parts = [...contribution.parts].sort((a, b) => Math.abs(b.value) - Math.abs(a.value)), shown = parts.slice(0, 14);
  return [bars(shown.map((part) => ({ name: part.name, value: part.value, text: showNumber(part.value, 2) }))),
    parts.length > 14 ? h("p", { class: "soft" }, `and ${parts.length - 14} smaller parts`) : null,
    h("p", {}, `Together ${showNumber(contribution.sum, 4)}; the logit is ${showNumber(contribution.logit, 4)}. Norms are taken with the scale that they had.`)];
}
