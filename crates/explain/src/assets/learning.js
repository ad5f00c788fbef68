// The card that shows one sentence at each step of training that was kept.
// {sentences: [{prompt, steps: [{step, loss, tokens, patterns: [layer][head][query][key], next: [[{text, probability}]]}]}], notes}
"use strict";

const LINES = 4;
const chanceOf = (moment, position, text) =>
  moment.next[position].find((guess) => guess.text === text)?.probability ?? 0;

// What is chosen: the sentence's steps, the one that is looked at, the one beside it, layer and position.
function lesson(pane) {
  const { sentences } = source.learning(pane),
    view = state.learning;
  const { steps } = sentences[Math.min(view.sentence, sentences.length - 1)],
    last = steps.length - 1;
  const at = Math.min(view.at ?? last, last),
    now = steps[at],
    n = now.tokens.length;
  // Words light up, and are looked at closely, where the sentence is the prompt.
  const isPrompt = now.tokens.every((text, position) => tokensOf(pane)[position]?.text === text);
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

function learningBody(pane) {
  const { view, sentences, steps, at, now, isPrompt, position, layer } = lesson(pane);
  const change = (changes) => {
    Object.assign(view, changes);
    draw();
  };
  const numbered = (texts) => texts.map((text, i) => [i, text]);
  const choose = (label, texts, chosen, key, more) =>
    texts.length > 1 ? select(label, numbered(texts), chosen, (i) => change({ [key]: Number(i) }), more) : null;
  const looked = isPrompt
    ? select("word", numbered(now.tokens.map(visible)), position, (i) => lookClosely(Number(i)))
    : choose("word", now.tokens.map(visible), position, "position");
  const steady = [["", "nothing"], ...steps.map((moment, i) => [i, `step ${moment.step}`])];
  const moment = h("div", { id: "moment" }, showMoment(pane));
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
      h("label", {}, "after ", looked),
      toggle(view.timer ? "Stop" : "Play", Boolean(view.timer), () => play(pane), { id: "play" }),
      h(
        "label",
        {},
        "beside ",
        select(
          "step to compare with",
          steady,
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
      // The slider itself stays, so that it can be dragged.
      oninput: (e) => {
        view.at = Number(e.target.value);
        moment.replaceChildren(...flat([showMoment(pane)]));
      },
    }),
    moment,
    source.learning(pane).notes.map((note) => h("p", { class: "note" }, capital(`${note}.`))),
  ];
}

// All that moves with the slider.
function showMoment(pane) {
  const { steps, at, now, beside, position } = lesson(pane),
    last = steps[steps.length - 1];
  const words = last.next[position].slice(0, LINES).map((guess) => guess.text);
  const side = (moment, other) =>
    h(
      "div",
      { class: "pane" },
      beside ? h("p", { class: "pane-title" }, `step ${moment.step}`) : null,
      momentBody(pane, moment, other),
    );
  return [
    h(
      "p",
      { class: "moment" },
      h("strong", {}, `step ${now.step}`),
      now.loss === null ? "" : `, loss ${now.loss.toFixed(4)}`,
    ),
    h("h3", {}, `The next word after ${quoted(now.tokens[position])}, over training`),
    course(
      steps.map((moment) => moment.step),
      words.map((text) => ({ name: visible(text), values: steps.map((moment) => chanceOf(moment, position, text)) })),
      at,
      `percentages of ${words.map(visible).join(", ")} over ${steps.length} steps`,
    ),
    h("div", { class: beside ? "panes two" : "panes" }, beside ? side(beside, now) : null, side(now, beside)),
  ];
}

function momentBody(pane, moment, other) {
  const { layer, position, isPrompt } = lesson(pane);
  const heads = moment.patterns[layer],
    shareIn = (pattern) => (query, key) => (key > query ? null : pattern[query][key]);
  const chosen = Math.min(state.head, heads.length - 1);
  const pick = (head) => {
    state.head = head;
    draw();
  };
  const top = moment.next[position][0];
  return [
    heads.length > 4
      ? h(
          "div",
          { class: "choices heads" },
          heads.map((_, head) => toggle(`head ${head + 1}`, head === chosen, () => pick(head))),
        )
      : null,
    h(
      "div",
      { class: "gallery" },
      heads.map((pattern, head) =>
        heads.length > 4 && head !== chosen
          ? null
          : figure(
              shades(moment.tokens, shareIn(pattern), `percentages of head ${head + 1} at step ${moment.step}`, {
                other: other && shareIn(other.patterns[layer][head]),
                links: isPrompt,
              }),
              heads.length > 1 ? `head ${head + 1}` : "down: the word that asks · across: the word that answers",
            ),
      ),
    ),
    bars(
      moment.next[position].map((guess) => ({
        name: visible(guess.text),
        value: guess.probability,
        text: percent(guess.probability),
        class: guess !== top ? "" : other && other.next[position][0].text !== top.text ? "differs" : "chosen",
      })),
      1,
    ),
  ];
}

function play(pane) {
  const view = state.learning,
    { steps } = lesson(pane);
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
