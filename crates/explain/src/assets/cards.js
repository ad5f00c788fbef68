// Cards of the forward pass: the values of each step, as tables and pictures.
"use strict";

function sumBody(panel, step) {
  const width = step.shape[1],
    a = panel.byName.get(step.op.a),
    b = panel.byName.get(step.op.b);
  const title = (part) => (part ? part.title : "");
  if (width > (room() < 500 ? 2 : 4)) {
    const position = selectedRow(panel, step),
      dims = firstOf(width, MAX_DIMS, step.name);
    const line = (name, label, sign) =>
      h(
        "tr",
        {},
        h("th", { scope: "row", class: "long" }, `${sign} ${label}`.trim()),
        dims.list.map((dim) => valueCell(panel, name, [position, dim])),
      );
    return [
      h("h3", {}, `For ${quoted(rowTokens(panel, step)[position].text)}`),
      scrollTable(
        headerRow(["", ...dims.list.map((dim) => `${dim}`)]),
        h("tbody", {}, line(step.op.a, title(a), ""), line(step.op.b, title(b), "+"), line(step.name, "sum", "=")),
      ),
      moreButton(dims.more, "values", step.name),
      h("h3", {}, "For every token"),
      rowsTable(panel, step),
    ];
  }
  const rows = shownPositions(panel, step);
  const part = (name, position) => range(width).map((dim) => valueCell(panel, name, [position, dim]));
  return beside(
    [
      scrollTable(
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, "token"),
            h("th", { scope: "colgroup", colspan: width }, title(a)),
            h("th", {}, ""),
            h("th", { scope: "colgroup", colspan: width }, title(b)),
            h("th", {}, ""),
            h("th", { scope: "colgroup", colspan: width }, "sum"),
          ),
        ),
        h(
          "tbody",
          {},
          rows.list.map((position) =>
            h(
              "tr",
              {},
              tokenHeader(panel, position, "row", null, step.rows),
              part(step.op.a, position),
              h("td", { class: "op" }, "+"),
              part(step.op.b, position),
              h("td", { class: "op" }, "="),
              part(step.name, position),
            ),
          ),
        ),
      ),
      moreButton(rows.more, "tokens", `${step.name}/rows`),
    ],
    a ? planeOf(panel, step, a) : null,
  );
}

// Attention scores and weights: queries as rows, keys as columns.
function attentionBody(panel, step) {
  const isWeights = step.op.kind === "softmax",
    [queries, keys] = [rowTokens(panel, step), keyTokens(panel, step)],
    isSquare = step.rows === step.keys,
    head = headOf(panel, step);
  const rows = shownPositions(panel, step),
    columns = isSquare ? rows : firstOf(keys.length, MAX_ROWS, `${step.name}/rows`),
    digits = Math.max(1, state.decimals - 1);
  const shown = isWeights ? (x) => percent(x, digits) : null,
    weight = (query, key) => panel.at(step.name, [head, query, key]);
  const total = (query) => range(keys.length).reduce((sum, key) => sum + (weight(query, key) || 0), 0);
  const max = isWeights
    ? 1
    : 2.4 * Math.max(1e-9, ...rows.list.flatMap((query) => columns.list.map((key) => Math.abs(weight(query, key) || 0))));
  const values = [
    scrollTable(
      caption(joined(headName(panel, step), "rows: query (the token that attends) · columns: key (the token attended to)")),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, ""),
          columns.list.map((key) => tokenHeader(panel, key, "col", null, step.keys)),
          isWeights ? h("th", { scope: "col" }, "sum") : null,
        ),
      ),
      h(
        "tbody",
        {},
        rows.list.map((query) =>
          h(
            "tr",
            {},
            tokenHeader(panel, query, "row", null, step.rows),
            columns.list.map((key) => valueCell(panel, step.name, [head, query, key], shown, max)),
            isWeights ? h("td", { class: "sum" }, percent(total(query))) : null,
          ),
        ),
      ),
    ),
    moreButton(Math.max(rows.more, columns.more), "tokens", `${step.name}/rows`),
  ];
  if (!isWeights) return values;
  const position = selectedRow(panel, step),
    texts = [queries, keys].map((tokens) => tokens.map((token) => token.text)),
    marks = [(at) => markOf(step.rows, at), (at) => markOf(step.keys, at)],
    choose = step.rows === "source" ? selectSource : selectPosition,
    other = otherOf(panel),
    same = other && other.story.tensors[step.name]?.shape.join() === step.shape.join();
  return [
    values,
    Math.max(queries.length, keys.length) <= 24
      ? [
          h("h3", {}, joined(`What ${quoted(queries[position].text)} attends to`, headName(panel, step))),
          attentionLines(texts[0], weight, position, choose, { keyTexts: texts[1], marks }),
        ]
      : null,
    h("h3", {}, step.shape[0] > 1 ? "Heat maps, head by head" : "Heat map"),
    h(
      "div",
      { class: "gallery" },
      range(step.shape[0])
        .filter((n) => step.shape[0] <= 6 || n === head)
        .map((n) =>
          figure(
            heatmap(
              texts[0],
              (query, key) => panel.at(step.name, [n, query, key]),
              `attention weights of head ${n + 1} as a heat map`,
              { other: same && ((query, key) => other.at(step.name, [n, query, key])), largest: step.shape[0] > 1 ? 230 : 340, keyTexts: texts[1], marks },
            ),
            step.shape[0] > 1
              ? toggleButton(`head ${n + 1}`, n === head, () => {
                  state.head = n;
                  draw();
                })
              : "stronger colour = more attention",
          ),
        ),
    ),
  ];
}

// The weighted sum of values for the selected position.
function weightedSumBody(panel, step) {
  const query = selectedRow(panel, step),
    head = headOf(panel, step),
    width = Math.min(step.shape[2], 6),
    keyInput = panel.byName.get(step.op.pattern).keys;
  const showProducts = width <= 2; // Wider heads do not fit.
  const group = step.shape[0] / panel.byName.get(step.op.v).shape[0];
  const weight = (key) => panel.at(step.op.pattern, [head, query, key]);
  const keys = range(tokensIn(panel, keyInput).length)
    .filter((key) => weight(key) !== null)
    .sort((a, b) => weight(b) - weight(a));
  const listed = keys.slice(0, 8).sort((a, b) => a - b);
  return [
    h("h3", {}, `Weighted sum for ${quoted(rowTokens(panel, step)[query].text)}`),
    scrollTable(
      headerRow([
        "token",
        "weight",
        "",
        ...range(width).map((dim) => (dim ? "" : "value")),
        ...(showProducts ? ["", ...range(width).map((dim) => (dim ? "" : "product"))] : []),
      ]),
      h(
        "tbody",
        {},
        listed.map((key) =>
          h(
            "tr",
            {},
            tokenHeader(panel, key, "row", null, keyInput),
            valueCell(panel, step.op.pattern, [head, query, key], (p) => percent(p), 1),
            h("td", { class: "op" }, "×"),
            range(width).map((dim) => valueCell(panel, step.op.v, [Math.floor(head / group), key, dim])),
            showProducts
              ? [
                  h("td", { class: "op" }, "="),
                  range(width).map((dim) =>
                    h(
                      "td",
                      { class: "sum" },
                      formatCell(weight(key) * at(panel, step.op.v, [Math.floor(head / group), key, dim])),
                    ),
                  ),
                ]
              : null,
          ),
        ),
        h(
          "tr",
          { class: "total" },
          h("th", { scope: "row" }, "sum"),
          h("td", {}, ""),
          showProducts ? range(width + 1).map(() => h("td", {}, "")) : null,
          h("td", { class: "op" }, "="),
          range(width).map((dim) => valueCell(panel, step.name, [head, query, dim])),
        ),
      ),
    ),
    keys.length > 8 ? h("p", { class: "soft" }, `and ${countOf(keys.length - 8, "more token")} with smaller weights`) : null,
    h("h3", {}, "Every token"),
    beside(rowsTable(panel, step), planeOf(panel, step)),
  ];
}

// The weight matrix of a small layer (the numbers next to the lines in StatQuest's diagrams).
function weightsBody(panel, step) {
  const weight = panel.weight(step.op.weight),
    head = headOf(panel, step) || 0,
    width = step.shape[step.shape.length - 1];
  if (!weight || weight.shape[0] > 8 || width > 8) return null;
  const isTokens = step.axes.includes("token"),
    first = step.op.heads ? head * width : 0;
  const name = (dim) => (isTokens ? printable(panel.text(dim)) : `to ${dim}`);
  const bias =
    step.op.bias &&
    h(
      "tr",
      { class: "total" },
      h("th", { scope: "row" }, "bias"),
      range(width).map((o) => valueCell(panel, step.op.bias, [first + o])),
    );
  return [
    h("h3", {}, "The weights, learned in training"),
    scrollTable(
      headerRow(["", ...range(width).map(name)]),
      h(
        "tbody",
        {},
        range(weight.shape[step.op.transposed ? 1 : 0]).map((i) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, `times element ${i}`),
            range(width).map((o) => valueCell(panel, step.op.weight, step.op.transposed ? [o, i] : [i, first + o])),
          ),
        ),
        bias,
      ),
    ),
  ];
}

// The hidden units with the largest activations at the selected position.
function largestUnits(panel, step) {
  const position = selectedRow(panel, step),
    row = rowAt(panel, step, position);
  const units = row
    .map((value, unit) => ({ unit, value }))
    .sort((a, b) => Math.abs(b.value) - Math.abs(a.value))
    .slice(0, 8);
  return [
    h("h3", {}, `Largest activations for ${quoted(rowTokens(panel, step)[position].text)}`),
    bars(units.map(({ unit, value }) => ({ name: `unit ${unit}`, value, text: formatNumber(value, state.decimals) }))),
  ];
}

function normBody(panel, step) {
  const of = panel.byName.get(step.op.of),
    head = headOf(panel, step);
  const inputMoments = (position) => moments(rowAt(panel, of, position, head), step.op.centered, step.op.eps);
  return rowsTable(
    panel,
    step,
    of && panel.story.tensors[of.name]
      ? {
          names: step.op.centered ? ["input mean", "input std"] : ["input RMS"],
          values: (position) => {
            const { mean, scale } = inputMoments(position);
            return step.op.centered ? [mean, scale] : [scale];
          },
        }
      : null,
  );
}

function ropeBody(panel, step) {
  const position = selectedRow(panel, step),
    head = headOf(panel, step),
    pairs = step.op.frequencies.length;
  const of = panel.byName.get(step.op.of),
    before = rowAt(panel, of, position, head),
    after = rowAt(panel, step, position, head);
  const listed = range(Math.min(pairs, 6)),
    pair = (row, i) => [row[i], row[i + pairs]];
  return [
    h("h3", {}, `${quoted(rowTokens(panel, step)[position].text)} at position ${position}`),
    dials(
      listed.map((i) => pair(before, i)),
      listed.map((i) => pair(after, i)),
      listed.map((i) => position * step.op.frequencies[i]),
    ),
    rowsTable(panel, step),
  ];
}

// For a large vocabulary, only the most likely tokens.
function topTokens(panel, step) {
  const position = selectedPosition(panel),
    index = state.panels.indexOf(panel);
  return [
    h(
      "p",
      {},
      `The most likely of ${step.shape[1].toLocaleString("en")} tokens ${isMasked(panel) ? "at" : "after"} ${quoted(tokensOf(panel)[position].text)}. Click a probability to see its formula.`,
    ),
    scrollTable(
      headerRow(["token", "probability"]),
      h(
        "tbody",
        {},
        panel.story.next_words[position].top.map((token) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, printable(token.text)),
            h(
              "td",
              {
                class: "n",
                tabindex: -1,
                style: shade(token.probability),
                "data-p": position,
                "data-pane": index,
                "data-name": step.name,
                "data-index": `${position},${token.id}`,
              },
              percent(token.probability, 2),
            ),
          ),
        ),
      ),
    ),
  ];
}

function stepBody(panel, step) {
  const { op } = step,
    operands = { add: [op.a, op.b], add_scaled: [op.a, op.b], mix: [op.pattern, op.v], norm: [op.of], turn: [op.of] }[op.kind] || [];
  const isLoaded = Boolean(panel.story.tensors[step.name]);
  if (!isLoaded && step.axes.includes("token") && (source.isLive || !source.canLoad(panel, step.layer))) return topTokens(panel, step);
  if (!isLoaded || (source.canLoad(panel, step.layer) && !operands.every((name) => panel.story.tensors[name])))
    return omittedBody(panel, step);
  if (!operands.every((name) => panel.story.tensors[name])) return rowsTable(panel, step);
  switch (step.op.kind) {
    case "embed":
      return beside(rowsTable(panel, step), planeOf(panel, step));
    case "waves":
      return [sinusoids(panel, step), rowsTable(panel, step)];
    case "add":
      return sumBody(panel, step);
    case "scores":
      return attentionBody(panel, step);
    case "softmax":
      return step.axes.includes("key") ? attentionBody(panel, step) : rowsTable(panel, step);
    case "mix":
      return weightedSumBody(panel, step);
    case "norm":
      return normBody(panel, step);
    case "turn":
      return ropeBody(panel, step);
    case "linear":
      return beside([rowsTable(panel, step), weightsBody(panel, step)], planeOf(panel, step));
    case "activate":
    case "gate":
      return [largestUnits(panel, step), rowsTable(panel, step)];
    default:
      return rowsTable(panel, step);
  }
}

// The body of a step whose values are not in the page: loads or computes them, or shows how to get them.
function omittedBody(panel, step) {
  if (source.canLoad(panel, step.layer)) {
    source.layer(panel, step.layer);
    if (!source.isLive) return stepBody(panel, step);
    return h("p", { class: "soft", "aria-busy": true }, `Loading the values of layer ${step.layer + 1} …`);
  }
  const hint =
    step.layer === null
      ? "use a shorter prompt"
      : `in a terminal: nextword explain MODEL PROMPT --layer ${step.layer}`;
  return h("p", {}, `These values are not in this page; ${hint}.`);
}
