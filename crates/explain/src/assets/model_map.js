// The picture of the whole model: heads side by side, layers stacked, from the tokens at the bottom to the next
// token at the top. Every box opens its card; the box of the current card is marked.
"use strict";

const MAP_WIDTH = 300,
  MAP_LEFT = 30,
  MAP_ROW = 25,
  MAP_GAP = 7,
  MAX_MAP_HEADS = 4,
  MAX_MAP_LAYERS = 6;

const HEAD_ROWS = [
  [["attn.hook_q", "query"], ["attn.hook_k", "key"], ["attn.hook_v", "value"]],
  [["attn.hook_rot_q", "rotated q"], ["attn.hook_rot_k", "rotated k"]],
  [["attn.hook_attn_scores", "scores"]],
  [["attn.hook_pattern", "weights"]],
  [["attn.hook_z", "output"]],
];
const shortNames = { query: "q", key: "k", value: "v", "rotated q": "rot q", "rotated k": "rot k" };

// The heads to draw: the first ones and the selected one.
function mapHeads(count) {
  const all = range(count);
  if (count <= MAX_MAP_HEADS) return all;
  const shown = all.slice(0, MAX_MAP_HEADS - 1);
  return state.head < shown.length ? shown : [...shown.slice(0, -1), state.head];
}
// The layers to draw: all, or the first, the last and those around the current one.
const mapLayers = (count, current) =>
  range(count).filter(
    (layer) => count <= MAX_MAP_LAYERS || layer === 0 || layer === count - 1 || Math.abs(layer - current) <= 1,
  );

class ModelMap {
  constructor(panel) {
    this.config = panel.story.config;
    this.index = new Map(cards.map((card, i) => [card.id, i]));
    this.height = 0; // from the bottom
    this.shapes = [];
    this.sums = [];
  }
  // A box in the picture. Coordinates are from the lower left until they are flipped in `svg`.
  box(x, y, width, height, label, id, head = null) {
    const card = this.index.get(id),
      isHere = card === state.step && (head === null || head === state.head || this.config.n_heads === 1);
    const limit = Math.floor((width - 6) / 6.4);
    this.shapes.push({ x, y, width, height, card, head, isHere, label: label.length > limit ? `${label.slice(0, limit - 1)}…` : label, title: label });
  }
  row(items, gap = 6) {
    const known = items.filter(([, id]) => this.index.has(id));
    if (!known.length) return;
    const width = (MAP_WIDTH - MAP_LEFT - gap * (known.length - 1)) / known.length;
    known.forEach(([label, id, head], i) => this.box(MAP_LEFT + i * (width + gap), this.height, width, MAP_ROW, label, id, head));
    this.height += MAP_ROW + MAP_GAP;
  }
  // A sum on the residual stream, drawn as a circle on the line at the left.
  sum(id, label) {
    if (!this.index.has(id)) return;
    this.sums.push(this.height + MAP_ROW / 2);
    this.row([[label, id]]);
  }
  // The heads of an attention sublayer; `path` leads from a hook to its tensor.
  heads(path, attention) {
    const name = (hook) => path(hook.replace("attn.", `${attention}.`)),
      heads = mapHeads(this.config.n_heads),
      more = this.config.n_heads - heads.length;
    const rows = HEAD_ROWS.map((row) => row.filter(([hook]) => this.index.has(name(hook)))).filter((row) => row.length);
    const room = MAP_WIDTH - MAP_LEFT - (more ? 30 : 0),
      width = (room - 6 * (heads.length - 1)) / heads.length,
      cell = 21;
    const height = rows.length * (cell + 3) + 22;
    heads.forEach((head, n) => {
      const x = MAP_LEFT + n * (width + 6);
      this.shapes.push({ x, y: this.height, width, height, isFrame: true });
      rows.forEach((row, r) => {
        const each = (width - 8 - 3 * (row.length - 1)) / row.length;
        row.forEach(([hook, label], i) =>
          this.box(x + 4 + i * (each + 3), this.height + 4 + r * (cell + 3), each, cell, each < 46 ? (shortNames[label] ?? label) : label, name(hook), head),
        );
      });
      this.shapes.push({ text: heads.length > 1 || more ? `head ${head + 1}` : attention === "cross_attn" ? "cross-attention head" : "attention head", x: x + width / 2, y: this.height + height - 14, chosen: head === state.head });
    });
    if (more) this.shapes.push({ text: `+${more}`, x: MAP_WIDTH - 14, y: this.height + height / 2 });
    this.height += height + MAP_GAP;
  }
  layer(prefix, layer, isOpen, layers) {
    const name = (hook) => `${prefix}blocks.${layer}.${hook}`,
      start = this.height,
      sum = (hook) => [name(hook), "+ residual connection"];
    this.height += 6;
    if (isOpen) {
      const post = this.index.has(name("hook_attn_sum")) || this.index.has(name("hook_mlp_sum"));
      if (!post) this.row([["norm", name("ln1.hook_normalized")]]);
      this.heads(name, "attn");
      this.row([["attention output", name("hook_attn_out_before_norm")]]);
      this.row([["attention output", name("hook_attn_out")]]);
      this.sum(...sum("hook_attn_sum"));
      if (post) this.row([["norm", name("ln1.hook_normalized")]]);
      this.sum(...sum("hook_resid_mid"));
      if (this.index.has(name("cross_attn.hook_q"))) this.crossAttention(name, sum, post);
      if (!post) this.row([["norm", name("ln2.hook_normalized")]]);
      this.row([["hidden units", name("mlp.hook_pre")], ["× gate", name("mlp.hook_pre_linear")]]);
      this.row([["activations", name("mlp.hook_post")]]);
      this.row([["feed-forward output", name("hook_mlp_out_before_norm")]]);
      this.row([["feed-forward output", name("hook_mlp_out")]]);
      this.sum(...sum("hook_mlp_sum"));
      if (post) this.row([["norm", name("ln2.hook_normalized")]]);
      this.sum(...sum("hook_resid_post"));
    } else {
      const heads = mapHeads(this.config.n_heads);
      this.row(heads.map((head) => [`head ${head + 1}`, name("attn.hook_pattern"), head]), 4);
      this.row([["cross-attention", name("cross_attn.hook_pattern")]]);
      this.row([["feed-forward", name("hook_mlp_out")]]);
    }
    if (layers > 1) {
      this.shapes.unshift({ x: MAP_LEFT - 7, y: start, width: MAP_WIDTH - MAP_LEFT + 14, height: this.height - start + 14, isLayer: true, card: this.index.get(name("attn.hook_q")) });
      this.shapes.push({ text: `layer ${layer + 1}`, x: MAP_LEFT + 20, y: this.height - 2, chosen: isOpen });
      this.height += 20;
    }
  }
  // The sublayer that looks at the encoder's output.
  crossAttention(name, sum, post) {
    if (!post) this.row([["norm", name("ln_cross.hook_normalized")]]);
    this.heads(name, "cross_attn");
    this.row([["cross-attention output", name("hook_cross_attn_out_before_norm")]]);
    this.row([["cross-attention output", name("hook_cross_attn_out")]]);
    this.sum(...sum("hook_cross_attn_sum"));
    if (post) this.row([["norm", name("ln_cross.hook_normalized")]]);
    this.sum(...sum("hook_resid_mid_cross"));
  }
  // A line of text between the stacks.
  caption(text) {
    this.shapes.push({ text, x: MAP_WIDTH / 2, y: this.height + 6, chosen: true });
    this.height += 24;
  }
  // A stack from its embedding to its last norm; returns the ends of its residual stream.
  stack(prefix, layers, current) {
    if (prefix) this.caption("encoder");
    this.row([["embedding", `${prefix}hook_embed`], ["positions", `${prefix}hook_pos_embed`]]);
    this.row([["sum of both", `${prefix}hook_embed_sum`]]);
    this.row([["norm", `${prefix}hook_full_embed`]]);
    this.sum(`${prefix}blocks.0.hook_resid_pre`, "+ sum of both");
    const from = this.height - MAP_ROW / 2 - MAP_GAP;
    let previous = -1;
    for (const layer of mapLayers(layers, current)) {
      if (layer > previous + 1) {
        this.shapes.push({ text: `⋮ ${countOf(layer - previous - 1, "more layer")}`, x: MAP_WIDTH / 2, y: this.height + 4 });
        this.height += 22;
      }
      this.layer(prefix, layer, layer === current || layers === 1, layers);
      previous = layer;
    }
    const to = this.height + MAP_ROW / 2;
    this.row([["norm", `${prefix}ln_final.hook_normalized`]]);
    return [from, to];
  }
  svg() {
    const { config } = this,
      current = cards[state.step].layer ?? state.layer;
    this.row([["tokens", "words"]]);
    const inEncoder = encoderLayers(state.panels[0].story),
      streams = [];
    if (inEncoder) {
      streams.push(this.stack("encoder.", inEncoder, current));
      this.caption("decoder");
    }
    streams.push(this.stack("", config.n_layers, current));
    this.row([["head transform", "mlm_head.hook_normalized"]]);
    this.row([["output layer: logits", "logits"]]);
    this.row([["softmax: probabilities", "probabilities"]]);
    const answer = state.panels[0].story.answer[0];
    this.row([[`${isMasked(state.panels[0]) ? "masked token" : "next token"}: ${answer ? printable(answer.token.text) : ""}`, "answer-0"]]);
    const H = this.height + 4,
      flip = (y, height = 0) => H - y - height;
    const open = (shape) => () => {
      if (shape.head !== null && shape.head !== undefined) state.head = shape.head;
      go(shape.card, true);
    };
    const drawShape = (shape) => {
      if (shape.text) return s("text", { x: shape.x, y: flip(shape.y), "text-anchor": "middle", class: shape.chosen ? "label" : null }, shape.text);
      const frame = { x: shape.x, y: flip(shape.y, shape.height), width: shape.width, height: shape.height, rx: 6 };
      if (shape.isFrame || shape.isLayer) return s("rect", { ...frame, class: shape.isLayer ? "map-layer" : "map-head" });
      return s(
        "g",
        {
          class: shape.isHere ? "map-box here" : "map-box",
          tabindex: 0,
          role: "button",
          "aria-label": `${shape.title}${shape.isHere ? " (you are here)" : ""}`,
          "data-card": shape.card,
          onclick: open(shape),
          onkeydown: (e) => {
            if (e.key === "Enter" || e.key === " ") {
              e.preventDefault();
              open(shape)();
            }
          },
        },
        s("rect", frame),
        s("text", { x: shape.x + shape.width / 2, y: flip(shape.y, shape.height / 2) + 4, "text-anchor": "middle" }, shape.label),
        s("title", {}, shape.title),
      );
    };
    const stream = config.residual === false ? [] : [
      streams.map(([from, to]) => s("line", { class: "map-stream", x1: 9, x2: 9, y1: flip(from), y2: flip(to) })),
      this.sums.map((y) => [
        s("line", { class: "map-stream thin", x1: 9, x2: MAP_LEFT, y1: flip(y), y2: flip(y) }),
        s("circle", { class: "map-sum", cx: 9, cy: flip(y), r: 7 }),
        s("text", { class: "label", x: 9, y: flip(y) + 4.5, "text-anchor": "middle" }, "+"),
      ]),
    ];
    return s(
      "svg",
      { class: "model-map", viewBox: `0 0 ${MAP_WIDTH + 8} ${H}`, width: MAP_WIDTH + 8, role: "group", "aria-label": "the whole model, from the tokens at the bottom to the next token at the top" },
      this.shapes.filter((shape) => shape.isLayer).map(drawShape),
      stream,
      this.shapes.filter((shape) => !shape.isLayer).map(drawShape),
    );
  }
}

// Where the current card is, in words.
function placeOf(card) {
  const head = card.heads > 1 ? `head ${Math.min(state.head, card.heads - 1) + 1}` : "";
  const name = joined(card.layer === null ? "" : `layer ${card.layer + 1}`, head, card.title);
  return new ModelMap(state.panels[0]).index.has(card.id) && isInMap(card) ? `You are here: ${name}` : `${capitalize(card.title)} looks at the whole model`;
}
const isInMap = (card) => card.phase !== "a closer look" && card.id !== "overview" && card.id !== "next";

const modelMap = () => new ModelMap(state.panels[0]).svg();
// Whether the panels show different models, and not two prompts of one model.
const comparesModels = () => {
  const [first, second] = state.panels.map(({ story }) => JSON.stringify([story.model, story.config]));
  return second !== undefined && first !== second;
};
// The caption of the map, which says whose it is where two models are compared.
const mapCaption = () => (comparesModels() ? `The map shows the first model: ${modelTitle(state.panels[0])}.` : "");

// Whether the token was drawn at random, and not chosen as the most likely one.
const isSampled = (answer) => answer.uniform !== null;

// What the model predicts after the prompt, and what was sampled, if that is another token.
function predictionSentence(panel) {
  const position = focusOf(panel),
    answer = panel.story.answer[0],
    top = panel.story.next_words[position].top[0];
  const after = `${isMasked(panel) ? `At position ${position},` : "After"} ${quoted(tokensOf(panel)[position].text)}`;
  if (!answer) return "";
  const token = quoted(answer.token.text),
    chance = percent(answer.token.probability, 2);
  if (answer.token.id === top.id) {
    return `${after} the model predicts ${token} with ${chance}${isSampled(answer) ? ", and this token was sampled" : ""}. `;
  }
  const prediction = `the model predicts ${quoted(top.text)} with ${percent(top.probability, 2)}`;
  return `${after} ${prediction}, but ${token}, to which it gives ${chance}, was ${isSampled(answer) ? "sampled" : "chosen"}. `;
}

// The card that opens the page: the prediction, and the whole model.
function overviewBody(panel) {
  const { story } = panel,
    position = focusOf(panel),
    // An encoder reads the text on both sides of the masked token.
    shown = hasSource(panel) ? sourceOf(panel) : isMasked(panel) ? tokensOf(panel) : tokensOf(panel).slice(0, position + 1),
    next = story.next_words[position],
    answer = story.answer[0],
    isFirst = panel === state.panels[0];
  const history = source.history(panel)?.sentences.length ? cards.findIndex((card) => card.id === "learning") : -1;
  const jump = (id, text) => {
    const at = cards.findIndex((card) => card.id === id);
    return at < 0 ? null : h("button", { type: "button", onclick: () => go(at, true) }, text);
  };
  return h(
    "div",
    { class: "overview" },
    h(
      "div",
      {},
      h(
        "p",
        { class: "headline" },
        shown.map((token) => h("span", { class: "word", "data-p": markOf(hasSource(panel) ? "source" : "target", token.position) }, printable(token.text))),
        h("span", { class: "soft" }, " → "),
        answer ? h("span", { class: "word answer last" }, printable(answer.token.text)) : null,
      ),
      promptNotes(panel),
      h("p", {}, predictionSentence(panel), "The cards show every value on the way there, in the order of computation."),
      h("h3", {}, isMasked(panel) ? `The most likely tokens at position ${position}` : hasSource(panel) ? "The most likely first tokens of the output" : `The most likely next tokens after ${quoted(tokensOf(panel)[position].text)}`),
      bars(
        next.top.slice(0, 5).map((token) => ({
          name: printable(token.text),
          value: token.probability,
          class: answer && token.id === answer.token.id ? "chosen" : "",
          text: percent(token.probability, 2),
        })),
        1,
      ),
      isFirst
        ? h(
            "div",
            { class: "choices" },
            jump("words", "Step by step →"),
            history >= 0 ? jump("learning", "Watch it learn: training history") : null,
            jump("what-if", "What if? Change the model"),
            jump("training-step", "How it was trained"),
          )
        : null,
    ),
    isFirst ? h("figure", { class: "map-here" }, modelMap(), h("figcaption", {}, `${mapCaption() || "The whole model."} Click a part to open its card.`)) : null,
  );
}
