// Holds the page's own arithmetic to the program's: each FILE has a pane of the page, the program's
// recomputation, and what it derives each number from. The test `the_pages_arithmetic_is_the_programs`
// writes the files and runs this.
//
//     node scripts/check_arithmetic.js FILE...
"use strict";

const fs = require("fs"), path = require("path"), vm = require("vm");

const assets = path.join(__dirname, "../crates/explain/src/assets");
const source = ["compute.js", "derive.js"].map((name) => fs.readFileSync(path.join(assets, name), "utf8")).join("\n");
const { Pane, evaluate } = vm.runInNewContext(`${source}\n;({ Pane, evaluate })`, { atob, Math });

let numbers = 0;

// Hidden numbers are null on both sides; others are apart by at most `close` of the largest.
function compare(what, ours, theirs, close) {
  const largest = theirs.reduce((most, x) => Math.max(most, Math.abs(x ?? 0)), 1);
  if (ours.length !== theirs.length) throw new Error(`${what}: ${ours.length} numbers instead of ${theirs.length}`);
  ours.forEach((x, at) => {
    const hidden = x === null || x === -Infinity;
    numbers++;
    if (hidden === (theirs[at] === null) && (hidden || Math.abs(x - theirs[at]) <= close * largest)) return;
    throw new Error(`${what}, number ${at}: ${x} instead of ${theirs[at]}`);
  });
}

function indices(shape) {
  return shape.reduce((all, length) => all.flatMap((index) => Array.from({ length }, (_, i) => [...index, i])), [[]]);
}

for (const file of process.argv.slice(2)) {
  const { pane: data, exact, derived } = JSON.parse(fs.readFileSync(file, "utf8"));
  const pane = new Pane(data), ids = pane.story.tokens.map((token) => token.id);
  const values = evaluate(pane.story.steps, pane.allWeights(), ids);
  for (const step of pane.story.steps) {
    compare(`${file}: ${step.name}`, [...values[step.name].data], exact[step.name], 1e-9);
    const results = indices(step.shape).map((index) => pane.derive(step.name, index).result);
    compare(`${file}: deriving ${step.name}`, results, derived[step.name], 1e-6);
  }
}
console.log(`${numbers} numbers of ${process.argv.length - 2} models are the program's`);
