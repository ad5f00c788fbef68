// The panel that derives a number, down to weights and words.
"use strict";

const MOST_OPERANDS = 24;

const sameNumber = (a, b) => a && b && a.pane === b.pane && a.name === b.name && a.index.join() === b.index.join();

async function drawWhy() {
  const current = state.trail[state.trail.length - 1],
    pane = current && state.panes[current.pane];
  document.querySelectorAll("td.pinned").forEach((cell) => cell.classList.remove("pinned"));
  $("why").classList.toggle("empty", !current);
  if (!current) {
    fill(
      "why",
      h("h2", {}, "Where does it come from?"),
      h(
        "p",
        { class: "soft" },
        "Choose any number: here stands its formula with the numbers that go in. Each of them can be asked in turn, down to the weights and the words.",
      ),
    );
    return;
  }
  document
    .querySelectorAll(`td[data-pane="${current.pane}"][data-index="${current.index.join(",")}"]`)
    .forEach((cell) => cell.classList.toggle("pinned", cell.dataset.name === current.name));
  try {
    const answer = (current.found ||= source.why(pane, current.name, current.index));
    if (answer instanceof Promise && !$("why-address")) fill("why", h("p", { class: "soft" }, "Asking …"));
    const found = answer instanceof Promise ? await answer : answer;
    if (state.trail[state.trail.length - 1] === current) fill("why", whyBody(current, found));
  } catch (error) {
    current.found = null; // To be asked again.
    if (state.trail[state.trail.length - 1] === current)
      fill("why", closing(), h("p", { class: "note" }, error.message));
  }
}
const openWhy = (link, pane) => {
  state.trail.push({ pane, name: link[0], index: link[1] });
  drawWhy();
  remember();
};
const closeWhy = () => {
  state.trail = [];
  drawWhy();
  remember();
};
const closing = () =>
  h(
    "div",
    { class: "trail" },
    h(
      "button",
      {
        type: "button",
        id: "why-back",
        disabled: state.trail.length < 2,
        onclick: () => {
          state.trail.pop();
          drawWhy();
          remember();
        },
      },
      "← back",
    ),
    h("button", { type: "button", id: "why-close", onclick: closeWhy }, "close"),
  );

function whyBody(current, found) {
  const { operands, isAbsent } = found;
  const off =
    !isAbsent &&
    found.result !== null &&
    found.value !== null &&
    Math.abs(found.result - found.value) > 1e-3 * Math.max(1, Math.abs(found.value));
  return [
    closing(),
    h("h2", {}, capital(found.title)),
    h("p", { class: "term" }, found.term),
    h(
      "p",
      { class: "value", id: "why-value" },
      found.value === null
        ? found.isAbsent
          ? "–"
          : "hidden"
        : showNumber(found.value, current.name === "tokens" ? 0 : 6),
    ),
    h("p", {}, h("code", { id: "why-address" }, found.address)),
    h("p", {}, h("span", { class: "formula" }, found.formula)),
    isAbsent
      ? h(
          "p",
          { class: "note" },
          `Not all of its numbers are in this page. In a terminal: nextword explain RECORD PROMPT --why '${found.address}'`,
        )
      : [
          found.filled && found.filled !== showNumber(found.value)
            ? h("p", { id: "why-filled" }, `= ${found.filled}`)
            : null,
          found.result !== null && operands.length
            ? h(
                "p",
                { class: "result", id: "why-result", "data-result": found.result },
                `= ${showNumber(found.result, 6)}${off ? " — differs from the number above" : ""}`,
              )
            : null,
        ],
    isPairs(operands) ? pairsBody(operands, current.pane) : operandList(operands, current.pane),
    operands.length || isAbsent ? null : h("p", { class: "soft" }, "Here the chain ends."),
  ];
}
const nameOf = ([name, index]) => `${name.replace(/^blocks\.\d+\./, "").replace("hook_", "")}[${index.join(",")}]`;
const operandButton = (operand, pane, text) =>
  h(
    "button",
    {
      type: "button",
      disabled: !operand.link,
      title: operand.link ? `${operand.link[0]} [${operand.link[1].join(", ")}]` : "a setting of the model",
      onclick: () => openWhy(operand.link, pane),
    },
    text,
  );

function operandList(operands, pane) {
  const rows = some(operands.length, MOST_OPERANDS, "operands");
  return [
    h(
      "ol",
      {},
      rows.list
        .map((n) => operands[n])
        .map((operand) =>
          h(
            "li",
            {},
            operandButton(operand, pane, [
              h("span", {}, operand.link ? `${operand.role} · ${nameOf(operand.link)}` : operand.role),
              h("span", {}, showNumber(operand.value, operand.role === "token id" ? 0 : 4)),
            ]),
          ),
        ),
    ),
    moreButton(rows.more, "numbers", "operands"),
  ];
}
// Sums of products: x times w, row by row, the largest products first where there are many.
const isPairs = (operands) =>
  operands.length >= 4 &&
  operands[0].role !== operands[1].role &&
  operands[2].role === operands[0].role &&
  operands[3].role === operands[1].role;
function pairsBody(operands, pane) {
  let pairs = [];
  while (
    pairs.length * 2 + 1 < operands.length &&
    operands[pairs.length * 2].role === operands[0].role &&
    operands[pairs.length * 2 + 1].role === operands[1].role
  ) {
    pairs.push([operands[pairs.length * 2], operands[pairs.length * 2 + 1]]);
  }
  const rest = operands.slice(pairs.length * 2),
    product = ([a, b]) => a.value * b.value,
    count = pairs.length;
  if (count > 8) pairs = [...pairs].sort((a, b) => Math.abs(product(b)) - Math.abs(product(a)));
  const rows = some(count, MOST_OPERANDS / 2, "operands");
  return [
    count > 8 ? h("p", { class: "soft" }, `${count} products, the largest first`) : null,
    h(
      "table",
      { class: "pairs" },
      columns([operands[0].role, "", operands[1].role, "", "product"]),
      h(
        "tbody",
        {},
        rows.list
          .map((n) => pairs[n])
          .map(([a, b]) =>
            h(
              "tr",
              {},
              h("td", {}, operandButton(a, pane, showNumber(a.value, 3))),
              h("td", { class: "op" }, "×"),
              h("td", {}, operandButton(b, pane, showNumber(b.value, 3))),
              h("td", { class: "op" }, "="),
              h("td", {}, showNumber(product([a, b]), 3)),
            ),
          ),
      ),
    ),
    moreButton(rows.more, "products", "operands"),
    rest.length ? operandList(rest, pane) : null,
  ];
}
