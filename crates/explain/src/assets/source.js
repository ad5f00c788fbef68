// Where answers come from: the page's own weights, or the server that the page came from.
"use strict";

const data = JSON.parse($("data").textContent);
const MOST_WORDS = 10;

// "name[axis=1,axis=2]" to [name, [1, 2]].
function readAddress(address) {
  const [name, rest] = address.split("[");
  return [
    name,
    rest
      .slice(0, -1)
      .split(",")
      .map((part) => Number(part.split("=")[1])),
  ];
}

const ownSource = {
  isLive: false,
  learning: () => data.learning,
  // Whether numbers of a layer that are not in the page can be had.
  mayHave: (pane, layer) => layer !== null && pane.live && !pane.layers?.has(layer),
  why(pane, name, index) {
    const step = pane.byName.get(name),
      shape = step?.shape ?? pane.weight(name)?.shape;
    const length = name === "tokens" ? [pane.story.tokens.length] : shape;
    if (length && (length.length !== index.length || !index.every((i, axis) => i < length[axis])))
      throw new Error(`there is no number ${name}[${index.join(",")}]`);
    const isWeight = /\.(weight|bias)$/.test(name);
    const found = step || isWeight || name === "tokens" ? pane.derive(name, index) : null;
    // What is not in the page is not taken for 0, nor for the end of the chain.
    const isAbsent =
      !found ||
      found.operands.some((operand) => !Number.isFinite(operand.value)) ||
      (isWeight && !shape) ||
      (step && !pane.story.tensors[name]);
    if (!isAbsent) return found;
    const nothing = {
      title: "a number of another step",
      term: "not in this page",
      formula: "–",
      operands: [],
      value: null,
    };
    return { ...nothing, address: `${name}[${index.join(",")}]`, ...found, filled: "", result: null, isAbsent };
  },
  token: async () => null,
  // Numbers that would have made the page too large are computed when they are asked for.
  layer(pane, layer) {
    (pane.layers ||= new Set()).add(layer);
    const values = evaluate(
      pane.story.steps,
      pane.allWeights(),
      pane.story.tokens.map((t) => t.id),
    );
    for (const step of pane.story.steps.filter((step) => step.layer === layer && !pane.story.tensors[step.name])) {
      const { shape, data } = values[step.name],
        seq = pane.story.tokens.length,
        scores = pane.byName.get(step.op.of) || step;
      const hidden = (at) => step.axes.includes("key") && !sees(Math.floor(at / seq) % seq, at % seq, scores.op.window);
      pane.story.tensors[step.name] = {
        axes: step.axes,
        shape,
        computed: true,
        data: Array.from(data, (x, at) => (hidden(at) ? null : x)),
      };
    }
  },
  embedding(pane, id) {
    const table = pane.weight("token_embedding.weight");
    return Array.from(rowOf(table, id));
  },
  whatIf(pane, edits) {
    const { story } = pane,
      ids = story.tokens.map((t) => t.id),
      off = new Set(),
      own = pane.allWeights(),
      weights = { ...own };
    const table = own["token_embedding.weight"],
      last = story.tokens.filter((t) => t.from === "prompt").length - 1;
    for (const edit of edits) {
      if (edit.change === "token") ids[edit.position] = edit.id;
      else if (edit.change === "head_off") off.add(`${edit.layer}.${edit.head}`);
      else {
        if (weights["token_embedding.weight"] === table)
          weights["token_embedding.weight"] = { shape: table.shape, data: Float64Array.from(table.data) };
        weights["token_embedding.weight"].data[edit.id * story.config.d_model + edit.dim] = edit.value;
      }
    }
    const row = (values) => rowOf(values.probabilities, last);
    const was = (pane.base ||= row(
      evaluate(
        story.steps,
        own,
        story.tokens.map((t) => t.id),
      ),
    ));
    const now = edits.length ? row(evaluate(story.steps, weights, ids, off)) : was;
    const order = range(story.config.vocab_size)
      .sort((a, b) => Math.max(was[b], now[b]) - Math.max(was[a], now[a]))
      .slice(0, MOST_WORDS);
    return { words: order.map((id) => ({ id, text: pane.text(id), before: was[id], after: now[id] })) };
  },
};

// Asks the server about the story of `pane`, whose request it keeps.
const serverSource = {
  isLive: true,
  lessons: new Map(),
  learning: (pane) => serverSource.lessons.get(pane.request.model),
  async ask(body, path = "/explain") {
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const told = await response.json().catch(() => null);
    if (!response.ok || !told) throw new Error(told?.error?.message ?? `the server answers ${response.status}`);
    return told;
  },
  async pane(request) {
    const told = await this.ask({ ...request, pane: true }),
      pane = new Pane({ ...told, weights: null });
    pane.request = request;
    pane.layers = new Map();
    pane.embeddings = new Map();
    if (!this.lessons.has(request.model))
      this.lessons.set(request.model, (await this.ask({ model: request.model, learning: true })).learning);
    // Large vocabularies stay at the server; what the story names is known by name.
    const guesses = [
      ...told.story.next_words.flatMap((next) => [...next.top, ...(next.next ? [next.next] : [])]),
      ...told.story.answer.map((a) => a.token),
    ];
    for (const guess of guesses) pane.vocabulary[guess.id] ??= guess.text;
    return pane;
  },
  // Until the answer came.
  mayHave: (pane, layer) => layer !== null && pane.layers.get(layer) !== "here",
  async why(pane, name, index) {
    const axes =
      name === "tokens"
        ? ["position"]
        : pane.byName.has(name)
          ? axisNames(pane.byName.get(name))
          : index.length === 1
            ? ["number"]
            : ["row", "column"];
    const found = await this.ask({
      ...pane.request,
      why: `${name}[${index.map((i, axis) => `${axes[axis]}=${i}`).join(",")}]`,
    });
    const operands = found.operands.map(({ role, value, address }) => ({
      role,
      value,
      link: address ? readAddress(address) : null,
    }));
    return { ...found, operands };
  },
  async token(pane, text) {
    const told = await this.ask({ model: pane.request.model, content: text.replaceAll("␣", " ") }, "/tokenize");
    return told.count === 1 && !told.unknown.length ? told.tokens[0] : null;
  },
  embedding(pane, id) {
    const here = pane.embeddings.get(id);
    if (here) return here;
    return this.ask({ ...pane.request, embedding: id }).then(({ numbers }) => {
      pane.embeddings.set(id, numbers);
      return numbers;
    });
  },
  whatIf(pane, edits) {
    return this.ask({ ...pane.request, what_if: edits });
  },
  // The tensors of one layer, which a large model's story leaves out.
  layer(pane, layer) {
    if (pane.layers.has(layer)) return;
    pane.layers.set(layer, "asked");
    this.ask({ ...pane.request, layer }).then(({ tensors }) => {
      Object.assign(pane.story.tensors, tensors);
      pane.layers.set(layer, "here");
      draw();
    }, (error) => {
      pane.layers.delete(layer); // To be asked again at the next look.
      tell(error);
    });
  },
};

const source = data.live ? serverSource : ownSource;
