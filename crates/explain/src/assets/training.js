// The card on training: the loss after the prompt, and one step of gradient descent.
"use strict";

const scientific = (x) => (x !== 0 && (Math.abs(x) < 1e-4 || Math.abs(x) >= 1e5) ? x.toExponential(3).replace("-", "−") : formatNumber(x, 5));

function trainingBody(panel) {
  const { story } = panel,
    steps = story.training ?? [];
  const losses = story.next_words.filter((next) => next.next);
  const rows = firstOf(losses.length, 12, "losses");
  const mean = losses.reduce((sum, next) => sum + next.surprise * Math.LN2, 0) / Math.max(1, losses.length);
  return [
    h("h3", {}, "The loss at every position"),
    scrollTable(
      headerRow([isMasked(panel) ? "at" : "after", [isMasked(panel) ? "token" : "next token"], "p", "loss −ln p"]),
      h(
        "tbody",
        {},
        rows.list
          .map((n) => losses[n])
          .map((next) =>
            h(
              "tr",
              {},
              tokenHeader(panel, next.position),
              h("td", { class: `words-cell${next.given ? "" : " chosen"}` }, printable(next.next.text)),
              h("td", { class: "tint", style: shade(next.next.probability) }, percent(next.next.probability, 2)),
              h("td", {}, scientific(next.surprise * Math.LN2)),
            ),
          ),
        h("tr", { class: "total" }, h("th", { scope: "row" }, "mean"), h("td"), h("td"), h("td", {}, scientific(mean))),
      ),
    ),
    moreButton(rows.more, "tokens", "losses"),
    h("p", { class: "soft" }, "p is the probability that the model gives to the next token. The loss is 0 if p is 100 %, and grows without limit as p falls."),
    h("p", {}, "In training, the next tokens are given by the text, so that every position can be graded at once. The optimizer then moves each weight a little against its gradient, the direction in which the loss would grow."),
    steps.length
      ? steps.map((step) => gradientStep(panel, step))
      : h("p", { class: "soft" }, "No step is shown: the model or the prompt is too large for it, or no small step lowers the loss."),
  ];
}

function gradientStep(panel, step) {
  const { story } = panel,
    [name, index] = parseAddress(step.weight),
    after = quoted(tokensOf(panel)[step.position].text);
  const largest = [...step.norms].sort((a, b) => b.norm - a.norm);
  const line = (label, formula, value) => [h("div", {}, label, h("span", { class: "soft" }, formula)), h("div", { class: "figure" }, value)];
  return [
    h(
      "h3",
      {},
      step.generated
        ? `One step if ${quoted(step.text)} ${isMasked(panel) ? "stands at" : "comes after"} ${after}, as ${isSampled(story.answer[0]) ? "was sampled" : "the model predicts"}`
        : `One step if ${isMasked(panel) ? `${quoted(step.text)} stood there` : `the text went on with ${quoted(step.text)}`} instead`,
    ),
    h(
      "div",
      { class: "gradient" },
      [
        line("loss", `−ln ${scientific(step.probability)}`, scientific(step.loss)),
        line("weight with the largest gradient", step.weight, whyCell(panel, name, index, step.value)),
        line("its gradient", "by backpropagation", scientific(step.gradient)),
        line("the same, measured", "(loss with the weight a bit larger − with it a bit smaller) / the difference of the weights", scientific(step.finite_difference)),
        line("the weight after the step", `${scientific(step.value)} − ${step.learning_rate} × ${step.gradient < 0 ? `(${scientific(step.gradient)})` : scientific(step.gradient)}`, scientific(step.new_value)),
        line("the loss after a step of all weights", `−ln ${scientific(step.new_probability)}`, scientific(step.new_loss)),
      ],
    ),
    h(
      "details",
      { class: "gradient-norms" },
      h("summary", {}, "gradients of all parts of the model"),
      h("p", { class: "soft" }, "The size (L2 norm) of the gradient of each part: the larger, the more this one token would change it."),
      bars(largest.slice(0, 12).map((each) => ({ name: each.name, value: each.norm, text: scientific(each.norm) }))),
      largest.length > 12 ? h("p", { class: "soft" }, `and ${countOf(largest.length - 12, "smaller one")}`) : null,
    ),
  ];
}
// A value that opens its derivation.
const whyCell = (panel, name, index, value) =>
  h("button", { type: "button", class: "linked", onclick: () => openWhy([name, index], state.panels.indexOf(panel)) }, scientific(value));
