// Elements, texts, bars and tables that the cards are made of.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const flat = (children) => children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false);

function element(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style")
      made.style.cssText = value; // As an attribute the server's policy forbids it.
    else if (name.startsWith("aria-") && value !== null && value !== undefined) made.setAttribute(name, `${value}`);
    else if (value !== null && value !== undefined && value !== false)
      made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...flat(children));
  return made;
}
const h = (tag, attributes = {}, ...children) => element(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) => element(document.createElementNS(SVG, tag), attributes, children);

const $ = (id) => document.getElementById(id);
const fill = (id, ...children) => $(id).replaceChildren(...flat(children));
const range = (count) => Array.from({ length: count }, (_, i) => i);
const visible = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣") || "∅";
const quoted = (text) => `“${visible(text)}”`;
const percent = (p, digits = 1) => `${(100 * p).toFixed(digits)} %`;
// A number of a table: always as many decimals, so that columns stay calm. Choosing it shows it in full.
function fixed(x) {
  if (Math.abs(x) >= 1e6) return showNumber(x, 2);
  const text = x.toFixed(state.decimals);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
}
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const by = (f) => (a, b) => f(a) - f(b);

// A background that says how large a number is, beside the number itself.
const shade = (share) => `--tint:${Math.max(0, Math.min(1, share)).toFixed(3)}`;

function select(label, options, chosen, choose, more = {}) {
  return h(
    "select",
    { "aria-label": label, onchange: (e) => choose(e.target.value), ...more },
    options.map(([value, text]) => h("option", { value, selected: `${value}` === `${chosen}` }, text)),
  );
}
const toggle = (label, isOn, act, more = {}) =>
  h("button", { type: "button", "aria-pressed": isOn, onclick: act, ...more }, label);

// Headers: a text, or [text] for a column of words, which stand left.
const columns = (names) =>
  h(
    "thead",
    {},
    h(
      "tr",
      {},
      names.map((name) => h("th", { scope: "col", class: Array.isArray(name) ? "left" : null }, name)),
    ),
  );
const captioned = (text) => (text ? h("caption", {}, h("span", {}, text)) : null);
const table = (...children) => h("div", { class: "scroll" }, h("table", {}, ...children));

// Bars: [{name, value, text, class, was}] as shares of `most`; `was` leaves a mark.
function bars(rows, most = Math.max(...rows.map((row) => Math.abs(row.value)), 1e-12)) {
  const wide = (value) => `${Math.min(100, (100 * Math.abs(value)) / most).toFixed(2)}%`;
  return h(
    "div",
    { class: "bars" },
    rows.map((row) => [
      h("span", { class: `name ${row.class || ""}`, title: row.name }, row.name),
      h(
        "span",
        { class: "bar" },
        h("b", { style: `width:${wide(row.value)}` }),
        row.was === undefined ? null : h("i", { class: "was", style: `left:${wide(row.was)}`, title: "as it was" }),
      ),
      h("span", { class: `amount ${row.class || ""}` }, row.text),
    ]),
  );
}

// A sum, part by part: each bar begins where the one before ended.
function waterfall(parts, total) {
  let low = 0,
    high = 0,
    at = 0;
  const rows = parts.map((part) => {
    const from = at;
    at += part.value;
    [low, high] = [Math.min(low, at), Math.max(high, at)];
    return { ...part, from, to: at };
  });
  rows.push({ ...total, from: 0, to: total.value, class: "total" });
  [low, high] = [Math.min(low, total.value), Math.max(high, total.value)];
  const x = (value) => (100 * (value - low)) / Math.max(high - low, 1e-12);
  return h(
    "div",
    { class: "bars falls" },
    rows.map((row) => [
      h("span", { class: `name ${row.class || ""}`, title: row.name }, row.name),
      h(
        "span",
        { class: "bar bare" },
        h("i", { class: "zero", style: `left:${x(0).toFixed(2)}%` }),
        h("b", {
          class: row.value < 0 ? "minus" : null,
          style: `left:${x(Math.min(row.from, row.to)).toFixed(2)}%;width:${Math.abs(x(row.to) - x(row.from)).toFixed(2)}%`,
        }),
      ),
      h("span", { class: `amount ${row.class || ""}` }, row.text),
    ]),
  );
}

// Which of `count` are shown, and a button for the others.
function some(count, most, key) {
  const all = state.open.has(key) || count <= most + 2;
  return { list: range(all ? count : most), more: all ? 0 : count - most };
}
const moreButton = (more, what, key) =>
  more
    ? h(
        "button",
        {
          type: "button",
          class: "more",
          onclick: () => {
            state.open.add(key);
            draw();
          },
        },
        `show ${more} more ${what}`,
      )
    : null;
