// The sidebar that derives a value, down to weights and token ids.
"use strict";

const MAX_OPERANDS = 24;

const isSameValue = (a, b) => a && b && a.panel === b.panel && a.name === b.name && a.index.join() === b.index.join();

async function drawWhy() {
  const current = state.trail[state.trail.length - 1],
    panel = current && state.panels[current.panel];
  document.querySelectorAll("td.pinned").forEach((cell) => cell.classList.remove("pinned"));
  $("why").classList.toggle("empty", !current);
  if (current) $("layout").classList.remove("wide");
  if (!current) {
    setChildren(
      "why",
      h("h2", {}, "Where does a value come from?"),
      h(
        "p",
        { class: "soft" },
        "Click any number to see its formula here. Click the numbers in it to trace further, down to the weights.",
      ),
    );
    return;
  }
  document
    .querySelectorAll(`td[data-pane="${current.panel}"][data-index="${current.index.join(",")}"]`)
    .forEach((cell) => cell.classList.toggle("pinned", cell.dataset.name === current.name));
  try {
    const derivation = (current.found ||= source.why(panel, current.name, current.index));
    if (derivation instanceof Promise && !$("why-address")) setChildren("why", h("p", { class: "soft" }, "Loading …"));
    const found = derivation instanceof Promise ? await derivation : derivation;
    if (state.trail[state.trail.length - 1] === current) setChildren("why", whyBody(current, found));
  } catch (error) {
    current.found = null; // Retry on the next draw.
    if (state.trail[state.trail.length - 1] === current)
      setChildren("why", whyButtons(), h("p", { class: "note" }, error.message));
  }
}
const openWhy = (link, panel) => {
  state.trail.push({ panel, name: link[0], index: link[1] });
  drawWhy();
  saveLink();
};
const closeWhy = () => {
  state.trail = [];
  drawWhy();
  saveLink();
};
const whyButtons = () =>
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
          saveLink();
        },
      },
      "← back",
    ),
    h("button", { type: "button", id: "why-close", onclick: closeWhy }, "close"),
  );

function whyBody(current, found) {
  const { operands, isIncomplete } = found;
  const differs =
    !isIncomplete &&
    found.result !== null &&
    found.value !== null &&
    Math.abs(found.result - found.value) > 1e-3 * Math.max(1, Math.abs(found.value));
  return [
    whyButtons(),
    h("h2", {}, capitalize(found.title)),
    h("p", { class: "term" }, found.term),
    h(
      "p",
      { class: "value", id: "why-value" },
      found.value === null
        ? found.isIncomplete
          ? "–"
          : "masked"
        : formatNumber(found.value, current.name === "tokens" ? 0 : 6),
    ),
    h("p", {}, h("code", { id: "why-address" }, found.address)),
    h("p", {}, h("span", { class: "formula" }, found.formula)),
    isIncomplete
      ? h(
          "p",
          { class: "note" },
          `Some operands of this value are not in this page. In a terminal: nextword explain MODEL PROMPT --why '${found.address}'`,
        )
      : [
          found.filled && found.filled !== formatNumber(found.value)
            ? h("p", { id: "why-filled" }, `= ${found.filled}`)
            : null,
          found.result !== null && operands.length
            ? h(
                "p",
                { class: "result", id: "why-result", "data-result": found.result },
                `= ${formatNumber(found.result, 6)}${differs ? " — differs from the value above" : ""}`,
              )
            : null,
          found.result !== null && operands.length && !differs && formatNumber(found.result, 6) !== formatNumber(found.value, 6)
            ? h("p", { class: "soft" }, "The last digits differ: the model computed the value above in 32-bit floats, and this line is computed in 64-bit floats.")
            : null,
        ],
    isPairs(operands) ? pairsBody(operands, current.panel) : operandList(operands, current.panel),
    operands.length || isIncomplete ? null : h("p", { class: "soft" }, "The chain ends here."),
  ];
}
const nameOf = ([name, index]) => `${name.replace(/^blocks\.\d+\./, "").replace("hook_", "")}[${index.join(",")}]`;
const operandButton = (operand, panel, text) =>
  h(
    "button",
    {
      type: "button",
      disabled: !operand.link,
      title: operand.link ? `${operand.link[0]} [${operand.link[1].join(", ")}]` : "a setting of the model",
      onclick: () => openWhy(operand.link, panel),
    },
    text,
  );

function operandList(operands, panel) {
  const rows = firstOf(operands.length, MAX_OPERANDS, "operands");
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
            operandButton(operand, panel, [
              h("span", {}, operand.link ? `${operand.role} · ${nameOf(operand.link)}` : operand.role),
              h("span", {}, formatNumber(operand.value, operand.role === "token id" ? 0 : 4)),
            ]),
          ),
        ),
    ),
    moreButton(rows.more, "operands", "operands"),
  ];
}
// Sums of products: x times w, one row each; the largest products first if there are many.
const isPairs = (operands) =>
  operands.length >= 4 &&
  operands[0].role !== operands[1].role &&
  operands[2].role === operands[0].role &&
  operands[3].role === operands[1].role;
function pairsBody(operands, panel) {
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
  const rows = firstOf(count, MAX_OPERANDS / 2, "operands");
  return [
    count > 8 ? h("p", { class: "soft" }, `${count} products, the largest first`) : null,
    h(
      "table",
      { class: "pairs" },
      headerRow([operands[0].role, "", operands[1].role, "", "product"]),
      h(
        "tbody",
        {},
        rows.list
          .map((n) => pairs[n])
          .map(([a, b]) =>
            h(
              "tr",
              {},
              h("td", {}, operandButton(a, panel, formatNumber(a.value, 3))),
              h("td", { class: "op" }, "×"),
              h("td", {}, operandButton(b, panel, formatNumber(b.value, 3))),
              h("td", { class: "op" }, "="),
              h("td", {}, formatNumber(product([a, b]), 3)),
            ),
          ),
      ),
    ),
    moreButton(rows.more, "products", "operands"),
    rest.length ? operandList(rest, panel) : null,
  ];
}
