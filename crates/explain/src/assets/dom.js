// Building blocks of the cards: elements, texts, bars and tables.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const flatten = (children) => children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false);

function setUp(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style")
      node.style.cssText = value; // The server's content security policy forbids style attributes.
    else if (name.startsWith("aria-") && value !== null && value !== undefined) node.setAttribute(name, `${value}`);
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...flatten(children));
  return node;
}
const h = (tag, attributes = {}, ...children) => setUp(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) => setUp(document.createElementNS(SVG, tag), attributes, children);

const $ = (id) => document.getElementById(id);
const setChildren = (id, ...children) => $(id).replaceChildren(...flatten(children));
const range = (count) => Array.from({ length: count }, (_, i) => i);
const printable = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣") || "∅";
const quoted = (text) => `“${printable(text)}”`;
const percent = (p, digits = 1) => `${(100 * p).toFixed(digits)} %`;
// A value in a table, with a fixed number of decimals. The panel beside it shows more digits.
function formatCell(x) {
  if (Math.abs(x) >= 1e6) return formatNumber(x, 2);
  const text = x.toFixed(state.decimals);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
}
const countOf = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const capitalize = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const compareBy = (f) => (a, b) => f(a) - f(b);

// A background tint that shows the size of a value.
const shade = (share) => `--tint:${Math.max(0, Math.min(1, share)).toFixed(3)}`;

function select(label, options, chosen, choose, more = {}) {
  return h(
    "select",
    { "aria-label": label, onchange: (e) => choose(e.target.value), ...more },
    options.map(([value, text]) => h("option", { value, selected: `${value}` === `${chosen}` }, text)),
  );
}
const toggleButton = (label, isOn, act, more = {}) =>
  h("button", { type: "button", "aria-pressed": isOn, onclick: act, ...more }, label);

// A header row. [text] instead of text aligns the column to the left.
const headerRow = (names) =>
  h(
    "thead",
    {},
    h(
      "tr",
      {},
      names.map((name) => h("th", { scope: "col", class: Array.isArray(name) ? "left" : null }, name)),
    ),
  );
const caption = (text) => (text ? h("caption", {}, h("span", {}, text)) : null);
const scrollTable = (...children) => h("div", { class: "scroll" }, h("table", {}, ...children));

// Bars: [{name, value, text, class, was}], relative to `max`. `was` is shown as a mark.
function bars(rows, max = Math.max(...rows.map((row) => Math.abs(row.value)), 1e-12)) {
  const wide = (value) => `${Math.min(100, (100 * Math.abs(value)) / max).toFixed(2)}%`;
  return h(
    "div",
    { class: "bars" },
    rows.map((row) => [
      h("span", { class: `name ${row.class || ""}`, title: row.name }, row.name),
      h(
        "span",
        { class: "bar" },
        h("b", { style: `width:${wide(row.value)}` }),
        row.was === undefined ? null : h("i", { class: "was", style: `left:${wide(row.was)}`, title: "before the edits" }),
      ),
      h("span", { class: `amount ${row.class || ""}` }, row.text),
    ]),
  );
}

// A sum part by part: each bar begins where the previous one ended.
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
    { class: "bars" },
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

// The indices of a list to show, and how many are left for the "show more" button.
function firstOf(count, max, key) {
  const all = state.open.has(key) || count <= max + 2;
  return { list: range(all ? count : max), more: all ? 0 : count - max };
}
const moreButton = (more, noun, key) =>
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
        `show ${more} more ${noun}`,
      )
    : null;
