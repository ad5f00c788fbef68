// Cards of the forward pass: what one step shows, as numbers and as pictures.
"use strict";

function sumBody(pane, step) {
  const width = step.shape[1],
    a = pane.byName.get(step.op.a),
    b = pane.byName.get(step.op.b);
  const title = (part) => (part ? part.title : "");
  if (width > 4) {
    const position = closely(pane),
      dims = some(width, MOST_DIMS, step.name);
    const line = (name, label, sign) =>
      h(
        "tr",
        {},
        h("th", { scope: "row", class: "long" }, `${sign} ${label}`.trim()),
        dims.list.map((dim) => numberCell(pane, name, [position, dim])),
      );
    return [
      h("h3", {}, `For ${quoted(tokensOf(pane)[position].text)}`),
      table(
        columns(["", ...dims.list.map((dim) => `${dim}`)]),
        h("tbody", {}, line(step.op.a, title(a), ""), line(step.op.b, title(b), "+"), line(step.name, "sum", "=")),
      ),
      moreButton(dims.more, "numbers", step.name),
      h("h3", {}, "For every word"),
      rowsTable(pane, step),
    ];
  }
  const rows = someWords(pane, step);
  const part = (name, position) => range(width).map((dim) => numberCell(pane, name, [position, dim]));
  return beside(
    [
      table(
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, "word"),
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
              tokenHead(pane, position),
              part(step.op.a, position),
              h("td", { class: "op" }, "+"),
              part(step.op.b, position),
              h("td", { class: "op" }, "="),
              part(step.name, position),
            ),
          ),
        ),
      ),
      moreButton(rows.more, "words", `${step.name}/rows`),
    ],
    a ? planeOf(pane, step, a) : null,
  );
}

// Similarities and percentages: who asks down the side, who answers along the top.
function squareBody(pane, step) {
  const isShare = step.op.kind === "softmax",
    seq = tokensOf(pane).length,
    head = headOf(pane, step);
  const rows = someWords(pane, step),
    digits = Math.max(1, state.decimals - 1);
  const shown = isShare ? (x) => percent(x, digits) : null,
    share = (query, key) => pane.at(step.name, [head, query, key]);
  const total = (query) => range(query + 1).reduce((sum, key) => sum + (share(query, key) || 0), 0);
  const most = isShare
    ? 1
    : 2.4 * Math.max(1e-9, ...rows.list.flatMap((query) => rows.list.map((key) => Math.abs(share(query, key) || 0))));
  const numbers = [
    table(
      captioned("down: the word that asks · across: the word that answers"),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, ""),
          rows.list.map((key) => tokenHead(pane, key, "col")),
          isShare ? h("th", { scope: "col" }, "sum") : null,
        ),
      ),
      h(
        "tbody",
        {},
        rows.list.map((query) =>
          h(
            "tr",
            {},
            tokenHead(pane, query),
            rows.list.map((key) => numberCell(pane, step.name, [head, query, key], shown, most)),
            isShare ? h("td", { class: "sum" }, percent(total(query))) : null,
          ),
        ),
      ),
    ),
    moreButton(rows.more, "words", `${step.name}/rows`),
  ];
  if (!isShare) return numbers;
  const position = closely(pane),
    other = otherOf(pane),
    same = other && other.story.tensors[step.name]?.shape.join() === step.shape.join();
  return [
    numbers,
    seq <= 24
      ? [
          h("h3", {}, `What ${quoted(tokensOf(pane)[position].text)} looks at`),
          looks(textsOf(pane), share, position, lookClosely),
        ]
      : null,
    h("h3", {}, step.shape[0] > 1 ? "The same as shades, head by head" : "The same as shades"),
    h(
      "div",
      { class: "gallery" },
      range(step.shape[0])
        .filter((n) => step.shape[0] <= 6 || n === head)
        .map((n) =>
          figure(
            shades(
              textsOf(pane),
              (query, key) => pane.at(step.name, [n, query, key]),
              `percentages of head ${n + 1} as shades`,
              { other: same && ((query, key) => other.at(step.name, [n, query, key])) },
            ),
            step.shape[0] > 1
              ? toggle(`head ${n + 1}`, n === head, () => {
                  state.head = n;
                  draw();
                })
              : "the stronger the colour, the more",
          ),
        ),
    ),
  ];
}

// How the chosen word's value is mixed.
function mixBody(pane, step) {
  const query = closely(pane),
    head = headOf(pane, step),
    width = Math.min(step.shape[2], 6);
  const scaled = width <= 2; // There is room for each product.
  const group = step.shape[0] / pane.byName.get(step.op.v).shape[0];
  const share = (key) => pane.at(step.op.pattern, [head, query, key]);
  const keys = range(query + 1)
    .filter((key) => share(key) !== null)
    .sort((a, b) => share(b) - share(a));
  const listed = keys.slice(0, 8).sort((a, b) => a - b);
  return [
    h("h3", {}, `How ${quoted(tokensOf(pane)[query].text)} is mixed`),
    table(
      columns([
        "word",
        "percentage",
        "",
        ...range(width).map((dim) => (dim ? "" : "value")),
        ...(scaled ? ["", ...range(width).map((dim) => (dim ? "" : "scaled"))] : []),
      ]),
      h(
        "tbody",
        {},
        listed.map((key) =>
          h(
            "tr",
            {},
            tokenHead(pane, key),
            numberCell(pane, step.op.pattern, [head, query, key], (p) => percent(p), 1),
            h("td", { class: "op" }, "×"),
            range(width).map((dim) => numberCell(pane, step.op.v, [Math.floor(head / group), key, dim])),
            scaled
              ? [
                  h("td", { class: "op" }, "="),
                  range(width).map((dim) =>
                    h(
                      "td",
                      { class: "sum" },
                      fixed(share(key) * at(pane, step.op.v, [Math.floor(head / group), key, dim])),
                    ),
                  ),
                ]
              : null,
          ),
        ),
        h(
          "tr",
          { class: "total" },
          h("th", { scope: "row" }, "together"),
          h("td", {}, ""),
          scaled ? range(width + 1).map(() => h("td", {}, "")) : null,
          h("td", { class: "op" }, "="),
          range(width).map((dim) => numberCell(pane, step.name, [head, query, dim])),
        ),
      ),
    ),
    keys.length > 8 ? h("p", { class: "soft" }, `and ${keys.length - 8} words with smaller percentages`) : null,
    h("h3", {}, "Every word"),
    beside(rowsTable(pane, step), planeOf(pane, step)),
  ];
}

// The weights of a small layer, as StatQuest writes them on the lines.
function weightsBody(pane, step) {
  const weight = pane.weight(step.op.weight),
    head = headOf(pane, step) || 0,
    width = step.shape[step.shape.length - 1];
  if (!weight || weight.shape[0] > 8 || width > 8) return null;
  const isTokens = step.axes.includes("token"),
    first = step.op.heads ? head * width : 0;
  const name = (dim) => (isTokens ? visible(pane.text(dim)) : `to ${dim}`);
  const bias =
    step.op.bias &&
    h(
      "tr",
      { class: "total" },
      h("th", { scope: "row" }, "bias"),
      range(width).map((o) => numberCell(pane, step.op.bias, [first + o])),
    );
  return [
    h("h3", {}, "The weights, learned in training"),
    table(
      columns(["", ...range(width).map(name)]),
      h(
        "tbody",
        {},
        range(weight.shape[step.op.transposed ? 1 : 0]).map((i) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, `times number ${i}`),
            range(width).map((o) => numberCell(pane, step.op.weight, step.op.transposed ? [o, i] : [i, first + o])),
          ),
        ),
        bias,
      ),
    ),
  ];
}

// The hidden units that say most about the chosen word.
function loudest(pane, step) {
  const position = closely(pane),
    row = rowAt(pane, step, position);
  const units = row
    .map((value, unit) => ({ unit, value }))
    .sort((a, b) => Math.abs(b.value) - Math.abs(a.value))
    .slice(0, 8);
  return [
    h("h3", {}, `The loudest units for ${quoted(tokensOf(pane)[position].text)}`),
    bars(units.map(({ unit, value }) => ({ name: `unit ${unit}`, value, text: showNumber(value, state.decimals) }))),
  ];
}

function normBody(pane, step) {
  const of = pane.byName.get(step.op.of),
    head = headOf(pane, step);
  const facts = (position) => moments(rowAt(pane, of, position, head), step.op.centered, step.op.eps);
  return rowsTable(
    pane,
    step,
    of && pane.story.tensors[of.name]
      ? {
          names: step.op.centered ? ["mean before", "spread before"] : ["size before"],
          values: (position) => {
            const { mean, scale } = facts(position);
            return step.op.centered ? [mean, scale] : [scale];
          },
        }
      : null,
  );
}

function turnBody(pane, step) {
  const position = closely(pane),
    head = headOf(pane, step),
    pairs = step.op.frequencies.length;
  const of = pane.byName.get(step.op.of),
    before = rowAt(pane, of, position, head),
    after = rowAt(pane, step, position, head);
  const listed = range(Math.min(pairs, 6)),
    pair = (row, i) => [row[i], row[i + pairs]];
  return [
    h("h3", {}, `${quoted(tokensOf(pane)[position].text)} at position ${position}`),
    dials(
      listed.map((i) => pair(before, i)),
      listed.map((i) => pair(after, i)),
      listed.map((i) => position * step.op.frequencies[i]),
    ),
    rowsTable(pane, step),
  ];
}

// A wide vocabulary: only the likeliest, since no one reads fifty thousand columns.
function likeliest(pane, step) {
  const position = closely(pane),
    index = state.panes.indexOf(pane);
  return [
    h(
      "p",
      {},
      `The likeliest of ${step.shape[1].toLocaleString("en")} tokens after ${quoted(tokensOf(pane)[position].text)}; choose one to see where its number comes from.`,
    ),
    table(
      columns(["token", "percentage"]),
      h(
        "tbody",
        {},
        pane.story.next_words[position].top.map((guess) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, visible(guess.text)),
            h(
              "td",
              {
                class: "n",
                tabindex: -1,
                style: shade(guess.probability),
                "data-p": position,
                "data-pane": index,
                "data-name": step.name,
                "data-index": `${position},${guess.id}`,
              },
              percent(guess.probability, 2),
            ),
          ),
        ),
      ),
    ),
  ];
}

function stepBody(pane, step) {
  const { op } = step,
    operands = { add: [op.a, op.b], mix: [op.pattern, op.v], norm: [op.of], turn: [op.of] }[op.kind] || [];
  const isHere = Boolean(pane.story.tensors[step.name]);
  if (!isHere && step.axes.includes("token")) return likeliest(pane, step);
  if (!isHere || (source.mayHave(pane, step.layer) && !operands.every((name) => pane.story.tensors[name])))
    return missing(pane, step);
  if (!operands.every((name) => pane.story.tensors[name])) return rowsTable(pane, step);
  switch (step.op.kind) {
    case "embed":
      return beside(rowsTable(pane, step), planeOf(pane, step));
    case "waves":
      return [curves(pane, step), rowsTable(pane, step)];
    case "add":
      return sumBody(pane, step);
    case "scores":
      return squareBody(pane, step);
    case "softmax":
      return step.axes.includes("key") ? squareBody(pane, step) : rowsTable(pane, step);
    case "mix":
      return mixBody(pane, step);
    case "norm":
      return normBody(pane, step);
    case "turn":
      return turnBody(pane, step);
    case "linear":
      return beside([rowsTable(pane, step), weightsBody(pane, step)], planeOf(pane, step));
    case "activate":
    case "gate":
      return [loudest(pane, step), rowsTable(pane, step)];
    default:
      return rowsTable(pane, step);
  }
}

// A step whose numbers are left out: they are asked for, computed, or told how to be had.
function missing(pane, step) {
  if (source.mayHave(pane, step.layer)) {
    source.layer(pane, step.layer);
    if (!source.isLive) return stepBody(pane, step);
    return h("p", { class: "soft", "aria-busy": true }, `Asking for the numbers of layer ${step.layer + 1} …`);
  }
  const how =
    step.layer === null
      ? "a shorter prompt has fewer"
      : `in a terminal: nextword explain RECORD PROMPT --layer ${step.layer}`;
  return h("p", {}, `These numbers are not in this page; ${how}.`);
}
