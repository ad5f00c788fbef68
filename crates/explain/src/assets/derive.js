// Derives one value, like derive.rs: its formula, its operands with their addresses, and its result.
"use strict";

const subscript = (i) => `${i}`.replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);
const axisNames = (step) =>
  step.axes.map((axis) => (axis === "position" && step.axes.includes("key") ? "query" : axis));

function formatNumber(x, decimals = 4) {
  if (x === null || x === undefined || !Number.isFinite(x)) return "–";
  if (x !== 0 && (Math.abs(x) < 10 ** -(decimals + 1) / 2 || Math.abs(x) >= 1e6)) {
    return Math.abs(x) < 1e-12 ? "0" : x.toExponential(2).replace("-", "−");
  }
  const text = x.toFixed(decimals);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
}

const isAdapterWeight = (name) => /\.lora\.[ab]$/.test(name);

class Panel {
  // `first` is the panel whose weights this one shares, if it says so.
  constructor(panel, first = null) {
    Object.assign(this, panel);
    this.byName = new Map(this.story.steps.map((step) => [step.name, step]));
    this.packed = panel.weights === "shared" ? first.packed : panel.weights;
    this.unpacked = {};
    for (const [name, tensor] of Object.entries(panel.packed_tensors ?? {})) this.story.tensors[name] = unpackTensor(tensor);
    this.packed_tensors = null;
    this.isShortened ??= this.canCompute && this.story.steps.some((step) => !this.story.tensors[step.name]);
    for (const next of this.story.next_words) next.top = this.tokens(next.top);
    for (const stage of this.story.lens) stage.top = stage.top.map((top) => this.tokens(top));
  }
  // Most likely tokens, from [id, probability] if they are stored that way.
  tokens(top) {
    return top.map((token) => (Array.isArray(token) ? { id: token[0], text: this.vocabulary[token[0]], probability: token[1] } : token));
  }
  // Whether the page can recompute everything: the weights are embedded, and no step is missing.
  get canCompute() {
    return Boolean(this.packed) && this.story.steps.some((step) => step.name === "probabilities") && !this.isPartial;
  }
  get isPartial() {
    return new Set(this.story.steps.map((step) => step.layer).filter((layer) => layer !== null)).size < this.story.config.n_layers
      || this.story.steps.some((step) => [step.op.of, step.op.a, step.op.b, step.op.q].some((name) => name && !this.byName.has(name)));
  }
  weight(name) {
    if (!this.packed || !this.packed[name]) return null;
    return (this.unpacked[name] ||= unpack(this.packed[name]));
  }
  allWeights() {
    for (const name of Object.keys(this.packed)) this.weight(name);
    return this.unpacked;
  }
  // The base model's values of the parameters that the adapter replaces.
  baseValues() {
    return Object.fromEntries(Object.entries(this.base_values ?? {}).map(([name, packed]) => [name, unpack(packed)]));
  }
  offset(shape, index) {
    return index.reduce((at, i, axis) => at * shape[axis] + i, 0);
  }
  at(name, index) {
    const tensor = this.story.tensors[name];
    return tensor ? tensor.data[this.offset(tensor.shape, index)] : null;
  }
  text(id) {
    if (this.vocabulary[id] !== undefined) return this.vocabulary[id];
    const token = this.story.tokens.find((token) => token.id === id);
    return token ? token.text : `#${id}`;
  }

  // {address, value, title, term, formula, filled, operands: [{role, value, link}], result}
  derive(name, index) {
    if (name === "tokens" || name === "source_tokens") {
      const token = (name === "tokens" ? this.story.tokens : this.story.source)[index[0]];
      const promptLength = this.story.tokens.filter((each) => each.from !== "answer").length;
      const from = token.from === "prompt" ? "from the prompt"
        : token.from === "start" ? "the token with which every completion starts"
        : `token ${index[0] - promptLength + 1} of the completion, sampled after position ${index[0] - 1}`;
      return { address: `${name}[position=${index[0]}]`, value: token.id, title: "token id", term: "an entry of the vocabulary",
        formula: from, filled: `“${token.text}” is token ${token.id}`, operands: [], result: token.id };
    }
    const step = this.byName.get(name);
    if (!step) {
      const weight = this.weight(name), names = index.length === 1 ? ["number"] : ["row", "column"];
      return { address: `${name}[${index.map((i, a) => `${names[a]}=${i}`).join(",")}]`,
        value: weight ? weight.data[this.offset(weight.shape, index)] : null, title: "weight",
        term: "a parameter of the model", formula: this.origin(name, index), filled: "", operands: [],
        result: null };
    }
    const address = `${name}[${axisNames(step).map((axis, a) => `${axis}=${index[a]}`).join(",")}]`;
    const parts = this.operands(step, index);
    return { address, value: this.at(name, index), title: step.title, term: step.term, formula: step.formula, ...parts };
  }

  origin(name, index) {
    if (isAdapterWeight(name)) return "learned in training the adapter";
    const bits = index.length > 1 && !name.includes("position_embedding") && this.story.model.bits;
    return bits ? `learned in training, then quantized to ${bits} bits: an integer times the scale of its block of 32, plus the block's minimum if it has one`
      : "learned in training";
  }
  operand(role, name, index) {
    return { role, value: this.at(name, index), link: [name, index] };
  }
  weightOperand(role, name, index) {
    const weight = this.weight(name);
    return { role, value: weight ? weight.data[this.offset(weight.shape, index)] : null, link: [name, index] };
  }

  operands(step, index) {
    const op = step.op, last = index.length - 1, dim = index[last], n = formatNumber;
    const position = step.axes.includes("head") ? index[1] : index[0];
    const tensor = (name) => this.story.tensors[name] || { shape: this.byName.get(name)?.shape || [1, 1, 1] };
    const setting = (role, value) => ({ role, value, link: null });
    const plain = (filled, result, operands) => ({ filled, result, operands });
    const products = (pairs, bias) => {
      let sum = 0;
      for (const [a, b] of pairs) sum += a.value * b.value;
      let filled = pairs.slice(0, 6).map(([a, b]) => `${n(a.value)} × ${wrap(b.value)}`).join(" + ");
      if (pairs.length > 6) filled += ` + … (${pairs.length - 6} more)`;
      const operands = pairs.flat();
      if (bias) { filled += ` + ${wrap(bias.value)}`; sum += bias.value; operands.push(bias); }
      return plain(filled, sum, operands);
    };
    const times = (found, role, factor) => {
      found.filled = `(${found.filled}) × ${n(factor)}`;
      found.result *= factor;
      found.operands.push(setting(role, factor));
      return found;
    };
    const softCapped = (found, cap) => {
      found.filled = `${cap} × tanh((${found.filled}) / ${cap})`;
      found.result = softCap(found.result, cap);
      found.operands.push(setting("c", cap));
      return found;
    };
    const wrap = (x) => (x < 0 ? `(${n(x)})` : n(x));
    const masked = ({ causal }) => ({ ...plain("", null, []),
      formula: causal === false ? "masked: this token is outside of the window"
        : "masked: a token attends to itself and to earlier tokens within its window" });
    switch (op.kind) {
      case "embed": {
        const isSource = step.rows === "source", id = (isSource ? this.story.source : this.story.tokens)[position].id, entry = this.weightOperand("table entry", op.table, [id, dim]);
        const found = plain(`row ${id}, column ${dim} of ${op.table} = ${n(entry.value)}`, entry.value, [this.tokenOperand(position, isSource), entry]);
        return op.scale === null ? found : times(found, "scale", op.scale);
      }
      case "places": {
        const entry = this.weightOperand("table entry", op.table, [position, dim]);
        return plain(`row ${position}, column ${dim} of ${op.table} = ${n(entry.value)}`, entry.value, [entry]);
      }
      case "waves": {
        const f = frequencyOf(dim, step.shape[last]), wave = dim % 2 ? Math.cos : Math.sin;
        return plain(`${dim % 2 ? "cos" : "sin"}(${position} × ${n(f)})`, wave(position * f),
          [setting("position", position), setting("frequency", f)]);
      }
      case "copy": {
        const x = this.operand("x", op.of, index);
        return plain(n(x.value), x.value, [x]);
      }
      case "add": {
        const a = this.operand("a", op.a, index), b = this.operand("b", op.b, index);
        return plain(`${n(a.value)} + ${wrap(b.value)}`, a.value + b.value, [a, b]);
      }
      case "add_scaled": {
        const a = this.operand("a", op.a, index), b = this.operand("b", op.b, index);
        return plain(`${n(a.value)} + ${n(op.scale)} × ${wrap(b.value)}`, a.value + op.scale * b.value, [a, b, setting("s", op.scale)]);
      }
      case "norm": {
        const row = Array.from({ length: step.shape[last] }, (_, i) => this.operand(`x${subscript(i)}`, op.of, [...index.slice(0, last), i]));
        const x = row.map((operand) => operand.value), { mean, scale } = moments(x, op.centered, op.eps);
        const w = this.weightOperand("weight", op.weight, [dim]), b = op.bias && this.weightOperand("bias", op.bias, [dim]);
        const factor = Number(op.unit_offset) + w.value, shown = op.unit_offset ? `(1 + ${wrap(w.value)})` : wrap(w.value);
        const numerator = op.centered ? `(${n(x[dim])} − ${wrap(mean)})` : n(x[dim]);
        return plain(`${numerator} / ${n(scale)} × ${shown}${b ? ` + ${wrap(b.value)}` : ""}`, ((x[dim] - mean) / scale) * factor + (b ? b.value : 0),
          [...row, w, ...(b ? [b] : []), setting("ε", op.eps)]);
      }
      case "linear": {
        const row = op.heads === null ? index[0] : index[1];
        const column = op.heads === null ? index[1] : index[0] * step.shape[2] + index[2];
        const width = tensor(op.of).shape[tensor(op.of).shape.length - 1];
        const pairs = Array.from({ length: width }, (_, i) => [this.operand("x", op.of, [row, i]),
          this.weightOperand("w", op.weight, op.transposed ? [column, i] : [i, column])]);
        return products(pairs, op.bias && this.weightOperand("bias", op.bias, [column]));
      }
      case "join": {
        const [heads, , width] = tensor(op.of).shape;
        if (!op.weight) {
          const z = this.operand("z", op.of, [Math.floor(dim / width), position, dim % width]);
          return plain(`element ${dim % width} of head ${Math.floor(dim / width) + 1}`, z.value, [z]);
        }
        const pairs = Array.from({ length: heads * width }, (_, i) => [
          this.operand("z", op.of, [Math.floor(i / width), position, i % width]), this.weightOperand("w", op.weight, [i, dim])]);
        return products(pairs, op.bias && this.weightOperand("bias", op.bias, [dim]));
      }
      case "turn": {
        const half = op.frequencies.length;
        if (dim >= 2 * half) {
          const x = this.operand("x", op.of, index);
          return plain(`${n(x.value)}: only the first ${2 * half} elements are rotated`, x.value, [x]);
        }
        const pair = dim % half, angle = position * op.frequencies[pair];
        const x = this.operand("x", op.of, [index[0], position, pair]), y = this.operand("y", op.of, [index[0], position, pair + half]);
        const cos = Math.cos(angle), sin = Math.sin(angle);
        const [first, second, sign] = dim < half ? [x, y, "−"] : [y, x, "+"];
        const result = dim < half ? x.value * cos - y.value * sin : y.value * cos + x.value * sin;
        const filled = `${n(first.value)} × ${wrap(cos)} ${sign} ${wrap(second.value)} × ${wrap(sin)}  (a = ${position} × ${n(op.frequencies[pair])})`;
        return plain(filled, result,
          [x, y, setting("position", position), setting("frequency", op.frequencies[pair])]);
      }
      case "scores": {
        const [head, query, key] = index;
        if (!isVisible(op, query, key)) return masked(op);
        const group = step.shape[0] / tensor(op.k).shape[0], width = tensor(op.q).shape[2];
        const pairs = Array.from({ length: width }, (_, i) => [this.operand("q", op.q, [head, query, i]),
          this.operand("k", op.k, [Math.floor(head / group), key, i])]);
        const scoreWidth = this.story.config.score_width ?? width, slope = op.slopes[head];
        const found = times(products(pairs), op.usual ? "1/√d" : `${n(op.scale * Math.sqrt(scoreWidth))}/√${scoreWidth}`, op.scale);
        if (op.cap !== null) softCapped(found, op.cap);
        if (slope) {
          const distance = Math.abs(query - key);
          found.filled += ` − ${n(slope)} × ${distance}`;
          found.result -= slope * distance;
          found.operands.push(setting("slope", slope), setting("distance", distance));
        }
        return found;
      }
      case "softmax": {
        const square = step.axes.includes("key"), scores = this.byName.get(op.of)?.op ?? {};
        if (square && !isVisible(scores, index[1], index[2])) return masked(scores);
        const operands = [];
        let own = 0;
        for (let i = 0; i < step.shape[last]; i++) {
          if (square && !isVisible(scores, index[1], i)) continue;
          if (i === dim) own = operands.length;
          operands.push(this.operand(`x${subscript(i)}`, op.of, [...index.slice(0, last), i]));
        }
        const top = Math.max(...operands.map((x) => x.value));
        const sum = operands.reduce((sum, x) => sum + Math.exp(x.value - top), 0);
        const more = operands.length > 6 ? ` + … (${operands.length - 6} more)` : "";
        return plain(`e^${wrap(operands[own].value)} / (${operands.slice(0, 6).map((x) => `e^${wrap(x.value)}`).join(" + ")}${more})`,
          Math.exp(operands[own].value - top) / sum, operands);
      }
      case "mix": {
        const [head, query] = index, group = step.shape[0] / tensor(op.v).shape[0];
        const scores = this.byName.get(this.byName.get(op.pattern)?.op.of)?.op ?? {}, pairs = [];
        for (let key = 0; key < tensor(op.v).shape[1]; key++) {
          if (isVisible(scores, query, key)) pairs.push([this.operand("attn weight", op.pattern, [head, query, key]),
            this.operand("value", op.v, [Math.floor(head / group), key, dim])]);
        }
        return products(pairs);
      }
      case "activate": {
        const x = this.operand("x", op.of, index);
        return plain(`${op.function}(${n(x.value)})`, activate(op.function, x.value), [x]);
      }
      case "gate": {
        const gate = this.operand("gate", op.gate, index), up = this.operand("x", op.up, index);
        return plain(`${op.function}(${n(gate.value)}) × ${wrap(up.value)}`, activate(op.function, gate.value) * up.value, [gate, up]);
      }
      default: {
        const x = this.operand("x", op.of, index);
        return softCapped(plain(n(x.value), x.value, [x]), op.cap);
      }
    }
  }
  tokenOperand(position, isSource) {
    const [name, tokens] = isSource ? ["source_tokens", this.story.source] : ["tokens", this.story.tokens];
    return { role: "token id", value: tokens[position].id, link: [name, [position]] };
  }
}
