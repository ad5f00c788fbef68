// The page: its state, the list of cards, and drawing them.
"use strict";

// With more layers, the view of all steps shows one layer at a time.
const MANY_LAYERS = 4;
const state = {
  panes: (data.panes || []).map((pane) => new Pane(pane)),
  step: 0,
  all: false,
  head: 0,
  layer: 0,
  position: null,
  decimals: 2,
  open: new Set(),
  trail: [],
  edits: noEdits(),
  outcome: null,
  learning: { sentence: 0, at: null, beside: null, layer: 0, position: null, timer: null },
};
let cards = [];

// The stretch of the way that a step belongs to, in StatQuest's words where there is but one layer.
function phaseOf(step, config) {
  const isInput = step.op.kind === "add" && step.op.a === "hook_embed";
  if (step.layer !== null && !isInput) {
    if (config.n_layers > 1) return `layer ${step.layer + 1}`;
    return config.feed_forward === "none" ? "masked self-attention" : "the layer";
  }
  return step.axes.includes("token") || step.name.startsWith("ln_final") ? "output" : "words";
}
const partOf = ({ name, layer }) =>
  layer === null ? "" : /\.mlp\.|mlp_|\.ln2\.|resid_post/.test(name) ? "feed-forward" : "attention";

// The steps of all panes in order; what only the second has stands behind what came before it there.
function allSteps() {
  const all = [...state.panes[0].story.steps];
  let after = -1;
  for (const step of state.panes[1]?.story.steps ?? []) {
    const at = all.findIndex((other) => other.name === step.name);
    if (at >= 0) after = at;
    else all.splice(++after, 0, step);
  }
  return all;
}

function list() {
  const { story } = state.panes[0],
    many = story.config.n_layers > 1,
    found = [];
  const add = (phase, id, title, term, words, body, more = {}) =>
    found.push({ phase, id, title, term, words, body, layer: null, ...more });
  const first = (body) => (pane) => (pane === state.panes[0] ? body(pane) : null);
  add(
    "words",
    "words",
    "the words",
    "tokens",
    "The text is cut into pieces that the model knows, each with a number: its id.",
    tokensBody,
  );
  for (const step of allSteps()) {
    const alone = step.op.kind === "join" && !step.op.weight && story.config.n_heads === 1;
    if (step.op.kind === "copy" || alone || step.name === "logits_before_cap") continue;
    add(
      phaseOf(step, story.config),
      step.name,
      step.title,
      step.term,
      step.words,
      (pane) => (pane.byName.has(step.name) ? stepBody(pane, pane.byName.get(step.name)) : null),
      {
        formula: step.formula,
        part: many ? partOf(step) : "",
        layer: many ? step.layer : null,
        heads: step.axes[0] === "head" ? step.shape[0] : 0,
        pictured: step.axes.includes("key") && step.op.kind === "softmax",
      },
    );
  }
  add(
    "next word",
    "next",
    "the next words",
    "next-token predictions, surprisal",
    "The model guesses after every word, those of the prompt too: in training it learns from all of them at once.",
    nextWordsBody,
  );
  const answers = state.panes.map((pane) => pane.story.answer);
  range(Math.max(...answers.map((answer) => answer.length))).forEach((n) =>
    add(
      "next word",
      `answer-${n}`,
      `next word: ${[...new Set(answers.filter((answer) => answer[n]).map((answer) => visible(answer[n].token.text)))].join(" or ")}`,
      "sampling",
      "From percentages to one word.",
      (pane) => (pane.story.answer[n] ? answerBody(pane, pane.story.answer[n]) : null),
    ),
  );
  add(
    "a closer look",
    "contributions",
    "who spoke for it",
    "direct logit attribution",
    "The chosen word's output value is a sum; each part comes from one place in the model.",
    contributionsBody,
  );
  add(
    "a closer look",
    "lens",
    "guesses on the way",
    "logit lens",
    "How the answer forms from layer to layer.",
    lensBody,
  );
  add(
    "a closer look",
    "what-if",
    "what if?",
    "intervention, ablation",
    "Change a word, switch off a head or edit a number of an embedding, and see the next word's percentages move.",
    first(whatIfBody),
  );
  if (source.learning(state.panes[0])?.sentences.length)
    add(
      "a closer look",
      "learning",
      "watch it learn",
      "training dynamics",
      "The same sentence at each step of training that was kept.",
      first(learningBody),
    );
  add(
    "a closer look",
    "verdict",
    "is it true?",
    "verification",
    "Every number was computed a second time, by other code, from the weights and token ids.",
    verdictBody,
  );
  return found;
}

const paneTitle = ({ story }) =>
  `${story.model.name || "a model"}, step ${story.model.step.toLocaleString("en")}: “${story.prompt}”`;
const isShown = (card) =>
  state.panes[0].story.config.n_layers <= MANY_LAYERS || card.layer === null || card.layer === state.layer;

function cardOf(card, number) {
  const picks = card.heads > 1 && !card.pictured;
  const next = cards[number + 1];
  return h(
    "section",
    { class: "card", id: `step-${number + 1}`, "aria-labelledby": `title-${number}` },
    h(
      "p",
      { class: "kicker" },
      h("span", {}, card.part ? `${card.phase} · ${card.part}` : card.phase),
      h(
        "button",
        { type: "button", class: "copy", title: "this card's numbers, for a spreadsheet", onclick: copy },
        "copy",
      ),
    ),
    h("h2", { id: `title-${number}` }, capital(card.title)),
    h("p", { class: "term" }, card.term),
    h("p", {}, card.words),
    card.formula ? h("p", {}, h("span", { class: "formula" }, card.formula)) : null,
    picks
      ? h(
          "div",
          { class: "choices heads", role: "group", "aria-label": "head" },
          range(state.panes[0].story.config.n_heads).map((head) =>
            toggle(`head ${head + 1}`, head === state.head, () => {
              state.head = head;
              draw();
            }),
          ),
        )
      : null,
    h(
      "div",
      { class: state.panes.length > 1 ? "panes two" : "panes" },
      state.panes.map((pane) => {
        const body = card.body(pane);
        return body
          ? h(
              "div",
              { class: "pane" },
              state.panes.length > 1 ? h("p", { class: "pane-title" }, paneTitle(pane)) : null,
              body,
            )
          : null;
      }),
    ),
    state.all || !next
      ? null
      : h(
          "p",
          { class: "onward" },
          h(
            "button",
            { type: "button", class: "primary", onclick: () => go(number + 1, true) },
            `Next: ${next.title} →`,
          ),
        ),
  );
}

// The numbers of a card, tables one below the other, columns by tabs.
async function copy(event) {
  const button = event.currentTarget;
  const rows = [...button.closest(".card").querySelectorAll("tr")].map((row) =>
    [...row.children].map((cell) => cell.textContent.replace("−", "-")).join("\t"),
  );
  await navigator.clipboard.writeText(rows.join("\n")).then(
    () => (button.textContent = "copied"),
    () => (button.textContent = "not allowed here"),
  );
}

// Where the focus is, as steps down from the element that is drawn anew.
function focusPath() {
  const path = [];
  for (let at = document.activeElement; at && at !== document.body; at = at.parentElement) {
    path.unshift([...at.parentElement.children].indexOf(at));
    if (at.parentElement.id) return { root: at.parentElement.id, path, tag: document.activeElement.tagName };
  }
  return null;
}
function refocus(found) {
  let at = found && $(found.root);
  for (const n of found?.path ?? []) at = at?.children[n];
  if (at && at.tagName === found.tag && at !== document.activeElement) at.focus({ preventScroll: true });
}

function draw() {
  if (!state.panes.length) return;
  const focus = focusPath(),
    scroll = window.scrollY;
  cards = list();
  state.step = Math.max(0, Math.min(state.step, cards.length - 1));
  state.layer = cards[state.step].layer ?? state.layer;
  document.body.classList.toggle("comparing", state.panes.length > 1);
  fill(
    "cards",
    state.all
      ? cards.map((card, i) => (isShown(card) ? cardOf(card, i) : null))
      : cardOf(cards[state.step], state.step),
  );
  document.querySelectorAll(".looks").forEach((each) => {
    each.parentElement.scrollLeft =
      each.querySelector(".asks.chosen").getAttribute("x") - each.parentElement.clientWidth / 2;
  });
  document.querySelectorAll("#cards table").forEach((each) => each.querySelector("td.n")?.setAttribute("tabindex", 0));
  drawHead();
  drawBar();
  drawWhy();
  refocus(focus);
  window.scrollTo(0, scroll);
  remember();
}

// To another step, whose beginning is brought into view.
function go(step, toCard = false) {
  state.step = Math.max(0, Math.min(step, cards.length - 1));
  draw();
  const top = $("layout").offsetTop - $("bar").offsetHeight - 8;
  if (state.all) $(`step-${state.step + 1}`)?.scrollIntoView();
  else if (window.scrollY > top) window.scrollTo(0, top);
  if (toCard) $("cards").focus({ preventScroll: true });
}
function lookClosely(position) {
  state.position = position;
  draw();
}

// What is worth pointing out, folded where it is much.
function notesBody(notes) {
  const listed = notes.map((note) => h("p", { class: "note" }, capital(`${note}.`)));
  if (notes.length <= 2) return listed.length ? h("div", { class: "notes" }, listed) : null;
  return h("details", { class: "notes" }, h("summary", {}, `${notes.length} things to notice`), listed);
}

const titles = (words) =>
  h("div", { class: "titles" }, h("h1", {}, "From word to next word"), h("p", { class: "soft" }, words));

function drawHead() {
  const { story } = state.panes[0],
    verified = state.panes.every((pane) => pane.story.verdict.verified),
    many = story.config.n_layers > MANY_LAYERS;
  const largest = Math.max(
    ...state.panes.flatMap((pane) => pane.story.verdict.differences.map((d) => d.largest ?? Infinity)),
  );
  document.title = `${story.model.name || "nextword"}: ${story.prompt}`;
  fill(
    "header",
    titles(
      `${story.model.name || "a model"}, step ${story.model.step.toLocaleString("en")}, ${story.model.parameters.toLocaleString("en")} parameters`,
    ),
    h(
      "div",
      { class: "options" },
      h(
        "button",
        { type: "button", class: `badge${verified ? "" : " bad"}`, onclick: () => go(cards.length - 1) },
        verified ? ["✓ ", h("span", {}, "verified to "), largest.toExponential(1)] : "✗ not verified",
      ),
      h(
        "label",
        {},
        h("span", {}, "decimals "),
        select(
          "decimals",
          [2, 4, 9].map((n) => [n, n]),
          state.decimals,
          (n) => {
            state.decimals = Number(n);
            draw();
          },
        ),
      ),
      many && state.all
        ? h(
            "label",
            {},
            "layer ",
            select(
              "layer",
              range(story.config.n_layers).map((n) => [n, n + 1]),
              state.layer,
              (n) => {
                const twin = cards.findIndex((card) => card.layer === Number(n));
                state.layer = Number(n);
                go(twin);
              },
              { id: "layer" },
            ),
          )
        : null,
      h(
        "div",
        { class: "segments", role: "group", "aria-label": "view" },
        toggle(
          "One step",
          !state.all,
          () => {
            state.all = false;
            draw();
          },
          { id: "one" },
        ),
        toggle(
          "All steps",
          state.all,
          () => {
            state.all = true;
            draw();
          },
          { id: "all" },
        ),
      ),
    ),
    notesBody(
      state.panes.flatMap((pane) =>
        pane.story.notes
          .filter((note) => !source.isLive || !note.includes("--layer"))
          .map((note) => (state.panes.length > 1 ? `${paneTitle(pane)}: ${note}` : note)),
      ),
    ),
  );
  fill(
    "footer",
    `Keys: ← → steps, a all or one, arrows within a table, Enter on a number shows where it comes from, Esc closes it. Made by nextword ${story.model.version}${
      source.isLive ? "." : "; this page needs no connection."
    }`,
  );
}

function drawBar() {
  const texts = cards.map((card, i) => [
    i,
    `${i + 1}. ${card.layer === null ? "" : `L${card.layer + 1} `}${card.title}`,
  ]);
  const phases = [...new Set(cards.map((card) => card.phase))];
  fill(
    "bar",
    state.panes.map((pane) =>
      h(
        "div",
        { class: "words" },
        tokensOf(pane).map((t) =>
          h(
            "button",
            {
              type: "button",
              class: `word${t.from === "answer" ? " answer" : ""}`,
              "data-p": t.position,
              "aria-pressed": t.position === closely(pane),
              title: `position ${t.position}; choose it to look at it closely`,
              onclick: () => lookClosely(t.position),
            },
            visible(t.text),
            h("small", {}, `${t.position}`),
          ),
        ),
        h("span", { class: "soft", "aria-hidden": "true" }, "→"),
        pane.story.answer.slice(-1).map((a) => h("span", { class: "word answer last" }, visible(a.token.text))),
      ),
    ),
    h(
      "div",
      { class: "steps" },
      h(
        "button",
        { type: "button", id: "back", disabled: state.step === 0, onclick: () => go(state.step - 1) },
        "← Back",
      ),
      select("go to a step", texts, state.step, (i) => go(Number(i)), { id: "jump" }),
      h("span", { id: "count" }, `${state.step + 1} of ${cards.length}`),
      h(
        "button",
        {
          type: "button",
          id: "forward",
          class: "primary",
          disabled: state.step === cards.length - 1,
          onclick: () => go(state.step + 1),
        },
        "Next →",
      ),
    ),
    h(
      "div",
      { class: "map", "aria-hidden": "true" },
      phases.map((phase) =>
        h(
          "div",
          { class: "phase", style: `flex-grow:${cards.filter((card) => card.phase === phase).length}` },
          h(
            "div",
            { class: "ticks" },
            cards.map((card, i) =>
              card.phase === phase
                ? h("span", {
                    class: i === state.step ? "here" : i < state.step ? "past" : "",
                    title: capital(card.title),
                    onclick: () => go(i),
                  })
                : null,
            ),
          ),
          h("span", { class: "phase-name" }, phase),
        ),
      ),
    ),
  );
  document.querySelectorAll("#bar .words").forEach((words) => {
    const pressed = words.querySelector("[aria-pressed=true]");
    if (pressed) words.scrollLeft = Math.max(0, pressed.offsetLeft - words.offsetLeft - words.clientWidth / 2);
  });
}
