// The adapter of a finetuned model: the predictions without and with it, and what it changes in each layer.
"use strict";

const MAX_MODULES = 24;
// The factors on the adapter that the what-if card offers.
const ADAPTER_SCALES = [
  [0, "0: the base model"],
  [0.25, "0.25"],
  [0.5, "0.5"],
  [1, "1: as trained"],
  [1.5, "1.5"],
  [2, "2"],
];

function adapterBody(panel) {
  const { adapter } = panel.story;
  if (!adapter) return null;
  const tokens = adapter.tokens.map(({ text, base, tuned }) => ({ text, before: base, after: tuned }));
  tokens.sort((a, b) => b.after - a.after);
  return [
    h("h3", {}, `Next token after ${quoted(tokensOf(panel)[adapter.position].text)}, with the adapter and without it`),
    outcomeBars(tokens, true),
    adapter.modules.length ? modulesTable(adapter) : null,
    adapter.replaced.length
      ? h("p", { class: "soft" }, `The adapter has other values than the base model for ${adapter.replaced.join(", ")}.`)
      : null,
  ];
}

// The adapted layers, those with the largest change first.
function modulesTable({ modules }) {
  const sorted = [...modules].sort((a, b) => (b.ratio ?? Infinity) - (a.ratio ?? Infinity)),
    listed = firstOf(sorted.length, MAX_MODULES, "adapter-modules");
  const share = ({ ratio }) => (ratio === null ? "–" : percent(ratio, 1));
  return [
    h("h3", {}, "What it adds to each layer's output there"),
    scrollTable(
      headerRow([["layer"], "rank", "scale", "size of x W + b", "size of the update", "ratio"]),
      h(
        "tbody",
        {},
        listed.list.map((n) => sorted[n]).map((module) =>
          h(
            "tr",
            {},
            h("th", { scope: "row", class: "long" }, module.module),
            h("td", {}, `${module.rank}`),
            h("td", {}, formatNumber(module.scale, 2)),
            h("td", {}, formatNumber(module.base_norm, 3)),
            h("td", {}, formatNumber(module.update_norm, 3)),
            h("td", { class: "tint", style: shade(Math.min(1, module.ratio ?? 1)) }, share(module)),
          ),
        ),
      ),
    ),
    moreButton(listed.more, "layers", "adapter-modules"),
  ];
}

const adapterScale = (edits) =>
  h(
    "div",
    { class: "choices" },
    select(
      "factor on what the adapter adds",
      ADAPTER_SCALES,
      edits.adapter,
      (scale) => {
        edits.adapter = Number(scale);
        draw();
      },
      { id: "adapter-scale" },
    ),
  );
