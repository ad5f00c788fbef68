// Numbers in tables: cells that can be asked, tokens that light up, tints, planes.
"use strict";

const MOST_DIMS = 10,
  MOST_ROWS = 24;
const tokensOf = (pane) => pane.story.tokens;
const textsOf = (pane) => tokensOf(pane).map((token) => token.text);
const otherOf = (pane) => state.panes[1 - state.panes.indexOf(pane)];
// The word that is looked at closely: the last one until another is chosen.
const closely = (pane) => Math.min(state.position ?? tokensOf(pane).length - 1, tokensOf(pane).length - 1);
const headOf = (pane, step) =>
  step.axes[0] === "head"
    ? Math.floor((Math.min(state.head, pane.story.config.n_heads - 1) * step.shape[0]) / pane.story.config.n_heads)
    : null;
const at = (pane, name, index) => {
  if (pane.byName.has(name)) return pane.at(name, index);
  const weight = pane.weight(name);
  return weight ? weight.data[pane.place(weight.shape, index)] : null;
};
const rowAt = (pane, step, position, head = headOf(pane, step)) =>
  range(step.shape[step.shape.length - 1]).map((dim) =>
    at(pane, step.name, head === null ? [position, dim] : [head, position, dim]),
  );

// A row's or column's header: the token, which lights up everywhere.
const tokenHead = (pane, position, scope = "row") =>
  h(
    "th",
    { scope, "data-p": position, title: `position ${position}`, class: position === closely(pane) ? "closely" : null },
    visible(tokensOf(pane)[position].text),
  );

// One number, which can be asked where it comes from. `tint` shades it by its size.
function numberCell(pane, name, index, shown = null, tint = null) {
  const value = at(pane, name, index),
    step = pane.byName.get(name);
  if (step && !pane.story.tensors[name])
    return h("td", { class: "soft", title: "not in this page", "aria-label": "not in this page" }, "…");
  if (value === null)
    return h("td", { class: "masked", title: "hidden: a word does not see the future", "aria-label": "hidden" }, "–");
  const other = otherOf(pane),
    theirs = other && inside(other, name, index) ? at(other, name, index) : null;
  const show = shown || fixed;
  const differs = theirs !== null && show(theirs) !== show(value);
  const share = tint ? value / tint : 0;
  return h(
    "td",
    {
      class: `n${differs ? " differs" : ""}${share < 0 ? " minus" : ""}`,
      tabindex: -1,
      style: tint ? shade(Math.abs(share)) : "",
      "data-p": step ? index[step.axes.indexOf("position")] : null,
      "data-k": step?.axes.includes("key") ? index[2] : null,
      "data-pane": state.panes.indexOf(pane),
      "data-name": name,
      "data-index": index.join(","),
      title: differs ? `${show(theirs)} in the other` : null,
    },
    show(value),
  );
}
const inside = (pane, name, index) =>
  Boolean(pane.story.tensors[name]) && index.every((i, axis) => i < pane.story.tensors[name].shape[axis]);

// What numbers are shaded against: the largest of the table, so that tables can be read at a glance.
function largest(pane, step, positions, dims) {
  const head = headOf(pane, step);
  let most = 1e-9;
  for (const position of positions) {
    for (const dim of dims)
      most = Math.max(
        most,
        Math.abs(at(pane, step.name, head === null ? [position, dim] : [head, position, dim]) || 0),
      );
  }
  return most;
}

// The words that are shown: the first ones, and the one that is looked at closely.
function someWords(pane, step) {
  const rows = some(tokensOf(pane).length, MOST_ROWS, `${step.name}/rows`),
    chosen = closely(pane);
  return rows.list.includes(chosen) ? rows : { list: [...rows.list, chosen], more: rows.more - 1 };
}

function rowsTable(pane, step, extra = null) {
  const isTokens = step.axes.includes("token"),
    head = headOf(pane, step),
    key = step.name;
  const dims = some(step.shape[step.shape.length - 1], MOST_DIMS, key),
    rows = someWords(pane, step);
  const shown = step.op.kind === "softmax" ? (p) => percent(p, Math.max(1, state.decimals - 1)) : null;
  const tint = shown ? 1 : 2.4 * largest(pane, step, rows.list, dims.list);
  const names = dims.list.map((dim) => (isTokens ? visible(pane.text(dim)) : `${dim}`));
  return [
    table(
      captioned(
        head !== null && step.shape[0] < pane.story.config.n_heads
          ? `key/value head ${head + 1} of ${step.shape[0]}, shared by several heads`
          : null,
      ),
      columns(["word", ...names, ...(extra ? extra.names : [])]),
      h(
        "tbody",
        {},
        rows.list.map((position) =>
          h(
            "tr",
            {},
            tokenHead(pane, position),
            dims.list.map((dim) =>
              numberCell(pane, step.name, head === null ? [position, dim] : [head, position, dim], shown, tint),
            ),
            extra ? extra.values(position).map((value) => h("td", { class: "sum" }, fixed(value))) : null,
          ),
        ),
      ),
    ),
    moreButton(dims.more, isTokens ? "tokens" : "numbers", key),
    moreButton(rows.more, "words", `${key}/rows`),
  ];
}

// Two numbers a word are a place on a plane.
function planeOf(pane, step, from = null) {
  if (step.shape[step.shape.length - 1] !== 2 || tokensOf(pane).length > 12) return null;
  const points = tokensOf(pane).map((token) => ({
    at: rowAt(pane, step, token.position),
    position: token.position,
    text: visible(token.text),
    from: from ? rowAt(pane, from, token.position) : null,
  }));
  return figure(
    plane(points, `${step.title} as places on a plane`),
    from ? `Each line leads from the ${from.title} to the ${step.title}.` : "The two numbers as a place on a plane.",
  );
}
const beside = (left, right) => (right ? h("div", { class: "beside" }, h("div", {}, left), right) : left);
const figure = (picture, words) => h("figure", {}, picture, h("figcaption", {}, words));
