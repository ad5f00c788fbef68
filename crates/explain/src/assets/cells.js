// Values in tables: clickable cells, highlighted tokens, tints, planes.
"use strict";

const MAX_DIMS = 10,
  MAX_ROWS = 24;
const tokensOf = (panel) => panel.story.tokens;
// The tokens that the rows or keys of a step belong to ("source": those of the encoder's input).
const tokensIn = (panel, input) => (input === "source" ? sourceOf(panel) : tokensOf(panel));
const rowTokens = (panel, step) => tokensIn(panel, step.rows);
const keyTokens = (panel, step) => tokensIn(panel, step.keys);
// What marks a token of either input, so that it is highlighted everywhere.
const markOf = (input, position) => (input === "source" ? `s${position}` : `${position}`);
const textsOf = (panel) => tokensOf(panel).map((token) => token.text);
const otherOf = (panel) => state.panels[1 - state.panels.indexOf(panel)];
// The selected position: that of the prediction after the prompt, until the user selects another.
const selectedPosition = (panel) => Math.min(state.position ?? focusOf(panel), tokensOf(panel).length - 1);
// The selected row of a step: of the encoder's input another one than of the output.
const selectedRow = (panel, step) =>
  step.rows === "source" ? Math.min(state.source ?? 0, sourceOf(panel).length - 1) : selectedPosition(panel);
// The name of the head that a card shows, if the model has several.
const headName = (panel, step) =>
  headOf(panel, step) === null || panel.story.config.n_heads === 1
    ? ""
    : step.shape[0] < panel.story.config.n_heads
      ? `key/value head ${headOf(panel, step) + 1} of ${step.shape[0]}, shared by several query heads`
      : `head ${headOf(panel, step) + 1} of ${step.shape[0]}`;
const joined = (...parts) => parts.filter(Boolean).join(" · ");
const headOf = (panel, step) =>
  step.axes[0] === "head"
    ? Math.floor((Math.min(state.head, panel.story.config.n_heads - 1) * step.shape[0]) / panel.story.config.n_heads)
    : null;
const at = (panel, name, index) => {
  if (panel.byName.has(name)) return panel.at(name, index);
  const weight = panel.weight(name);
  return weight ? weight.data[panel.offset(weight.shape, index)] : null;
};
const rowAt = (panel, step, position, head = headOf(panel, step)) =>
  range(step.shape[step.shape.length - 1]).map((dim) =>
    at(panel, step.name, head === null ? [position, dim] : [head, position, dim]),
  );

// The header of a row or column: a token, highlighted everywhere on hover.
const tokenHeader = (panel, position, scope = "row", mark = null, input = null) =>
  h(
    "th",
    {
      scope,
      "data-p": markOf(input, position),
      title: `${printable(tokensIn(panel, input)[position].text)}, position ${position}`,
      class: [position === selectedRow(panel, { rows: input }) ? "closely" : "", mark ?? ""].join(" ").trim() || null,
    },
    printable(tokensIn(panel, input)[position].text),
  );

// Why a weight or score is masked.
const maskedTitle = (panel, step) =>
  (panel.byName.get(step.op.of) ?? step).op.causal === false
    ? "masked: this token is outside of the window"
    : "masked: a token does not attend to later tokens";

// A cell with one value. Clicking it shows its derivation. `tint` shades it by its size.
function valueCell(panel, name, index, shown = null, tint = null) {
  const value = at(panel, name, index),
    step = panel.byName.get(name);
  if (step && !panel.story.tensors[name])
    return h("td", { class: "soft", title: "not in this page", "aria-label": "not in this page" }, "…");
  if (value === null)
    return h("td", { class: "masked", title: maskedTitle(panel, step), "aria-label": "masked" }, "–");
  const other = otherOf(panel),
    otherValue = other && hasIndex(other, name, index) ? at(other, name, index) : null;
  const show = shown || formatCell;
  const differs = otherValue !== null && show(otherValue) !== show(value);
  const share = tint ? value / tint : 0;
  return h(
    "td",
    {
      class: `n${differs ? " differs" : ""}${share < 0 ? " minus" : ""}`,
      tabindex: -1,
      style: tint ? shade(Math.abs(share)) : "",
      "data-p": step ? markOf(step.rows, index[step.axes.indexOf("position")]) : null,
      "data-k": step?.axes.includes("key") ? markOf(step.keys, index[2]) : null,
      "data-pane": state.panels.indexOf(panel),
      "data-name": name,
      "data-index": index.join(","),
      title: differs ? `${show(otherValue)} in the other panel` : null,
    },
    show(value),
  );
}
const hasIndex = (panel, name, index) =>
  Boolean(panel.story.tensors[name]) && index.every((i, axis) => i < panel.story.tensors[name].shape[axis]);

// The largest absolute value of a table, which scales the tints.
function maxAbs(panel, step, positions, dims) {
  const head = headOf(panel, step);
  let max = 1e-9;
  for (const position of positions) {
    for (const dim of dims)
      max = Math.max(
        max,
        Math.abs(at(panel, step.name, head === null ? [position, dim] : [head, position, dim]) || 0),
      );
  }
  return max;
}

// The positions to show: the first ones, and the selected one.
function shownPositions(panel, step) {
  const rows = firstOf(rowTokens(panel, step).length, MAX_ROWS, `${step.name}/rows`),
    chosen = selectedRow(panel, step);
  return rows.list.includes(chosen) ? rows : { list: [...rows.list, chosen], more: rows.more - 1 };
}

function rowsTable(panel, step, extra = null) {
  const isTokens = step.axes.includes("token"),
    head = headOf(panel, step),
    key = step.name;
  const dims = firstOf(step.shape[step.shape.length - 1], MAX_DIMS, key),
    rows = shownPositions(panel, step);
  const shown = step.op.kind === "softmax" ? (p) => percent(p, Math.max(1, state.decimals - 1)) : null;
  const tint = shown ? 1 : 2.4 * maxAbs(panel, step, rows.list, dims.list);
  const names = dims.list.map((dim) => (isTokens ? printable(panel.text(dim)) : `${dim}`));
  return [
    scrollTable(
      caption(
        joined(
          headName(panel, step),
          isTokens ? "columns: tokens of the vocabulary" : "columns: elements of each vector, from 0",
          shown ? "stronger colour = larger" : "blue = positive, orange = negative",
        ),
      ),
      headerRow(["token", ...names, ...(extra ? extra.names : [])]),
      h(
        "tbody",
        {},
        rows.list.map((position) =>
          h(
            "tr",
            {},
            tokenHeader(panel, position, "row", null, step.rows),
            dims.list.map((dim) =>
              valueCell(panel, step.name, head === null ? [position, dim] : [head, position, dim], shown, tint),
            ),
            extra ? extra.values(position).map((value) => h("td", { class: "sum" }, formatCell(value))) : null,
          ),
        ),
      ),
    ),
    moreButton(dims.more, isTokens ? "tokens" : "values", key),
    moreButton(rows.more, "tokens", `${key}/rows`),
  ];
}

// With two elements per token, each vector is a point on a plane.
function planeOf(panel, step, from = null) {
  if (step.shape[step.shape.length - 1] !== 2 || rowTokens(panel, step).length > 12) return null;
  const points = rowTokens(panel, step).map((token) => ({
    at: rowAt(panel, step, token.position),
    position: markOf(step.rows, token.position),
    text: printable(token.text),
    from: from ? rowAt(panel, from, token.position) : null,
  }));
  return figure(
    plane(points, `${step.title}: vectors as points on a plane`),
    from ? `Each line leads from the ${from.title} to the ${step.title}.` : "The two elements of each vector as a point on a plane.",
  );
}
const beside = (left, right) => (right ? h("div", { class: "beside" }, h("div", {}, left), right) : left);
const figure = (picture, text) => h("figure", {}, picture, h("figcaption", {}, text));
