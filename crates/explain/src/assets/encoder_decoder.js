// The card that compares this model with the first Transformer, which had an encoder and a decoder.
"use strict";

function architecturesPicture() {
  const W = 340,
    H = 268,
    out = [];
  const box = (x, y, width, text, kind = "") => {
    out.push(s("rect", { class: `map-head ${kind}`, x, y, width, height: 26, rx: 6 }));
    out.push(s("text", { x: x + width / 2, y: y + 17, "text-anchor": "middle", class: kind ? "label" : null }, text));
  };
  const title = (x, text) => out.push(s("text", { class: "label", x, y: 14, "text-anchor": "middle" }, text));
  const arrow = (x1, y1, x2, y2) => out.push(s("path", { class: "flow", d: `M${x1} ${y1}L${x2} ${y2}`, "marker-end": "url(#arrowhead)" }));
  out.push(
    s("defs", {}, s("marker", { id: "arrowhead", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse" }, s("path", { class: "arrowhead", d: "M0 0L8 4L0 8z" }))),
  );
  title(166 / 2 + 22, "encoder-decoder");
  title(287, "decoder-only");
  // Left: two stacks. Right: one.
  box(0, 222, 98, "prompt");
  box(0, 172, 98, "self-attention");
  box(0, 122, 98, "feed-forward");
  arrow(49, 222, 49, 200);
  arrow(49, 172, 49, 150);
  box(112, 222, 108, "answer so far");
  box(112, 172, 108, "masked self-att.", "mine");
  box(112, 122, 108, "cross-attention");
  box(112, 72, 108, "feed-forward");
  box(112, 28, 108, "next token");
  for (const y of [222, 172, 122, 72]) arrow(166, y, 166, y - (y === 72 ? 16 : 22));
  arrow(98, 135, 110, 135);
  box(236, 222, 104, "prompt+answer");
  box(236, 172, 104, "masked self-att.", "mine");
  box(236, 122, 104, "feed-forward");
  box(236, 28, 104, "next token");
  arrow(288, 222, 288, 200);
  arrow(288, 172, 288, 150);
  arrow(288, 122, 288, 56);
  return s("svg", { viewBox: `0 0 ${W} ${H}`, width: W, role: "img", "aria-label": "an encoder-decoder Transformer has two stacks joined by cross-attention, a decoder-only one has a single stack with masked self-attention" }, out);
}

function architecturesBody(panel) {
  const { config } = panel.story;
  const row = (name, normal, ours) => h("tr", {}, h("th", { scope: "row", class: "long" }, name), h("td", { class: "prose", "data-label": "encoder-decoder" }, normal), h("td", { class: "prose", "data-label": "decoder-only" }, ours));
  return [
    h("figure", {}, architecturesPicture(), h("figcaption", {}, "Left: the normal Transformer. Right: this model. Both read from the bottom to the top, and repeat their layers.")),
    h(
      "table",
      { class: "stacked" },
      headerRow(["", ["encoder-decoder (“normal”)"], ["decoder-only (this model)"]]),
      h(
        "tbody",
        {},
        row("stacks", "two: an encoder for the prompt, a decoder for the answer", `one for both: ${countOf(config.n_layers, "layer")} with ${countOf(config.n_heads, "head")} each`),
        row("attention within the prompt", "unmasked: each token sees all others, also later ones", "masked: each token sees itself and earlier ones"),
        row("attention within the answer", "masked", "masked, and it also sees the prompt"),
        row("from prompt to answer", "encoder-decoder attention: queries of the answer, keys and values of the prompt", "the same masked self-attention; nothing else is needed"),
        row("trained on", "pairs of input and output, such as translations; the loss counts the output", "any text; the loss counts every token, also those of the prompt"),
        row("calculations for a prompt", "once by the encoder, then the decoder looks back at it", "once in the prefill, then its keys and values are reused"),
        row("examples", "the Transformer of 2017, T5, Whisper", "GPT, Llama, and this model"),
      ),
    ),
    h("p", { class: "soft" }, "StatQuest’s video “Decoder-Only Transformers” compares both at 32:14."),
  ];
}
