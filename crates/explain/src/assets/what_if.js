// The card that tries changes: a word, a head, a number of an embedding.
"use strict";

const MOST_OPTIONS = 64,
  MOST_EDITED = 16;
const noEdits = () => ({ words: new Map(), off: new Set(), numbers: new Map(), edited: null });
const isEdited = (edits) => edits.words.size + edits.off.size + edits.numbers.size > 0;

// As the program takes them.
const editList = (edits) => [
  ...[...edits.words].map(([position, id]) => ({ change: "token", position, id })),
  ...[...edits.off].map((key) => {
    const [layer, head] = key.split(".").map(Number);
    return { change: "head_off", layer, head };
  }),
  ...[...edits.numbers].map(([key, value]) => {
    const [id, dim] = key.split(".").map(Number);
    return { change: "embedding", id, dim, value };
  }),
];

function whatIfBody(pane) {
  if (!source.isLive && pane.packed && !pane.live) {
    return h(
      "p",
      {},
      "This page holds some layers only, so it cannot compute. Leave --layer out, or in a terminal: nextword explain RECORD PROMPT --what-if head=0.1",
    );
  }
  if (!source.isLive && !pane.live) {
    return h(
      "p",
      {},
      "This model is too large to travel in the page, so the page cannot compute. In a terminal: nextword explain RECORD PROMPT --what-if head=0.1",
    );
  }
  const { story } = pane,
    edits = state.edits,
    prompt = story.tokens.filter((t) => t.from === "prompt"),
    layers = story.config.n_layers;
  const ids = prompt.map((t) => edits.words.get(t.position) ?? t.id),
    edited = ids.includes(edits.edited) ? edits.edited : ids[ids.length - 1];
  const swap = (token, id) => {
    if (id === token.id) edits.words.delete(token.position);
    else edits.words.set(token.position, id);
    draw();
  };
  const flip = (key) => {
    if (!edits.off.delete(key)) edits.off.add(key);
    draw();
  };
  return [
    h("h3", {}, "Change a word"),
    h(
      "div",
      { class: "choices" },
      prompt.map((t) => wordChoice(pane, t, ids[t.position], (id) => swap(t, id))),
    ),
    wordList(pane),
    h("h3", {}, "Switch off a head"),
    range(layers).map((layer) =>
      h(
        "div",
        { class: "choices heads", role: "group", "aria-label": `heads of layer ${layer + 1}` },
        layers > 1 ? h("span", { class: "soft" }, `layer ${layer + 1}, head`) : h("span", { class: "soft" }, "head"),
        range(story.config.n_heads).map((head) => {
          const key = `${layer}.${head}`;
          return toggle(`${head + 1}`, edits.off.has(key), () => flip(key), {
            "data-off": key,
            "aria-label": `switch off head ${head + 1} of layer ${layer + 1}`,
          });
        }),
      ),
    ),
    h("h3", {}, "Edit an embedding"),
    h(
      "div",
      { class: "choices" },
      select(
        "the word whose embedding is edited",
        [...new Set(ids)].map((id) => [id, visible(pane.text(id))]),
        edited,
        (id) => {
          edits.edited = Number(id);
          draw();
        },
      ),
      embeddingFields(pane, edited),
    ),
    story.config.tied_head
      ? h(
          "p",
          { class: "soft" },
          "The output layer of this model reads the same table, so an edit changes that word's output value too.",
        )
      : null,
    h("h3", {}, "The next word after the prompt"),
    outcome(pane),
    isEdited(edits)
      ? h(
          "button",
          {
            type: "button",
            id: "reset",
            onclick: () => {
              state.edits = noEdits();
              draw();
            },
          },
          "as it was",
        )
      : null,
  ];
}

// A list of words where they are few, a field where they are many.
function wordChoice(pane, token, id, choose) {
  const label = `word at position ${token.position}`,
    size = pane.story.config.vocab_size;
  if (size <= MOST_OPTIONS && pane.vocabulary.length)
    return select(
      label,
      range(size).map((n) => [n, visible(pane.text(n))]),
      id,
      (n) => choose(Number(n)),
      { "data-swap": token.position },
    );
  const change = async (e) => {
    const known = pane.vocabulary.findIndex((text) => text === e.target.value || visible(text) === e.target.value);
    const found = known >= 0 ? known : await source.token(pane, e.target.value).catch(() => null);
    e.target.setCustomValidity(found === null ? "this is not one token of the model's" : "");
    if (found === null) e.target.reportValidity();
    else choose(found);
  };
  return h("input", {
    class: "word-field",
    list: "vocabulary",
    value: visible(pane.text(id)),
    size: Math.max(3, pane.text(id).length),
    "aria-label": label,
    "data-swap": token.position,
    onchange: change,
  });
}
const wordList = (pane) =>
  pane.vocabulary.length > MOST_OPTIONS
    ? h(
        "datalist",
        { id: "vocabulary" },
        pane.vocabulary.map((text) => h("option", { value: visible(text) })),
      )
    : null;

// At once where the numbers are here, so that the focus stays; else when they have come.
const whenHere = (answer, use) => (answer instanceof Promise ? answer.then(use, tell) : use(answer));

function embeddingFields(pane, id) {
  const fields = h("span", { class: "choices" }),
    most = state.open.has("embedding") ? Infinity : MOST_EDITED;
  const field = (number, dim) => {
    const key = `${id}.${dim}`;
    const change = (e) => {
      const value = e.target.valueAsNumber;
      if (Number.isFinite(value) && Math.abs(value) < 1e6) state.edits.numbers.set(key, value);
      draw();
    };
    const value = (state.edits.numbers.get(key) ?? number).toFixed(4);
    return h("input", {
      type: "number",
      step: 0.1,
      "aria-label": `number ${dim}`,
      "data-embedding": dim,
      value,
      onchange: change,
    });
  };
  whenHere(source.embedding(pane, id), (numbers) =>
    fields.replaceChildren(
      ...flat([
        numbers.slice(0, most).map(field),
        moreButton(Math.max(0, numbers.length - most), "numbers", "embedding"),
      ]),
    ),
  );
  return fields;
}

function outcome(pane) {
  const shown = h("div", { id: "outcome", "aria-live": "polite", "aria-busy": "true" });
  const edits = editList(state.edits),
    key = JSON.stringify(edits);
  const known = state.outcome?.pane === pane ? state.outcome : null;
  if (known) shown.append(outcomeBars(known.words, known.key !== "[]"));
  if (known?.key === key) {
    shown.removeAttribute("aria-busy");
    return shown; // Nothing has changed since.
  }
  whenHere(source.whatIf(pane, edits), ({ words }) => {
    if (key !== JSON.stringify(editList(state.edits))) return; // A later change is under way.
    state.outcome = { pane, key, words };
    shown.replaceChildren(outcomeBars(words, edits.length > 0));
    shown.removeAttribute("aria-busy");
  });
  return shown;
}
function outcomeBars(words, changed) {
  const top = Math.max(...words.map((word) => word.after));
  const move = (word) =>
    `${word.after >= word.before ? "+" : "−"}${(100 * Math.abs(word.after - word.before)).toFixed(2)}`;
  return bars(
    words.slice(0, 8).map((word) => ({
      name: visible(word.text),
      value: word.after,
      class: word.after === top ? "chosen" : "",
      was: changed ? word.before : undefined,
      text: changed
        ? `${percent(word.after, 2)}  was ${percent(word.before, 2)} (${move(word)})`
        : percent(word.after, 2),
    })),
    1,
  );
}
