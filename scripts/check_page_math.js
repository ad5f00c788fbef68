// Checks that the explain page computes the same values as the Rust program. Each FILE contains a
// panel of the page, the values recomputed in Rust, and the derivation of each value. The test
// `page_arithmetic_matches_the_program` writes the files and runs this script.
//
//     node scripts/check_page_math.js FILE...
"use strict";

const fs = require("fs"), path = require("path"), vm = require("vm");

const assets = path.join(__dirname, "../crates/explain/src/assets");
const source = ["compute.js", "derive.js"].map((name) => fs.readFileSync(path.join(assets, name), "utf8")).join("\n");
const { Panel, evaluate, hasPart, interpolated, shortened, withUpdates, without } = vm.runInNewContext(`${source}\n;({ Panel, evaluate, hasPart, interpolated, shortened, withUpdates, without })`, { atob, Math });

let checked = 0;

// Masked values must be null on both sides. Others must agree within `tolerance` times the largest
// expected absolute value (at least 1).
function compare(label, actual, expected, tolerance) {
  const largest = expected.reduce((max, x) => Math.max(max, Math.abs(x ?? 0)), 1);
  if (actual.length !== expected.length) throw new Error(`${label}: ${actual.length} values, expected ${expected.length}`);
  actual.forEach((x, i) => {
    const masked = x === null || x === -Infinity;
    checked++;
    if (masked === (expected[i] === null) && (masked || Math.abs(x - expected[i]) <= tolerance * largest)) return;
    throw new Error(`${label}, value ${i}: ${x}, expected ${expected[i]}`);
  });
}

function indices(shape) {
  return shape.reduce((all, length) => all.flatMap((index) => Array.from({ length }, (_, i) => [...index, i])), [[]]);
}

for (const file of process.argv.slice(2)) {
  const { panel: data, exact, derived, removed, scaled } = JSON.parse(fs.readFileSync(file, "utf8"));
  const panel = new Panel(data), idsOf = (tokens) => (tokens ?? []).map((token) => token.id);
  // The first `length` tokens of the only stack or the decoder, and what the encoder reads.
  const inputs = (length) => ({ target: idsOf(panel.story.tokens).slice(0, length), source: idsOf(panel.story.source) });
  const values = evaluate(panel.story.steps, panel.allWeights(), inputs());
  for (const step of panel.story.steps) {
    compare(`${file}: ${step.name}`, [...values[step.name].data], exact[step.name], 1e-9);
    const results = indices(step.shape).map((index) => panel.derive(step.name, index).result);
    compare(`${file}: derivation of ${step.name}`, results, derived[step.name], 1e-6);
  }
  const parts = ["no_residual", "no_positions", "no_mask"].filter((change) => hasPart(panel.story.steps, change));
  if (parts.join() !== removed.map(({ edit }) => edit.change).join()) throw new Error(`${file}: parts ${parts}`);
  for (const { edit, positions } of removed) {
    const steps = without(shortened(panel.story.steps, positions.length), edit.change);
    const { probabilities } = evaluate(steps, panel.allWeights(), inputs(positions.length));
    const width = probabilities.shape[1];
    compare(`${file}: ${edit.change}`, positions.map(({ position, next }) => probabilities.data[position * width + next]),
      positions.map(({ after }) => after), 1e-9);
  }
  for (const { edit, positions } of scaled) {
    const steps = withUpdates(shortened(panel.story.steps, positions.length), edit.scale);
    const weights = interpolated(panel.allWeights(), panel.baseValues(), edit.scale);
    const { probabilities } = evaluate(steps, weights, inputs(positions.length));
    const width = probabilities.shape[1];
    compare(`${file}: adapter times ${edit.scale}`, positions.map(({ position, next }) => probabilities.data[position * width + next]),
      positions.map(({ after }) => after), 1e-9);
  }
}
console.log(`${checked} values of ${process.argv.length - 2} models match the Rust program`);
