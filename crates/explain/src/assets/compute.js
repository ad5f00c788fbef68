// The forward pass in plain loops, from the weights embedded in the page. Runs the same list of
// operations as evaluate.rs. Arrays are {shape, data}.
"use strict";

// 32-bit floats in base 85, as in page_values.rs: five characters each, highest digit first.
const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%()*+,-.:;=?@[]^_{}~";
const digitOf = new Uint8Array(128);
for (let i = 0; i < DIGITS.length; i++) digitOf[DIGITS.charCodeAt(i)] = i;
function decodeFloats(text) {
  const bits = new Uint32Array(text.length / 5);
  for (let i = 0, at = 0; i < bits.length; i++) {
    let value = 0;
    for (let n = 0; n < 5; n++) value = value * 85 + digitOf[text.charCodeAt(at++)];
    bits[i] = value;
  }
  return new Float32Array(bits.buffer);
}
const unpack = ({ shape, base85 }) => ({ shape, data: Float64Array.from(decodeFloats(base85)) });
// A tensor as in a report, with null where masked.
const unpackTensor = ({ axes, shape, computed, base85 }) => ({
  axes, shape, computed, data: Array.from(decodeFloats(base85), (x) => (Number.isNaN(x) ? null : x)),
});

const zeros = (shape) => ({ shape, data: new Float64Array(shape.reduce((a, b) => a * b, 1)) });
const widthOf = (array) => array.shape[array.shape.length - 1];
const rowOf = (array, at) => array.data.subarray(at * widthOf(array), (at + 1) * widthOf(array));
const frequencyOf = (dim, width) => 10000 ** (-(dim - (dim % 2)) / width);
// Whether the scores of `op` show `key` to `query`, like Op::is_visible in node.rs.
const isVisible = (op, query, key) =>
  (op.causal === false || key <= query || Math.max(query, key) < (op.prefix ?? 0)) &&
  (!op.window || Math.abs(query - key) < op.window);
const addsPositions = (op) => op.kind === "add" && op.b.endsWith("hook_pos_embed");

// erf by its series near 0 and by a continued fraction elsewhere; accurate to 1e-15.
function erf(x) {
  const a = Math.abs(x);
  if (a > 6) return Math.sign(x);
  if (a < 2.5) {
    let term = a, sum = a;
    for (let n = 1; n < 60; n++) {
      term *= (-a * a) / n;
      sum += term / (2 * n + 1);
    }
    return (Math.sign(x) * 2 * sum) / Math.sqrt(Math.PI);
  }
  let fraction = 0;
  for (let n = 60; n > 0; n--) fraction = n / 2 / (a + fraction);
  return Math.sign(x) * (1 - Math.exp(-a * a) / Math.sqrt(Math.PI) / (a + fraction));
}

function activate(name, x) {
  switch (name) {
    case "gelu": return 0.5 * x * (1 + erf(x / Math.SQRT2));
    case "gelu_tanh": return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x)));
    case "relu": return Math.max(x, 0);
    case "relu_squared": return Math.max(x, 0) ** 2;
    default: return x / (1 + Math.exp(-x));
  }
}

const softCap = (x, cap) => cap * Math.tanh(x / cap);

function moments(x, centered, eps) {
  let mean = 0, square = 0;
  if (centered) for (const v of x) mean += v / x.length;
  for (const v of x) square += ((v - mean) * (v - mean)) / x.length;
  return { mean, scale: Math.sqrt(square + eps) };
}

function softmaxInto(x, out) {
  let top = -Infinity, sum = 0;
  for (const v of x) top = Math.max(top, v);
  for (let i = 0; i < x.length; i++) sum += out[i] = Math.exp(x[i] - top);
  for (let i = 0; i < x.length; i++) out[i] /= sum;
}

function linearInto(out, x, weight, bias, intoHeads, transposed) {
  const rows = x.data.length / widthOf(x), width = widthOf(out);
  const dOut = weight.shape[transposed ? 0 : 1], y = new Float64Array(dOut);
  for (let row = 0; row < rows; row++) {
    const from = rowOf(x, row);
    for (let o = 0; o < dOut; o++) y[o] = bias ? bias.data[o] : 0;
    for (let i = 0; i < from.length; i++) {
      for (let o = 0; o < dOut; o++) y[o] += from[i] * weight.data[transposed ? o * from.length + i : i * dOut + o];
    }
    for (let o = 0; o < dOut; o++) {
      const at = intoHeads ? (Math.floor(o / width) * rows + row) * width + (o % width) : row * width + o;
      out.data[at] = y[o];
    }
  }
}

function concatHeads(z) {
  const [heads, seq, dim] = z.shape, out = zeros([seq, heads * dim]);
  for (let h = 0; h < heads; h++) {
    for (let s = 0; s < seq; s++) out.data.set(rowOf(z, h * seq + s), s * heads * dim + h * dim);
  }
  return out;
}

// The steps for the first `length` tokens of the only stack, or of the decoder.
const shortened = (steps, length) =>
  steps.map((step) => {
    const isShortened = (axis) => (axis === "position" && step.rows !== "source") || (axis === "key" && step.keys !== "source");
    return { ...step, shape: step.shape.map((n, i) => (isShortened(step.axes[i]) ? length : n)) };
  });

// The steps without a part of the architecture, like ablation.rs: {change: "no_residual" | "no_positions" | "no_mask"}.
function without(steps, change) {
  // In a parallel block, only this sum reads what attention gave: it adds the sublayers' outputs, and stays.
  const addsSublayers = ({ a }) =>
    a.endsWith(".hook_resid_mid") && steps.filter(({ op }) => Object.values(op).includes(a)).length === 1;
  const changed = (op) => {
    if (op.kind === "add" && change === "no_residual" && !addsPositions(op) && !addsSublayers(op)) return { kind: "copy", of: op.b };
    if (change === "no_positions" && addsPositions(op)) return { kind: "copy", of: op.a };
    if (op.kind === "turn" && change === "no_positions") return { ...op, frequencies: [] };
    if (op.kind === "scores" && change === "no_positions") return { ...op, slopes: [] };
    if (op.kind === "scores" && change === "no_mask") return { ...op, causal: false, window: null };
    return op;
  };
  return steps.map((step) => ({ ...step, op: changed(step.op) }));
}
// Whether the model has the part that `change` removes.
const hasPart = (steps, change) =>
  steps.some(({ op }) => {
    if (change === "no_mask") return op.kind === "scores" && (op.causal !== false || op.window !== null);
    if (change === "no_residual") return op.kind === "add" && !addsPositions(op);
    return addsPositions(op) || op.kind === "turn" || (op.kind === "scores" && op.slopes.length > 0);
  });

// The steps with the updates of the adapter multiplied by `factor`, like adapted.rs.
const withUpdates = (steps, factor) =>
  steps.map((step) => (step.op.kind === "add_scaled" ? { ...step, op: { ...step.op, scale: step.op.scale * factor } } : step));
// The tuned weights, with base + factor * (tuned - base) where the adapter replaces those of the base model.
function interpolated(tuned, base, factor) {
  const weights = { ...tuned };
  for (const [name, { shape, data }] of Object.entries(base))
    weights[name] = { shape, data: data.map((x, i) => x + factor * (tuned[name].data[i] - x)) };
  return weights;
}

// The attention that a step is part of, like AttentionKind in node.rs.
const attentionOf = ({ name }) => (name.startsWith("encoder.") ? "encoder" : name.includes("cross_attn") ? "cross" : "own");
// The name of a head in a set of disabled ones.
const headKey = (attention, layer, head) => `${attention}.${layer}.${head}`;

// Every tensor of the graph `steps` for token `ids`: a list, or { target, source } in encoder-decoder models. The output
// of `disabledHeads` (see headKey) is zero.
function evaluate(steps, weights, ids, disabledHeads = new Set()) {
  const values = {}, { target, source } = Array.isArray(ids) ? { target: ids, source: [] } : ids;
  for (const step of steps) {
    const op = step.op, out = zeros(step.shape), width = widthOf(out), bias = op.bias && weights[op.bias];
    const input = op.of && values[op.of];
    switch (op.kind) {
      case "embed": {
        const scale = op.scale ?? 1;
        (step.rows === "source" ? source : target).forEach((id, at) => rowOf(weights[op.table], id).forEach((entry, i) => { out.data[at * width + i] = entry * scale; }));
        break;
      }
      case "places": out.data.set(weights[op.table].data.subarray(0, out.data.length)); break;
      case "waves":
        out.data.forEach((_, at) => {
          const dim = at % width, angle = Math.floor(at / width) * frequencyOf(dim, width);
          out.data[at] = dim % 2 ? Math.cos(angle) : Math.sin(angle);
        });
        break;
      case "copy": out.data.set(input.data); break;
      case "add": out.data.forEach((_, i) => { out.data[i] = values[op.a].data[i] + values[op.b].data[i]; }); break;
      case "add_scaled": out.data.forEach((_, i) => { out.data[i] = values[op.a].data[i] + op.scale * values[op.b].data[i]; }); break;
      case "norm":
        for (let row = 0; row < out.data.length / width; row++) {
          const x = rowOf(input, row), { mean, scale } = moments(x, op.centered, op.eps);
          x.forEach((v, i) => {
            const factor = Number(op.unit_offset) + weights[op.weight].data[i];
            out.data[row * width + i] = ((v - mean) / scale) * factor + (bias ? bias.data[i] : 0);
          });
        }
        break;
      case "linear": linearInto(out, input, weights[op.weight], bias, op.heads !== null, op.transposed); break;
      case "join":
        if (op.weight) linearInto(out, concatHeads(input), weights[op.weight], bias, false, false);
        else out.data.set(concatHeads(input).data);
        break;
      case "turn": {
        const seq = input.shape[1], half = op.frequencies.length;
        out.data.set(input.data); // Elements beyond the pairs are unchanged.
        for (let row = 0; row < out.data.length / width; row++) {
          const x = rowOf(input, row);
          op.frequencies.forEach((f, i) => {
            const cos = Math.cos((row % seq) * f), sin = Math.sin((row % seq) * f);
            out.data[row * width + i] = x[i] * cos - x[i + half] * sin;
            out.data[row * width + i + half] = x[i + half] * cos + x[i] * sin;
          });
        }
        break;
      }
      case "scores": {
        const q = values[op.q], k = values[op.k], [heads, seq] = q.shape, group = heads / k.shape[0], keys = k.shape[1];
        for (let at = 0; at < out.data.length; at++) {
          const key = at % keys, query = Math.floor(at / keys) % seq, head = Math.floor(at / keys / seq);
          if (!isVisible(op, query, key)) { out.data[at] = -Infinity; continue; }
          const a = rowOf(q, head * seq + query), b = rowOf(k, Math.floor(head / group) * keys + key);
          let dot = 0;
          for (let i = 0; i < a.length; i++) dot += a[i] * b[i];
          const score = op.cap === null ? dot * op.scale : softCap(dot * op.scale, op.cap);
          out.data[at] = score - (op.slopes[head] || 0) * Math.abs(query - key);
        }
        break;
      }
      case "softmax":
        for (let row = 0; row < out.data.length / width; row++) softmaxInto(rowOf(input, row), rowOf(out, row));
        break;
      case "mix": {
        const p = values[op.pattern], v = values[op.v], [heads, seq, keys] = p.shape, group = heads / v.shape[0];
        for (let head = 0; head < heads; head++) {
          if (disabledHeads.has(headKey(attentionOf(step), step.layer, head))) continue;
          for (let query = 0; query < seq; query++) {
            const to = rowOf(out, head * seq + query), attention = rowOf(p, head * seq + query);
            for (let key = 0; key < keys; key++) {
              if (attention[key] === 0) continue; // Masked, or without effect.
              const from = rowOf(v, Math.floor(head / group) * keys + key);
              for (let i = 0; i < to.length; i++) to[i] += attention[key] * from[i];
            }
          }
        }
        break;
      }
      case "activate": out.data.forEach((_, i) => { out.data[i] = activate(op.function, input.data[i]); }); break;
      case "gate":
        out.data.forEach((_, i) => { out.data[i] = activate(op.function, values[op.gate].data[i]) * values[op.up].data[i]; });
        break;
      case "cap": out.data.forEach((_, i) => { out.data[i] = softCap(input.data[i], op.cap); }); break;
    }
    values[step.name] = out;
  }
  return values;
}
