// The card that compares this model with the first Transformer, which had an encoder and a decoder.
"use strict";

// Left: two stacks. Right: one, with a feed-forward network if the model has one.
function architecturesPicture(hasFeedForward) {
  const W = 360,
    H = 268,
    out = [];
  const [encoder, decoder, own] = [[0, 98], [110, 118], [242, 118]]; // Left end and width of each stack.
  const middle = ([x, width]) => x + width / 2;
  const box = ([x, width], y, text, kind = "") => {
    out.push(s("rect", { class: `map-head ${kind}`, x, y, width, height: 26, rx: 6 }));
    out.push(s("text", { x: x + width / 2, y: y + 17, "text-anchor": "middle", class: kind ? "strong" : null }, text));
  };
  const title = (x, text) => out.push(s("text", { class: "label", x, y: 14, "text-anchor": "middle" }, text));
  const arrow = (x1, y1, x2, y2) => out.push(s("path", { class: "flow", d: `M${x1} ${y1}L${x2} ${y2}`, "marker-end": "url(#arrowhead)" }));
  out.push(
    s("defs", {}, s("marker", { id: "arrowhead", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse" }, s("path", { class: "arrowhead", d: "M0 0L8 4L0 8z" }))),
  );
  title((encoder[0] + decoder[0] + decoder[1]) / 2, "encoder-decoder");
  title(middle(own), "decoder-only");
  box(encoder, 222, "prompt");
  box(encoder, 172, "self-attention");
  box(encoder, 122, "feed-forward");
  arrow(middle(encoder), 222, middle(encoder), 200);
  arrow(middle(encoder), 172, middle(encoder), 150);
  box(decoder, 222, "answer so far");
  box(decoder, 172, "masked self-att.", "mine");
  box(decoder, 122, "cross-attention");
  box(decoder, 72, "feed-forward");
  box(decoder, 28, "next token");
  for (const y of [222, 172, 122, 72]) arrow(middle(decoder), y, middle(decoder), y - (y === 72 ? 16 : 22));
  arrow(98, 135, 108, 135);
  box(own, 222, "prompt + answer");
  box(own, 172, "masked self-att.", "mine");
  if (hasFeedForward) box(own, 122, "feed-forward");
  box(own, 28, "next token");
  for (const [from, to] of hasFeedForward ? [[222, 200], [172, 150], [122, 56]] : [[222, 200], [172, 56]]) arrow(middle(own), from, middle(own), to);
  const stack = hasFeedForward ? "masked self-attention and a feed-forward network" : "masked self-attention";
  return s("svg", { viewBox: `0 0 ${W} ${H}`, width: W, role: "img", "aria-label": `an encoder-decoder Transformer has two stacks joined by cross-attention, a decoder-only one has a single stack with ${stack}` }, out);
}

function architecturesBody(panel) {
  const { config } = panel.story,
    architecture = config.architecture ?? "decoder",
    hasFeedForward = config.feed_forward !== "none",
    depth = `${countOf(config.n_layers, "layer")} with ${countOf(config.n_heads, "head")} each`;
  const headings = {
    decoder: ["encoder-decoder (“normal”)", "decoder-only (this model)"],
    encoder_decoder: ["encoder-decoder (“normal”, this model)", "decoder-only"],
  }[architecture] ?? ["encoder-decoder (“normal”)", "decoder-only"];
  const place = {
    decoder: `Left: the normal Transformer. Right: this model${hasFeedForward ? "" : ", which has no feed-forward network"}. Both read from the bottom to the top${config.n_layers > 1 ? ", and repeat their layers" : "; the left one repeats its layers, and this model has one"}.`,
    encoder_decoder: `Left: the normal Transformer, as this model is${hasFeedForward ? "" : ", though without the feed-forward networks"}. Right: a decoder-only one. Both read from the bottom to the top, and repeat their layers.`,
    prefix: "Left: the normal Transformer. Right: a decoder-only one. This model is in between: it has one stack like the right one, but the tokens of its prompt see each other in both directions, as in an encoder.",
    encoder: "Left: the normal Transformer. Right: a decoder-only one. This model is the left stack alone: an encoder, which reads a whole text in both directions and writes none.",
  }[architecture];
  const row = (name, normal, ours) => h("tr", {}, h("th", { scope: "row", class: "long" }, name), h("td", { class: "prose", "data-label": "encoder-decoder" }, normal), h("td", { class: "prose", "data-label": "decoder-only" }, ours));
  return [
    h(
      "figure",
      {},
      architecturesPicture(hasFeedForward),
      h(
        "figcaption",
        {},
        place,
      ),
    ),
    h(
      "table",
      { class: "stacked" },
      headerRow(["", ...headings.map((heading) => [heading])]),
      h(
        "tbody",
        {},
        row(
          "stacks",
          `two: an encoder for the prompt, a decoder for the answer${architecture === "encoder_decoder" ? `, ${depth}` : ""}`,
          `one for both${architecture === "decoder" ? `: ${depth}` : ""}`,
        ),
        row("attention within the prompt", "unmasked: each token sees all others, also later ones", "masked: each token sees itself and earlier ones"),
        row("attention within the answer", "masked", "masked, and it also sees the prompt"),
        row("from prompt to answer", "encoder-decoder attention: queries of the answer, keys and values of the prompt", "the same masked self-attention; nothing else is needed"),
        row("trained on", "pairs of input and output, such as translations; the loss counts the output", "any text; the loss can count every token, also those of the prompt"),
        row("calculations for a prompt", "once by the encoder, then the decoder looks back at it", "once in the prefill, then its keys and values are reused"),
        row("examples", architecture === "encoder_decoder" ? "the Transformer of 2017, T5, Whisper, and this model" : "the Transformer of 2017, T5, Whisper", architecture === "decoder" ? "GPT, Llama, and this model" : "GPT, Llama"),
      ),
    ),
    h("p", { class: "soft" }, "StatQuest’s video “Decoder-Only Transformers” compares both at 32:14."),
  ];
}
