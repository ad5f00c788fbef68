// The page: its state, the list of cards, and drawing them.
"use strict";

// With more layers than this, the view of all steps shows one layer at a time.
const MAX_LAYERS_AT_ONCE = 4;
const state = {
  panels: (data.panes || []).reduce((all, panel) => [...all, new Panel(panel, all[0])], []),
  step: 0,
  all: false,
  head: 0,
  layer: 0,
  position: null,
  source: null, // the selected token of the encoder's input
  decimals: 2,
  open: new Set(),
  trail: [],
  edits: noEdits(),
  edited: 0, // the panel that the edits change
  outcome: null,
  history: { sentence: 0, at: null, beside: null, layer: 0, position: null, timer: null },
};
let cards = [];

// The largest number of layers and of heads of the models that the panels show.
const encoderLayers = ({ config }) => (config.architecture === "encoder_decoder" ? (config.n_encoder_layers ?? config.n_layers) : 0);
const layerCount = () => Math.max(...state.panels.map(({ story }) => Math.max(story.config.n_layers, encoderLayers(story))));
const headCount = () => Math.max(...state.panels.map(({ story }) => story.config.n_heads));

// What cards say that depends on what the model predicts, and from what.
function architectureTexts(architecture) {
  const isMasked = architecture === "encoder",
    isPrefix = architecture === "prefix",
    hasEncoder = architecture === "encoder_decoder";
  return {
    subtitle: isMasked ? "what stands at the blank?" : "from word to next word",
    overview: isMasked
      ? "An encoder reads the whole text at once and predicts the tokens that are masked. This is the prediction, and the whole model that makes it."
      : hasEncoder
        ? "An encoder reads the input, and a decoder writes the output, one token after another. This is the first one, and the whole model that predicts it."
        : "A language model predicts one token after another. This is the prediction after the prompt, and the whole model that makes it.",
    phase: isMasked ? "masked token" : "next token",
    predictions: isMasked ? "predictions at every position" : "next-token predictions",
    everyPosition: isMasked
      ? "The model predicts the token of every position. Only the masked ones are a question: the others it can see."
      : hasEncoder
        ? "The decoder predicts the next token of the output at every position: training uses all of them at once."
        : isPrefix
          ? "The model predicts the next token at every position. Within the prompt this is not a question: its tokens see the ones that follow."
        : "The model predicts the next token at every position, also within the prompt: training can use all of them at once.",
    whyEveryPosition: isMasked
      ? "In training some tokens are hidden, and the loss counts these alone: to see the answer would be no exercise."
      : isPrefix
        ? "Grading all positions of the output at once makes training fast. The prompt is not graded: each of its tokens would see the one that it has to predict."
      : "Grading all positions at once makes training fast: a text of 100 tokens is 99 exercises. The mask makes this fair, since no position sees what it has to predict.",
    whyToken: isMasked
      ? "All blanks are filled at once: none knows what is in another one."
      : "The chosen token is appended to the text, and the model runs again: this is how it writes more than one token.",
    stacks: hasEncoder
      ? "This is a normal Transformer, as the first one was: an encoder and a decoder. Decoder-only models need only one stack."
      : "The first Transformer had two stacks, an encoder and a decoder. Models like this one need only one of them.",
    whyStacks: hasEncoder
      ? "With two stacks, the whole input can be read in both directions before the first word of the output is written."
      : isMasked
        ? "One stack that reads in both directions understands a text that is there already, but cannot write one."
        : "One stack with masked self-attention learns from any text, in one simple task: predict the next token.",
  };
}

// The phase of a step, as shown in the progress map.
function phaseOf(step, config) {
  const isInput = step.op.kind === "add" && step.op.a.endsWith("hook_embed");
  if (step.name.startsWith("encoder."))
    return step.layer === null || isInput || layerCount() === 1 ? "encoder" : `encoder layer ${step.layer + 1}`;
  if (step.layer !== null && !isInput) {
    if (layerCount() > 1) return `layer ${step.layer + 1}`;
    if (attentionOf(step) === "cross" || /cross/.test(step.name)) return "cross-attention";
    const isMasked = config.architecture === undefined || config.architecture === "encoder_decoder";
    return config.feed_forward === "none" ? (isMasked ? "masked self-attention" : "self-attention") : "layer 1";
  }
  return step.axes.includes("token") || /^(ln_final|mlm_head)/.test(step.name) ? "output" : "input";
}
const partOf = ({ name, layer }) =>
  layer === null ? "" : /cross/.test(name) ? "cross-attention" : /\.mlp\.|mlp_|\.ln2\.|resid_post/.test(name) ? "feed-forward" : "attention";

// The steps of all panels in order. A step that only the second panel has
// comes after the step that precedes it there.
function allSteps() {
  const all = [...state.panels[0].story.steps];
  let after = -1;
  for (const step of state.panels[1]?.story.steps ?? []) {
    const at = all.findIndex((other) => other.name === step.name);
    if (at >= 0) after = at;
    else all.splice(++after, 0, step);
  }
  return all;
}

function listCards() {
  const { story } = state.panels[0],
    texts = architectureTexts(story.config.architecture),
    hasLayers = layerCount() > 1,
    listed = [];
  const add = (phase, id, title, term, purpose, body, more = {}) =>
    listed.push({ phase, id, title, term, purpose, body, layer: null, ...more });
  const firstPanelOnly = (body) => (panel) => (panel === state.panels[0] ? body(panel) : null);
  const editedPanelOnly = (body) => (panel) => (panel === state.panels[state.edited] ? body(panel) : null);
  add(
    "overview",
    "overview",
    "the prediction",
    texts.subtitle,
    texts.overview,
    overviewBody,
  );
  add(
    "input",
    "words",
    "tokens",
    "StatQuest: words",
    "The tokenizer splits the text into tokens of the vocabulary, each with an id.",
    tokensBody,
    { why: "A model computes with numbers, and its vocabulary is limited. Ids say which row of the embedding table belongs to a token." },
  );
  for (const step of allSteps()) {
    const isSingleHead = step.op.kind === "join" && !step.op.weight && headCount() === 1;
    if (step.op.kind === "copy" || isSingleHead || step.name === "logits_before_cap") continue;
    add(
      phaseOf(step, story.config),
      step.name,
      step.title,
      step.term,
      step.words,
      (panel) => (panel.byName.has(step.name) ? stepBody(panel, panel.byName.get(step.name)) : null),
      {
        formula: step.formula,
        why: step.why,
        part: hasLayers ? partOf(step) : "",
        layer: hasLayers ? step.layer : null,
        heads: step.axes[0] === "head" ? Math.max(...state.panels.map((panel) => panel.byName.get(step.name)?.shape[0] ?? 0)) : 0,
        hasGallery: step.axes.includes("key") && step.op.kind === "softmax",
      },
    );
  }
  add(
    texts.phase,
    "next",
    texts.predictions,
    "predictions and surprisal at every position",
    texts.everyPosition,
    predictionsBody,
    { why: texts.whyEveryPosition },
  );
  const completions = state.panels.map((panel) => panel.story.answer);
  range(Math.max(...completions.map((completion) => completion.length))).forEach((n) =>
    add(
      texts.phase,
      `answer-${n}`,
      `${texts.phase}: ${[...new Set(completions.filter((completion) => completion[n]).map((completion) => printable(completion[n].token.text)))].join(" or ")}`,
      "sampling",
      "From probabilities to one token.",
      (panel) => (panel.story.answer[n] ? sampledTokenBody(panel, panel.story.answer[n]) : null),
      { why: texts.whyToken },
    ),
  );
  if (state.panels.some((panel) => panel.story.adapter))
    add(
      "a closer look",
      "adapter",
      "base and tuned",
      "what the adapter changes",
      "The base model is unchanged; an adapter adds a low-rank update to some of its layers. This is what the additions do to the prediction.",
      adapterBody,
      { why: "Finetuning starts from a model that already knows the language. A small addition teaches it a task or a style, and without the addition the base model is back." },
    );
  add(
    "a closer look",
    "contributions",
    "direct logit attribution",
    "what pushed the model towards each generated token",
    "The logit of a token is a sum, with one part for each component of the model.",
    contributionsBody,
  );
  add(
    "a closer look",
    "lens",
    "logit lens",
    "predictions on the way",
    "How the prediction forms from layer to layer.",
    lensBody,
  );
  add(
    "a closer look",
    "what-if",
    "what if?",
    "intervention, ablation",
    "Replace a token, switch off a head, remove a part of the model or edit an embedding, and see how the next-token probabilities change.",
    editedPanelOnly(whatIfBody),
    { why: "What a part is good for shows when it is missing. Everything is recomputed in 64-bit floats." },
  );
  add(
    "a closer look",
    "training-step",
    "training step",
    "loss, gradient, one step of gradient descent",
    "How the weights were found: the loss says how wrong a prediction was, and its gradient how each weight should change.",
    trainingBody,
    { why: "No one writes the weights by hand. Thousands of such small steps make probable what the training texts say." },
  );
  if (source.history(state.panels[0])?.sentences.length)
    add(
      "a closer look",
      "learning",
      "training history",
      "watch it learn",
      "Attention and predictions for the same sentence at each recorded training step.",
      firstPanelOnly(historyBody),
    );
  add(
    "a closer look",
    "architectures",
    "decoder-only or encoder-decoder",
    "StatQuest: decoder-only against normal Transformers",
    texts.stacks,
    comparesModels() ? architecturesBody : firstPanelOnly(architecturesBody),
    { why: texts.whyStacks },
  );
  add(
    "a closer look",
    "verdict",
    "verification",
    "is it true?",
    "Every value was computed a second time, by independent code, from the weights and token ids.",
    verificationBody,
  );
  return listed;
}

const modelTitle = ({ story }) => `${story.model.name || "a model"}, step ${story.model.step.toLocaleString("en")}`;
const panelTitle = (panel) => {
  const { prompt, unknown } = panel.story,
    without = unknown.length ? ` without ${unknown.map(quoted).join(", ")}` : "";
  return `${modelTitle(panel)}: “${prompt}”${without}`;
};
const isShown = (card) =>
  layerCount() <= MAX_LAYERS_AT_ONCE || card.layer === null || card.layer === state.layer;

function cardOf(card, number) {
  const built = h(
    "div",
    { class: state.panels.length > 1 ? "panes two" : "panes" },
    state.panels.map((panel) => {
      const body = card.body(panel);
      return body
        ? h(
            "div",
            { class: "pane" },
            state.panels.length > 1 ? h("p", { class: "pane-title" }, panelTitle(panel)) : null,
            body,
          )
        : null;
    }),
  );
  const picks = card.heads > 1;
  const next = cards[number + 1];
  // The same step in the layers above and below.
  const inLayer = (layer) => cards.findIndex((other) => other.id === card.id.replace(/^(encoder\.)?blocks\.\d+/, `$1blocks.${layer}`));
  const layerButton = (layer, text) =>
    card.layer !== null && layer >= 0 && inLayer(layer) >= 0
      ? h("button", { type: "button", "data-layer": layer, onclick: () => go(inLayer(layer), true) }, text)
      : null;
  return h(
    "section",
    { class: "card", id: `step-${number + 1}`, "aria-labelledby": `title-${number}` },
    h(
      "p",
      { class: "kicker" },
      h("span", {}, card.part ? `${card.phase} of ${layerCount()} · ${card.part}` : card.phase),
      // Values that still have to arrive can be copied later.
      valueRows(built).length || built.querySelector("[aria-busy]")
        ? h(
            "button",
            { type: "button", class: "copy", title: "copy this card's values for a spreadsheet", onclick: copy },
            "copy",
          )
        : null,
    ),
    h("h2", { id: `title-${number}` }, capitalize(card.title)),
    h("p", { class: "term" }, card.term),
    h("p", {}, card.purpose),
    card.why ? h("p", { class: "reason" }, h("strong", {}, "Why? "), card.why) : null,
    card.formula ? h("p", {}, h("span", { class: "formula" }, card.formula)) : null,
    picks
      ? h(
          "div",
          { class: "choices heads", role: "group", "aria-label": "head" },
          range(headCount()).map((head) =>
            toggleButton(`head ${head + 1}`, head === state.head, () => {
              state.head = head;
              draw();
            }),
          ),
        )
      : null,
    built,
    h(
      "p",
      { class: "onward" },
      state.all || !next
        ? null
        : h(
            "button",
            { type: "button", class: "primary", onclick: () => go(number + 1, true) },
            `Next: ${next.title} →`,
          ),
      card.layer === null ? null : layerButton(card.layer + 1, `Same step in layer ${card.layer + 2} ↑`),
      card.layer === null ? null : layerButton(card.layer - 1, `Same step in layer ${card.layer} ↓`),
    ),
    state.all || !isInMap(card)
      ? null
      : h(
          "details",
          { class: "map-inline", open: state.open.has("map"), ontoggle: (e) => (e.target.open ? state.open.add("map") : state.open.delete("map")) },
          h("summary", {}, "Where in the model is this?"),
          mapCaption() ? h("p", { class: "soft" }, mapCaption()) : null,
          modelMap(),
        ),
  );
}

// The values of a card, row by row with tab-separated columns: of its tables, bars and lists of values, with the
// headings before them, and of the heat maps of a card without a table.
function valueRows(body) {
  const textOf = (cell) => cell.textContent.replaceAll("−", "-").replace(/\s*\n\s*/g, " ");
  const inRowsOf = (children, count, texts) =>
    range(children.length / count).map((n) => texts(children.slice(n * count, (n + 1) * count)).join("\t"));
  const hasTable = Boolean(body.querySelector("table")),
    rows = [];
  let headings = [];
  for (const each of body.querySelectorAll("h3, .pane-title, tr, .bars, .gradient, .picture")) {
    const children = [...each.children];
    let found = [];
    if (each.matches("h3, .pane-title")) headings.push(textOf(each));
    else if (each.matches("tr")) found = [children.map(textOf).join("\t")];
    else if (each.matches(".bars")) found = inRowsOf(children, 3, ([name, , amount]) => [name, amount].map(textOf));
    else if (each.matches(".gradient")) found = inRowsOf(children, 2, ([label, value]) => [label.firstChild, value].map(textOf));
    else if (each.matches(".picture") && !hasTable) found = heatmapRows(children, Number(each.dataset.columns));
    if (found.length) {
      rows.push(...headings, ...found);
      headings = [];
    }
  }
  return rows;
}
// The rows of a heat map: its tokens, if they are shown, and its weights.
function heatmapRows(cells, columns) {
  const textOf = (cell) => (cell.tagName === "SPAN" ? cell.textContent : cell.style.getPropertyValue("--tint"));
  return range(cells.length / columns).map((n) => cells.slice(n * columns, (n + 1) * columns).map(textOf).join("\t"));
}

// Copies the values of a card to the clipboard.
async function copy(event) {
  const button = event.currentTarget,
    rows = valueRows(button.closest(".card").querySelector(".panes"));
  try {
    await navigator.clipboard.writeText(rows.join("\n"));
    button.textContent = rows.length ? "copied" : "nothing to copy yet";
  } catch {
    button.textContent = "copying was blocked"; // Also where the page is not served securely.
  }
}

// The path to the focused element, which is restored after drawing.
function focusPath() {
  const path = [];
  for (let at = document.activeElement; at && at !== document.body; at = at.parentElement) {
    path.unshift([...at.parentElement.children].indexOf(at));
    if (at.parentElement.id) return { root: at.parentElement.id, path, tag: document.activeElement.tagName };
  }
  return null;
}
function refocus(saved) {
  let at = saved && $(saved.root);
  for (const n of saved?.path ?? []) at = at?.children[n];
  if (at && at.tagName === saved.tag && at !== document.activeElement) at.focus({ preventScroll: true });
}

function draw() {
  if (!state.panels.length) return;
  const focus = focusPath(),
    scroll = window.scrollY;
  cards = listCards();
  state.step = Math.max(0, Math.min(state.step, cards.length - 1));
  state.layer = cards[state.step].layer ?? state.layer;
  document.body.classList.toggle("comparing", state.panels.length > 1);
  setChildren(
    "cards",
    state.all
      ? cards.map((card, i) => (isShown(card) ? cardOf(card, i) : null))
      : cardOf(cards[state.step], state.step),
  );
  document.querySelectorAll(".looks").forEach((each) => {
    each.parentElement.scrollLeft =
      each.querySelector(".query.chosen").getAttribute("x") - each.parentElement.clientWidth / 2;
  });
  markOverflow();
  document.querySelectorAll("#cards table").forEach((each) => each.querySelector("td.n")?.setAttribute("tabindex", 0));
  drawHeader();
  drawBar();
  drawWhy();
  refocus(focus);
  window.scrollTo(0, scroll);
  saveLink();
}

// Makes the cells of tables that are too wide smaller, and marks tables and lists that are wider than the screen even
// then, so that a hint says that they scroll.
function markOverflow() {
  const tables = [...document.querySelectorAll(".scroll:has(> table)")];
  tables.forEach((each) => each.classList.remove("tight", "tighter", "overflows"));
  for (const size of ["tight", "tighter"])
    tables.filter((each) => each.scrollWidth - each.clientWidth > 1).forEach((each) => each.classList.add(size));
  document.querySelectorAll(".scroll, .words, .picture").forEach((each) => {
    const mark = () => {
      const rest = each.scrollWidth - each.clientWidth;
      each.classList.toggle("overflows", rest > 1);
      each.classList.toggle("at-end", rest - each.scrollLeft <= 2);
      each.classList.toggle("scrolled", each.scrollLeft > 2);
    };
    mark();
    each.onscroll = mark;
  });
}
window.addEventListener("resize", markOverflow);

// Goes to another step and scrolls to its top.
function go(step, toCard = false) {
  const target = Math.max(0, Math.min(step, cards.length - 1));
  if (target !== state.step) state.trail = []; // The derivation belongs to the card before.
  state.step = target;
  draw();
  const top = $("layout").offsetTop - $("bar").offsetHeight - 8;
  if (state.all) $(`step-${state.step + 1}`)?.scrollIntoView();
  else if (window.scrollY > top) window.scrollTo(0, top);
  if (toCard) $("cards").focus({ preventScroll: true });
}
function selectPosition(position) {
  state.position = position;
  draw();
}
function selectSource(position) {
  state.source = position;
  draw();
}

// The notes; collapsed if there are many.
function notesBody(notes) {
  const listed = notes.map((note) => h("p", { class: "note" }, note));
  if (notes.length <= 2) return listed.length ? h("div", { class: "notes" }, listed) : null;
  return h("details", { class: "notes" }, h("summary", {}, `${notes.length} notes`), listed);
}

// The head of every page of nextword: its name, and the other pages of a server.
const PAGES = [["Home", "/"], ["Explain", "/explain"], ["API", "/openapi.json"], ["Metrics", "/metrics"]];
const siteHead = () =>
  h(
    "div",
    { class: "site" },
    source.isLive ? h("a", { class: "brand", href: "/" }, "nextword") : h("span", { class: "brand" }, "nextword"),
    source.isLive
      ? h("nav", { "aria-label": "Pages" }, PAGES.map(([name, href]) => h("a", { href, "aria-current": href === "/explain" ? "page" : null }, name)))
      : null,
  );
const titles = (subtitle) => [
  siteHead(),
  h("div", { class: "titles" }, h("h1", {}, "From word to next word"), h("p", { class: "soft" }, subtitle)),
];

function drawHeader() {
  const { story } = state.panels[0],
    verified = state.panels.every((panel) => panel.story.verdict.verified),
    hasLayerMenu = layerCount() > MAX_LAYERS_AT_ONCE;
  const largest = Math.max(
    ...state.panels.flatMap((panel) => panel.story.verdict.differences.map((d) => d.largest ?? Infinity)),
  );
  document.title = `${story.model.name || "nextword"}: ${story.prompt}`;
  setChildren(
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
      source.history(state.panels[0])?.sentences.length
        ? h("button", { type: "button", id: "history", onclick: () => go(cards.findIndex((card) => card.id === "learning"), true) }, "Training history")
        : null,
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
      hasLayerMenu && state.all
        ? h(
            "label",
            {},
            "layer ",
            select(
              "layer",
              range(layerCount()).map((n) => [n, n + 1]),
              state.layer,
              (n) => {
                const firstCard = cards.findIndex((card) => card.layer === Number(n));
                state.layer = Number(n);
                go(firstCard);
              },
              { id: "layer" },
            ),
          )
        : null,
      h(
        "div",
        { class: "segments", role: "group", "aria-label": "view" },
        toggleButton(
          "One step",
          !state.all,
          () => {
            state.all = false;
            go(state.step);
          },
          { id: "one" },
        ),
        toggleButton(
          "All steps",
          state.all,
          () => {
            state.all = true;
            go(state.step);
          },
          { id: "all" },
        ),
      ),
    ),
    notesBody(
      state.panels.flatMap((panel) =>
        panel.story.notes
          .filter((note) => !source.isLive || !note.includes("--layer"))
          .concat(recomputedNote(panel))
          .map((note) => (state.panels.length > 1 ? `${panelTitle(panel)}: ${note}.` : capitalize(`${note}.`))),
      ),
    ),
  );
  setChildren(
    "footer",
    `Keys: ←/→ change step, A toggles all steps, arrow keys move within a table, Enter shows the formula of a value, Esc closes it. Made by nextword ${story.model.version}${
      source.isLive ? "." : "; this page works offline."
    }`,
  );
}

// Long prompts: values that the page leaves out and computes when they are shown.
const recomputedNote = (panel) =>
  panel.isShortened
    ? [
        "to stay small, this page computes its values from the weights, in 64-bit floats; they are those of the program up to the difference that the verification states",
      ]
    : [];

// A token in the bar; a click selects it.
function wordButton(panel, token, input) {
  const isSource = input === "source",
    chosen = selectedRow(panel, { rows: input });
  return h(
    "button",
    {
      type: "button",
      class: `word${token.from === "answer" ? " answer" : ""}`,
      "data-p": markOf(input, token.position),
      "aria-pressed": token.position === chosen,
      title: `position ${token.position}${isSource ? " of the input" : ""}; click to select it`,
      onclick: () => (isSource ? selectSource : selectPosition)(token.position),
    },
    printable(token.text),
    h("small", {}, `${token.position}`),
  );
}

function drawBar() {
  const texts = cards.map((card, i) => [
    i,
    `${i + 1}. ${card.layer === null ? "" : `L${card.layer + 1} `}${card.title}`,
  ]);
  const phases = [...new Set(cards.map((card) => card.phase))];
  setChildren(
    "bar",
    state.panels.map((panel) =>
      h(
        "div",
        { class: tokensOf(panel).length + sourceOf(panel).length > 16 ? "words many" : "words" },
        sourceOf(panel).map((t) => wordButton(panel, t, "source")),
        hasSource(panel) ? h("span", { class: "soft" }, "| output:") : null,
        tokensOf(panel).map((t) => wordButton(panel, t, "target")),
        isMasked(panel) ? null : h("span", { class: "soft", "aria-hidden": "true" }, "→"),
        isMasked(panel) ? null : panel.story.answer.slice(-1).map((a) => h("span", { class: "word answer last" }, printable(a.token.text))),
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
      select("go to step", texts, state.step, (i) => go(Number(i)), { id: "jump" }),
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
                    title: capitalize(card.title),
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
  setChildren("map", h("p", { class: "soft" }, placeOf(cards[state.step])), mapCaption() ? h("p", { class: "soft" }, mapCaption()) : null, cards[state.step].id === "overview" && !state.all ? null : modelMap());
  const isOverview = cards[state.step].id === "overview" && !state.all && !state.trail.length;
  $("layout").classList.toggle("wide", isOverview);
  $("map").hidden = state.all || cards[state.step].id === "overview";
  markOverflow();
  document.querySelectorAll("#bar .words").forEach((words) => {
    const pressed = words.querySelector("[aria-pressed=true]");
    if (pressed) words.scrollLeft = Math.max(0, pressed.offsetLeft - words.offsetLeft - words.clientWidth / 2);
  });
}
