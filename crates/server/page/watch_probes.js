// Shows attention and next-word predictions of the probe sentences of a run, with a slider over its steps. The rest of the
// page calls `probes.update` after each poll.
"use strict";

const probes = (() => {
  const section = document.getElementById("probes");
  const cached = new Map(); // run -> Map of step -> what the sentences gave
  const state = { run: null, step: null, follows: true, sentence: 0, layer: 0, head: 0, position: null };
  let shownStep = null;

  const make = (tag, properties, ...children) => {
    const made = document.createElement(tag);
    Object.assign(made, properties);
    made.append(...children);
    return made;
  };

  const runPicker = make("select", { ariaLabel: "run" });
  const sentencePicker = make("select", { ariaLabel: "sentence" });
  const layerPicker = make("select", { ariaLabel: "layer" });
  const headPicker = make("select", { ariaLabel: "head" });
  const slider = make("input", { type: "range", min: 0, ariaLabel: "step" });
  const label = make("output", {});
  const attention = make("table", {});
  const predictions = make("table", {});
  section.append(
    make("h2", { textContent: "probe sentences" }),
    make("div", { className: "controls" }, runPicker, sentencePicker, layerPicker, headPicker, slider, label),
    make("div", { className: "views" }, attention, predictions),
  );

  /** Replaces the options of a picker, if they changed, and keeps the selection. */
  function offer(picker, names, selected) {
    const current = [...picker.options].map((option) => option.textContent);
    if (current.join("\n") !== names.join("\n")) {
      picker.replaceChildren(...names.map((name, index) => make("option", { value: index, textContent: name })));
    }
    picker.selectedIndex = Math.min(Math.max(0, selected), names.length - 1);
    return picker.selectedIndex;
  }

  async function read(name, run, step) {
    if (!cached.has(run)) cached.set(run, new Map());
    const steps = cached.get(run);
    if (!steps.has(step)) {
      const response = await fetch(`runs/${encodeURIComponent(name)}/probes/${step}`);
      if (!response.ok) return null;
      steps.set(step, await response.json());
    }
    return steps.get(step);
  }

  function drawAttention(sentence) {
    const pattern = sentence.patterns[state.layer]?.[state.head];
    attention.replaceChildren();
    if (!pattern) return;
    const caption = make("caption", { textContent: "attention: each row looks at the columns" });
    const head = make("tr", {}, make("th", {}), ...sentence.tokens.map((token) => make("th", { textContent: token })));
    const rows = pattern.map((weights, query) => {
      const cells = weights.map((weight, key) => {
        const cell = make("td", { textContent: key > query && weight === 0 ? "" : weight.toFixed(2) });
        cell.style.background = `rgba(50, 116, 217, ${weight})`;
        return cell;
      });
      const choose = make("button", { type: "button", textContent: sentence.tokens[query] });
      choose.addEventListener("click", () => { state.position = query; show(); });
      const title = make("th", { className: query === state.position ? "chosen" : "" }, choose);
      return make("tr", {}, title, ...cells);
    });
    attention.append(caption, head, ...rows);
  }

  function drawPredictions(sentence) {
    const found = sentence.next[state.position] ?? [];
    const token = sentence.tokens[state.position] ?? "";
    const caption = make("caption", { textContent: `next word after ${JSON.stringify(token)}` });
    const rows = found.map(({ text, probability }) => make("tr", {},
      make("td", { textContent: text }),
      make("td", {}, make("meter", { min: 0, max: 1, value: probability })),
      make("td", { textContent: `${(100 * probability).toFixed(1)} %` })));
    predictions.replaceChildren(caption, ...rows);
  }

  let known = new Map();

  /** Shows the selected step. */
  async function show() {
    const run = known.get(state.run);
    if (!run) return;
    const steps = run.probeSteps;
    const at = state.follows ? steps.length - 1 : Math.max(0, steps.findLastIndex((step) => step <= state.step));
    [slider.max, slider.value] = [steps.length - 1, at];
    const requested = `${state.run} ${steps[at]}`;
    shownStep = requested;
    const found = await read(state.run, run, steps[at]);
    // The user may have moved on while it was read.
    if (!found || shownStep !== requested) return;
    state.step = steps[at];
    label.textContent = `step ${state.step}`;
    state.sentence = offer(sentencePicker, found.sentences.map((sentence) => sentence.prompt), state.sentence);
    const sentence = found.sentences[state.sentence];
    if (!sentence) return;
    state.layer = offer(layerPicker, sentence.patterns.map((_, layer) => `layer ${layer + 1}`), state.layer);
    const heads = sentence.patterns[state.layer] ?? [];
    state.head = offer(headPicker, heads.map((_, head) => `head ${head + 1}`), state.head);
    const last = sentence.tokens.length - 1;
    state.position = state.position === null ? last : Math.min(state.position, last);
    drawAttention(sentence);
    drawPredictions(sentence);
  }

  slider.addEventListener("input", () => {
    const steps = known.get(state.run)?.probeSteps ?? [];
    const at = Number(slider.value);
    [state.step, state.follows] = [steps[at], at === steps.length - 1];
    show();
  });
  const pick = (picker, apply) => picker.addEventListener("change", () => { apply(picker.selectedIndex); show(); });
  pick(runPicker, (index) => {
    [state.run, state.follows, state.position] = [[...known.keys()][index], true, null];
  });
  pick(sentencePicker, (index) => { [state.sentence, state.position] = [index, null]; });
  pick(layerPicker, (index) => { state.layer = index; });
  pick(headPicker, (index) => { state.head = index; });

  return {
    /** Shows what came since the last poll. */
    async update(runs) {
      known = new Map([...runs].filter(([, run]) => run.probeSteps.length > 0));
      section.hidden = known.size === 0;
      if (section.hidden) return;
      const names = [...known.keys()];
      if (!known.has(state.run)) state.run = names[0];
      offer(runPicker, names, names.indexOf(state.run));
      const steps = known.get(state.run).probeSteps;
      const newest = steps[steps.length - 1];
      slider.max = steps.length - 1;
      if (state.step === null || (state.follows && state.step !== newest) || !steps.includes(state.step)) await show();
    },

    /** Forgets a run whose files are others now. */
    forget(run) {
      cached.delete(run);
      if (known.get(state.run) === run) [state.step, state.follows] = [null, true];
    },
  };
})();
