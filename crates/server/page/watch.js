// Draws the metrics of runs while they train, and shows their samples. Reads /runs and what is below it on this server,
// and nothing else.
"use strict";

const POLL = 1000; // ms
const COLORS = ["#3274d9", "#d9622b", "#2f9e5b", "#a552c9", "#c4314b", "#8a6d1f", "#1f9aa6", "#777777"];
const CHARTS = [
  { title: "training loss", key: "loss", isLoss: true },
  { title: "validation loss", key: "val_loss", isLoss: true },
  { title: "learning rate", key: "lr" },
  { title: "gradient norm", key: "grad_norm" },
  { title: "tokens per second", key: "tokens_per_second" },
  { title: "memory (MiB)", key: "memory", unit: 2 ** 20 },
];

const MAX_SAMPLES = 20; // steps that are shown of a run

const runs = new Map(); // name -> {offset, mark, series, color, hidden, sampleStep, probeSteps, …}
const find = (id) => document.getElementById(id);

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, attributes);
  made.append(...children);
  return made;
}

async function getJson(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

function newRun(name) {
  const color = COLORS[runs.size % COLORS.length];
  const series = Object.fromEntries(CHARTS.map((chart) => [chart.key, { steps: [], values: [] }]));
  const run = { offset: 0, mark: "", series, color, hidden: false, sampleStep: null, probeSteps: [] };
  const box = element("input", { type: "checkbox", checked: true });
  box.addEventListener("change", () => {
    run.hidden = !box.checked;
    run.article.hidden = run.hidden || run.sampleStep === null;
    drawSoon();
  });
  const dot = element("i", {});
  dot.style.background = color;
  run.state = element("small", {});
  find("runs").append(element("label", {}, box, dot, name, run.state));
  run.samples = element("div", { className: "samples" });
  run.article = element("article", { hidden: true }, element("h2", { textContent: name }), run.samples);
  find("samples").append(run.article);
  runs.set(name, run);
  return run;
}

/** Forgets points from `step` on: a resumed run repeats them. */
function truncate(series, step) {
  let length = series.steps.length;
  while (length > 0 && series.steps[length - 1] >= step) length -= 1;
  series.steps.length = length;
  series.values.length = length;
}

function addLines(run, lines) {
  for (const line of lines) {
    for (const { key, unit = 1 } of CHARTS) {
      if (typeof line[key] !== "number") continue;
      const value = line[key] / unit;
      const series = run.series[key];
      if (series.steps.length && series.steps[series.steps.length - 1] >= line.step) truncate(series, line.step);
      series.steps.push(line.step);
      series.values.push(value);
    }
  }
}

/** Adds the samples that came since the last ones, the newest on top. */
async function pollSamples(run, path) {
  const after = run.sampleStep === null ? "" : `?after=${run.sampleStep}`;
  for (const { step, text } of await getJson(`${path}/samples${after}`)) {
    run.sampleStep = step;
    run.samples.prepend(element("h3", { textContent: `step ${step}` }), element("pre", { textContent: text }));
  }
  const shown = [...run.samples.children];
  for (const old of shown.slice(2 * MAX_SAMPLES)) old.remove();
  run.article.hidden = run.hidden || run.sampleStep === null;
}

/** Forgets all that is known about a run: its files are others now. */
function restart(run) {
  for (const { key } of CHARTS) truncate(run.series[key], -Infinity);
  run.sampleStep = null;
  run.samples.replaceChildren();
  run.article.hidden = true;
  probes.forget(run);
}

async function pollRun(name) {
  const run = runs.get(name) ?? newRun(name);
  const path = `runs/${encodeURIComponent(name)}`;
  const found = await getJson(`${path}?from=${run.offset}&mark=${run.mark}`);
  const isOther = found.from !== run.offset;
  if (isOther) restart(run);
  addLines(run, found.lines);
  [run.offset, run.mark, run.probeSteps] = [found.offset, found.mark, found.probe_steps];
  if (found.sample_step !== null && found.sample_step !== run.sampleStep) await pollSamples(run, path);
  return isOther || found.lines.length > 0;
}

async function poll() {
  try {
    const list = await getJson("runs");
    const changed = await Promise.all(list.map(({ name }) => pollRun(name)));
    for (const { name, steps } of list) {
      const { loss } = runs.get(name).series;
      const step = loss.steps[loss.steps.length - 1] ?? 0;
      runs.get(name).state.textContent = `${step} / ${steps ?? "?"}`;
    }
    find("status").textContent = list.length ? "" : "no runs yet";
    if (changed.some(Boolean)) drawSoon();
    await probes.update(runs);
  } catch (error) {
    find("status").textContent = `not connected: ${error.message}`;
  }
  setTimeout(poll, POLL);
}

let isDrawing = false;
function drawSoon() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => { isDrawing = false; draw(); });
}

/** An exponential moving average, without the bias towards its start. */
function smoothed(values, weight) {
  if (weight === 0) return values;
  let sum = 0;
  let total = 0;
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

function visibleSeries(key) {
  const weight = find("smooth").value / 100;
  const shown = [...runs].filter(([, run]) => !run.hidden && run.series[key].steps.length);
  return shown.map(([name, run]) => ({
    name, color: run.color, steps: run.series[key].steps, values: smoothed(run.series[key].values, weight),
  }));
}

/** The smallest and the largest value; of a logarithmic axis, of those that it can show. */
function range(all, pick, isLog = false) {
  let low = Infinity;
  let high = -Infinity;
  for (const series of all) {
    for (const value of series[pick]) {
      if (isLog && !(value > 0)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return [low, high];
}

const format = (value) => Number(value.toPrecision(4)).toString();

function drawChart(chart) {
  const { canvas } = chart;
  const all = visibleSeries(chart.key);
  chart.figure.hidden = all.length === 0; // A hidden canvas has no size.
  if (all.length === 0) return;
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const isLog = chart.isLoss && find("log").checked;
  const scale = isLog ? Math.log : (value) => value;
  let [low, high] = range(all, "values", isLog).map(scale);
  if (!Number.isFinite(low)) [low, high] = [0, 1]; // No value that a logarithmic axis can show.
  const margin = Math.abs(low) / 2 || 0.5;
  if (!(high > low)) [low, high] = [low - margin, high + margin];
  const lastStep = Math.max(1, range(all, "steps")[1]);
  const [left, right, top, bottom] = [56, 8, 8, 20];
  const x = (step) => left + (step / lastStep) * (width - left - right);
  const y = (value) => height - bottom - ((scale(value) - low) / (high - low)) * (height - top - bottom);
  context.font = "12px system-ui, sans-serif";
  context.fillStyle = getComputedStyle(canvas).color;
  context.strokeStyle = "#8884";
  context.lineWidth = 1;
  for (let tick = 0; tick <= 4; tick += 1) {
    const scaled = low + (tick / 4) * (high - low);
    const value = isLog ? Math.exp(scaled) : scaled;
    context.beginPath();
    context.moveTo(left, y(value));
    context.lineTo(width - right, y(value));
    context.stroke();
    context.fillText(format(value), 2, y(value) + 4);
  }
  context.fillText("0", left, height - 4);
  const end = String(lastStep);
  context.fillText(end, width - right - context.measureText(end).width, height - 4);
  context.lineWidth = 1.5;
  for (const series of all) drawLine(context, series, x, y, isLog);
  chart.place = { all, lastStep, left, right, width };
}

/** Draws at most the first, lowest, highest and last value of each column of pixels. */
function drawLine(context, { color, steps, values }, x, y, isLog) {
  context.strokeStyle = color;
  context.beginPath();
  let column = -1;
  let [low, high, last] = [0, 0, 0];
  const flush = () => {
    if (column < 0) return;
    context.lineTo(column, low);
    context.lineTo(column, high);
    context.lineTo(column, last);
  };
  for (let at = 0; at < steps.length; at += 1) {
    if (isLog && !(values[at] > 0)) continue;
    const [pixel, level] = [Math.round(x(steps[at])), y(values[at])];
    if (pixel === column) {
      low = Math.max(low, level);
      high = Math.min(high, level);
      last = level;
      continue;
    }
    flush();
    context.lineTo(pixel, level);
    [column, low, high, last] = [pixel, level, level, level];
  }
  flush();
  context.stroke();
}

function draw() {
  for (const chart of CHARTS) drawChart(chart);
}

/** The values at the step under the pointer. */
function describe(chart, event) {
  if (!chart.place) return;
  const { all, lastStep, left, right, width } = chart.place;
  const step = ((event.offsetX - left) / (width - left - right)) * lastStep;
  const parts = all.map(({ name, steps, values }) => {
    let at = steps.findIndex((other) => other >= step);
    if (at < 0) at = steps.length - 1;
    return `${name}: ${format(values[at])} at ${steps[at]}`;
  });
  chart.caption.textContent = parts.join(", ");
}

for (const chart of CHARTS) {
  chart.canvas = element("canvas", {});
  chart.canvas.setAttribute("role", "img");
  chart.canvas.setAttribute("aria-label", chart.title);
  chart.caption = element("figcaption", {});
  chart.figure = element("figure", { hidden: true }, element("h2", { textContent: chart.title }), chart.canvas, chart.caption);
  chart.canvas.addEventListener("pointermove", (event) => describe(chart, event));
  find("charts").append(chart.figure);
}
for (const id of ["log", "smooth"]) find(id).addEventListener("input", drawSoon);
window.addEventListener("resize", drawSoon);
poll();
