// The training history card: one sentence at each recorded training step.
// {sentences: [{prompt, steps: [{step, loss, tokens, patterns: [layer][head][query][key], next: [[{text, probability}]]}]}], notes}
"use strict";

const MAX_LINES = 4;
const probabilityOf = (snapshot, position, text) =>
  snapshot.next[position].find((token) => token.text === text)?.probability ?? 0;

// The current selection: the sentence's steps, the selected step, the step to compare with, layer and position.
function currentView(panel) {
  const { sentences } = source.history(panel),
    view = state.history;
  const { steps } = sentences[Math.min(view.sentence, sentences.length - 1)],
    last = steps.length - 1;
  const at = Math.min(view.at ?? last, last),
    now = steps[at],
    n = now.tokens.length;
  // If the sentence is the prompt, its tokens share the highlighting and the selected position.
  const isPrompt = now.tokens.every((text, position) => tokensOf(panel)[position]?.text === text);
  const position = Math.min((isPrompt ? state.position : view.position) ?? n - 1, n - 1);
  const beside = view.beside === null ? null : steps[Math.min(view.beside, last)];
  return {
    view,
    sentences,
    steps,
    at,
    now,
    beside,
    isPrompt,
    position,
    layer: Math.min(view.layer, now.patterns.length - 1),
  };
}

function historyBody(panel) {
  const { view, sentences, steps, at, now, isPrompt, position, layer } = currentView(panel);
  const change = (changes) => {
    Object.assign(view, changes);
    draw();
  };
  const numbered = (texts) => texts.map((text, i) => [i, text]);
  const choose = (label, texts, chosen, key, more) =>
    texts.length > 1 ? select(label, numbered(texts), chosen, (i) => change({ [key]: Number(i) }), more) : null;
  const tokenMenu = isPrompt
    ? select("token", numbered(now.tokens.map(printable)), position, (i) => selectPosition(Number(i)))
    : choose("token", now.tokens.map(printable), position, "position");
  const stepOptions = [["", "nothing"], ...steps.map((each, i) => [i, `step ${each.step}`])];
  const moving = h("div", { id: "moment" }, showSnapshot(panel));
  return [
    h(
      "div",
      { class: "choices" },
      choose(
        "sentence",
        sentences.map((sentence) => sentence.prompt),
        view.sentence,
        "sentence",
      ),
      choose(
        "layer",
        now.patterns.map((_, i) => `layer ${i + 1}`),
        layer,
        "layer",
      ),
      h("label", {}, "after ", tokenMenu),
      toggleButton(view.timer ? "Stop" : "Play", Boolean(view.timer), () => play(panel), { id: "play" }),
      h(
        "label",
        {},
        "beside ",
        select(
          "step to compare with",
          stepOptions,
          view.beside ?? "",
          (i) => change({ beside: i === "" ? null : Number(i) }),
          { id: "beside" },
        ),
      ),
    ),
    h("input", {
      type: "range",
      id: "slider",
      min: 0,
      max: steps.length - 1,
      value: at,
      "aria-label": "training step",
      // Redraws everything except the slider, so that it can be dragged.
      oninput: (e) => {
        view.at = Number(e.target.value);
        moving.replaceChildren(...flatten([showSnapshot(panel)]));
      },
    }),
    moving,
    source.history(panel).notes.map((note) => h("p", { class: "note" }, capitalize(`${note}.`))),
  ];
}

// Everything that changes with the slider.
function showSnapshot(panel) {
  const { steps, at, now, beside, position } = currentView(panel),
    last = steps[steps.length - 1];
  const texts = last.next[position].slice(0, MAX_LINES).map((token) => token.text);
  const side = (snapshot, other) =>
    h(
      "div",
      { class: "pane" },
      beside ? h("p", { class: "pane-title" }, `step ${snapshot.step}`) : null,
      snapshotBody(panel, snapshot, other),
    );
  return [
    h(
      "p",
      { class: "moment" },
      h("strong", {}, `step ${now.step}`),
      now.loss === null ? "" : `, loss ${now.loss.toFixed(4)}`,
    ),
    h("h3", {}, `Next-token probabilities after ${quoted(now.tokens[position])}, over training`),
    historyPlot(
      steps.map((each) => each.step),
      texts.map((text) => ({ name: printable(text), values: steps.map((each) => probabilityOf(each, position, text)) })),
      at,
      `probabilities of ${texts.map(printable).join(", ")} over ${steps.length} steps`,
    ),
    h("div", { class: beside ? "panes two" : "panes" }, beside ? side(beside, now) : null, side(now, beside)),
  ];
}

function snapshotBody(panel, snapshot, other) {
  const { layer, position, isPrompt } = currentView(panel);
  const heads = snapshot.patterns[layer],
    weightIn = (pattern) => (query, key) => (key > query ? null : pattern[query][key]);
  const chosen = Math.min(state.head, heads.length - 1);
  const pick = (head) => {
    state.head = head;
    draw();
  };
  const top = snapshot.next[position][0];
  return [
    heads.length > 4
      ? h(
          "div",
          { class: "choices heads" },
          heads.map((_, head) => toggleButton(`head ${head + 1}`, head === chosen, () => pick(head))),
        )
      : null,
    h(
      "div",
      { class: "gallery" },
      heads.map((pattern, head) =>
        heads.length > 4 && head !== chosen
          ? null
          : figure(
              heatmap(snapshot.tokens, weightIn(pattern), `attention weights of head ${head + 1} at step ${snapshot.step}`, {
                other: other && weightIn(other.patterns[layer][head]),
                links: isPrompt,
              }),
              joined(heads.length > 1 ? `head ${head + 1}` : "", "rows: query · columns: key · stronger colour = more attention"),
            ),
      ),
    ),
    bars(
      snapshot.next[position].map((token) => ({
        name: printable(token.text),
        value: token.probability,
        text: percent(token.probability),
        class: token !== top ? "" : other && other.next[position][0].text !== top.text ? "differs" : "chosen",
      })),
      1,
    ),
  ];
}

function play(panel) {
  const view = state.history,
    { steps } = currentView(panel);
  const stop = () => {
    clearInterval(view.timer);
    view.timer = null;
  };
  if (view.timer) {
    stop();
    draw();
    return;
  }
  let at = view.at === null || view.at >= steps.length - 1 ? -1 : view.at;
  view.timer = setInterval(
    () => {
      at += 1;
      view.at = at;
      if (at >= steps.length - 1 || (!state.all && cards[state.step]?.id !== "learning")) stop();
      draw();
    },
    Math.max(60, 4000 / steps.length),
  );
}
