// Where values come from: the weights embedded in the page, or the server.
"use strict";

const data = JSON.parse($("data").textContent);
const MAX_TOKENS = 10;

// Parses "name[axis=1,axis=2]" to [name, [1, 2]].
function parseAddress(address) {
  const [name, rest] = address.split("[");
  return [
    name,
    rest
      .slice(0, -1)
      .split(",")
      .map((part) => Number(part.split("=")[1])),
  ];
}

// The input tokens of the encoder in encoder-decoder models: the prompt.
const sourceOf = (panel) => panel.story.source ?? [];
const hasSource = (panel) => sourceOf(panel).length > 0;
// Whether the model predicts masked tokens, and not next ones.
const isMasked = (panel) => panel.story.config.architecture === "encoder";
// The tokens of the prompt.
const promptTokens = (panel) => (hasSource(panel) ? sourceOf(panel) : panel.story.tokens.filter((t) => t.from === "prompt"));
// The table with the embeddings of the prompt's tokens.
const promptTable = (panel) =>
  panel.weight("encoder.token_embedding.weight") ? "encoder.token_embedding.weight" : "token_embedding.weight";
// The position of the first prediction: the last of the prompt, the start of the output, or the first masked one.
const focusOf = (panel) => panel.story.answer[0]?.after ?? 0;
// The tokens whose ids have this name in an address.
const idsNamed = (panel, name) => ({ tokens: panel.story.tokens, source_tokens: sourceOf(panel) })[name];

const localSource = {
  isLive: false,
  history: () => data.learning,
  // Whether values that are not in the page can be computed.
  canLoad: (panel) => panel.canCompute && panel.story.steps.some((step) => !panel.story.tensors[step.name]),
  why(panel, name, index) {
    if (localSource.canLoad(panel)) localSource.layer(panel);
    const step = panel.byName.get(name),
      shape = step?.shape ?? panel.weight(name)?.shape;
    const ids = idsNamed(panel, name),
      length = ids ? [ids.length] : shape;
    if (length && (length.length !== index.length || !index.every((i, axis) => i < length[axis])))
      throw new Error(`no value ${name}[${index.join(",")}]`);
    const isWeight = /\.(weight|bias)$/.test(name) || isAdapterWeight(name);
    const found = step || isWeight || ids ? panel.derive(name, index) : null;
    // A value that is not in the page must not appear as 0 or as the end of the chain.
    const isIncomplete =
      !found ||
      found.operands.some((operand) => !Number.isFinite(operand.value)) ||
      (isWeight && !shape) ||
      (step && !panel.story.tensors[name]);
    if (!isIncomplete) return found;
    const absent = {
      title: "a value of another step",
      term: "not in this page",
      formula: "–",
      operands: [],
      value: null,
    };
    return { ...absent, address: `${name}[${index.join(",")}]`, ...found, filled: "", result: null, isIncomplete };
  },
  token: async () => null,
  // Computes all tensors that were omitted to keep the page small.
  layer(panel) {
    const values = evaluate(
      panel.story.steps,
      panel.allWeights(),
      { target: panel.story.tokens.map((t) => t.id), source: sourceOf(panel).map((t) => t.id) },
    );
    for (const step of panel.story.steps.filter((step) => !panel.story.tensors[step.name])) {
      const { shape, data } = values[step.name],
        [, queries, keys] = shape,
        scores = panel.byName.get(step.op.of) || step;
      const isMasked = (at) => step.axes.includes("key") && !isVisible(scores.op, Math.floor(at / keys) % queries, at % keys);
      panel.story.tensors[step.name] = {
        axes: step.axes,
        shape,
        computed: true,
        data: Array.from(data, (x, at) => (isMasked(at) ? null : x)),
      };
    }
  },
  embedding(panel, id) {
    const table = panel.weight(promptTable(panel));
    return Array.from(rowOf(table, id));
  },
  whatIf(panel, edits) {
    const { story } = panel,
      prompt = promptTokens(panel),
      ids = prompt.map((t) => t.id),
      target = story.tokens.filter((t) => t.from !== "answer"),
      // An encoder reads the prompt, and the decoder only the token that starts the output.
      inputs = (ids) => (hasSource(panel) ? { target: target.map((t) => t.id), source: ids } : ids),
      disabledHeads = new Set(),
      original = panel.allWeights(),
      adapter = edits.find((edit) => edit.change === "adapter"),
      weights = adapter ? interpolated(original, panel.baseValues(), adapter.scale) : { ...original };
    const tableName = promptTable(panel),
      table = weights[tableName],
      last = focusOf(panel);
    let steps = shortened(story.steps, target.length);
    const base = steps;
    for (const edit of edits) {
      if (edit.change === "token") ids[edit.position] = edit.id;
      else if (edit.change === "head_off") disabledHeads.add(headKey(edit.attention ?? "own", edit.layer, edit.head));
      else if (edit.change === "adapter") steps = withUpdates(steps, edit.scale);
      else if (edit.change !== "embedding") steps = without(steps, edit.change);
      else {
        if (weights[tableName] === table)
          weights[tableName] = { shape: table.shape, data: Float64Array.from(table.data) };
        weights[tableName].data[edit.id * story.config.d_model + edit.dim] = edit.value;
      }
    }
    const old = (panel.base ||= evaluate(base, original, inputs(prompt.map((t) => t.id))).probabilities);
    const changed = edits.length ? evaluate(steps, weights, inputs(ids), disabledHeads).probabilities : old;
    const [before, after] = [rowOf(old, last), rowOf(changed, last)];
    const positions = target.map(({ position }) => {
      const sampled = story.answer.find((answer) => answer.after === position)?.token.id;
      const own = isMasked(panel) ? ids[position] : hasSource(panel) ? undefined : ids[position + 1];
      const next = isMasked(panel) ? (sampled ?? own) : (own ?? sampled);
      return { position, next, text: panel.text(next), before: rowOf(old, position)[next], after: rowOf(changed, position)[next] };
    });
    const order = range(story.config.vocab_size)
      .sort((a, b) => Math.max(before[b], after[b]) - Math.max(before[a], after[a]))
      .slice(0, MAX_TOKENS);
    return { words: order.map((id) => ({ id, text: panel.text(id), before: before[id], after: after[id] })), positions };
  },
};

// Requests values from the server. Each panel stores the request that it was created from.
const serverSource = {
  isLive: true,
  histories: new Map(),
  history: (panel) => serverSource.histories.get(panel.request.model),
  async post(body, path = "/explain") {
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const reply = await response.json().catch(() => null);
    if (!response.ok || !reply) throw new Error(reply?.error?.message ?? `the server returned ${response.status}`);
    return reply;
  },
  async panel(request) {
    const reply = await this.post({ ...request, pane: true }),
      panel = new Panel({ ...reply, weights: null });
    panel.request = request;
    panel.layers = new Map();
    panel.embeddings = new Map();
    if (!this.histories.has(request.model))
      this.histories.set(request.model, (await this.post({ model: request.model, learning: true })).learning);
    // Large vocabularies stay on the server; the page has only the tokens that occur in the report.
    const mentioned = [
      ...reply.story.next_words.flatMap((next) => [...next.top, ...(next.next ? [next.next] : [])]),
      ...reply.story.answer.map((a) => a.token),
    ];
    for (const token of mentioned) panel.vocabulary[token.id] ??= token.text;
    return panel;
  },
  // True until the response has arrived.
  canLoad: (panel, layer) => layer !== null && panel.layers.get(layer) !== "loaded",
  async why(panel, name, index) {
    const axes =
      idsNamed(panel, name)
        ? ["position"]
        : panel.byName.has(name)
          ? axisNames(panel.byName.get(name))
          : index.length === 1
            ? ["number"]
            : ["row", "column"];
    const found = await this.post({
      ...panel.request,
      why: `${name}[${index.map((i, axis) => `${axes[axis]}=${i}`).join(",")}]`,
    });
    const operands = found.operands.map(({ role, value, address }) => ({
      role,
      value,
      link: address ? parseAddress(address) : null,
    }));
    return { ...found, operands };
  },
  async token(panel, text) {
    const reply = await this.post({ model: panel.request.model, content: text.replaceAll("␣", " ") }, "/tokenize");
    return reply.count === 1 && !reply.unknown.length ? reply.tokens[0] : null;
  },
  embedding(panel, id) {
    const cached = panel.embeddings.get(id);
    if (cached) return cached;
    return this.post({ ...panel.request, embedding: id }).then(({ numbers }) => {
      panel.embeddings.set(id, numbers);
      return numbers;
    });
  },
  whatIf(panel, edits) {
    return this.post({ ...panel.request, what_if: edits });
  },
  // Loads the tensors of one layer, which the report of a large model omits.
  layer(panel, layer) {
    if (panel.layers.has(layer)) return;
    panel.layers.set(layer, "requested");
    this.post({ ...panel.request, layer }).then(({ tensors }) => {
      Object.assign(panel.story.tensors, tensors);
      panel.layers.set(layer, "loaded");
      draw();
    }, (error) => {
      panel.layers.delete(layer); // Retry when the card is drawn again.
      showError(error);
    });
  },
};

const source = data.live ? serverSource : localSource;
