// The what-if card: replace tokens, switch off heads, edit embeddings.
"use strict";

const MAX_OPTIONS = 64,
  MAX_EDITED_DIMS = 16;
const noEdits = () => ({ tokens: new Map(), disabledHeads: new Set(), embeddings: new Map(), removed: new Set(), adapter: 1, editedToken: null });
const isEdited = (edits) => edits.tokens.size + edits.disabledHeads.size + edits.embeddings.size + edits.removed.size > 0 || edits.adapter !== 1;
// Parts of the architecture that can be removed, and what it means.
const PARTS = [
  ["no_residual", "no residual connections", "each sublayer replaces the token's vector instead of adding to it"],
  ["no_positions", "no positions", "the order of the tokens is invisible, except through the mask"],
  ["no_mask", "no mask", "every token also attends to later ones; the last token sees all of them anyway, so look at the earlier positions below"],
];

// The edits in the format of the server's API.
const editList = (edits) => [
  ...(edits.adapter === 1 ? [] : [{ change: "adapter", scale: edits.adapter }]),
  ...[...edits.tokens].map(([position, id]) => ({ change: "token", position, id })),
  ...[...edits.disabledHeads].map((key) => {
    const [attention, layer, head] = key.split(".");
    return { change: "head_off", layer: Number(layer), head: Number(head), ...(attention === "own" ? {} : { attention }) };
  }),
  ...[...edits.embeddings].map(([key, value]) => {
    const [id, dim] = key.split(".").map(Number);
    return { change: "embedding", id, dim, value };
  }),
  ...[...edits.removed].map((change) => ({ change })),
];

function whatIfBody(panel) {
  if (!source.isLive && panel.packed && !panel.canCompute) {
    return [editedPanelMenu(), h(
      "p",
      {},
      "This page contains only some layers, so it cannot recompute predictions. Omit --layer, or use a terminal: nextword explain MODEL PROMPT --what-if head=0.0",
    )];
  }
  if (!source.isLive && !panel.canCompute) {
    return [editedPanelMenu(), h(
      "p",
      {},
      "This model is too large to embed in the page, so the page cannot recompute predictions. Use a terminal: nextword explain MODEL PROMPT --what-if head=0.0",
    )];
  }
  const { story } = panel,
    edits = state.edits,
    prompt = promptTokens(panel);
  const ids = prompt.map((t) => edits.tokens.get(t.position) ?? t.id),
    edited = ids.includes(edits.editedToken) ? edits.editedToken : ids[ids.length - 1];
  const swap = (token, id) => {
    if (id === token.id) edits.tokens.delete(token.position);
    else edits.tokens.set(token.position, id);
    draw();
  };
  const flip = (key) => {
    if (!edits.disabledHeads.delete(key)) edits.disabledHeads.add(key);
    draw();
  };
  return [
    editedPanelMenu(),
    h("h3", {}, "Replace a token"),
    h(
      "div",
      { class: "choices" },
      prompt.map((t) => tokenChoice(panel, t, ids[t.position], (id) => swap(t, id))),
    ),
    vocabularyList(panel),
    h("h3", {}, "Switch off a head"),
    attentions(story).map(([attention, layer, name]) =>
      h(
        "div",
        { class: "choices heads", role: "group", "aria-label": `heads of ${name || `layer ${layer + 1}`}` },
        h("span", { class: "soft" }, joinedWords(name, "head")),
        range(story.config.n_heads).map((head) => {
          const key = headKey(attention, layer, head);
          return toggleButton(`${head + 1}`, edits.disabledHeads.has(key), () => flip(key), {
            "data-off": attention === "own" ? `${layer}.${head}` : key,
            "aria-label": `switch off head ${head + 1} of ${name || `layer ${layer + 1}`}`,
          });
        }),
      ),
    ),
    h("h3", {}, "Remove a part of the model"),
    h(
      "div",
      { class: "choices", role: "group", "aria-label": "parts of the model" },
      PARTS.filter(([change]) => hasPart(story.steps, change)).map(([change, name]) =>
        toggleButton(name, edits.removed.has(change), () => {
          if (!edits.removed.delete(change)) edits.removed.add(change);
          draw();
        }, { "data-remove": change }),
      ),
    ),
    PARTS.filter(([change]) => edits.removed.has(change)).map(([, name, meaning]) => h("p", { class: "soft" }, `${capitalize(name)}: ${meaning}.`)),
    story.adapter ? [h("h3", {}, "Scale the adapter"), adapterScale(edits)] : null,
    h("h3", {}, "Edit an embedding"),
    h(
      "div",
      { class: "choices" },
      select(
        "token whose embedding is edited",
        [...new Set(ids)].map((id) => [id, printable(panel.text(id))]),
        edited,
        (id) => {
          edits.editedToken = Number(id);
          draw();
        },
      ),
      embeddingFields(panel, edited),
    ),
    story.config.tied_head
      ? h(
          "p",
          { class: "soft" },
          "This model ties its output layer to the embedding table, so an edit also changes that token's logit.",
        )
      : null,
    h("h3", {}, isMasked(panel) ? "The masked token" : hasSource(panel) ? "First token of the output" : "Next token after the prompt"),
    outcome(panel),
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
          "Reset",
        )
      : null,
  ];
}

const joinedWords = (...parts) => parts.filter(Boolean).join(", ");
// The attention sublayers of a model: [attention, layer, name].
function attentions(story) {
  const { config } = story,
    inEncoder = encoderLayers(story),
    named = (count, kind, attention) =>
      range(count).map((layer) => [attention, layer, joinedWords(kind, count > 1 ? `layer ${layer + 1}` : "")]);
  if (!inEncoder) return named(config.n_layers, "", "own");
  return [
    ...named(inEncoder, "encoder", "encoder"),
    ...named(config.n_layers, "decoder", "own"),
    ...named(config.n_layers, "cross-attention", "cross"),
  ];
}

// Which of the panels the edits change, where two are compared.
const editedPanelMenu = () =>
  state.panels.length > 1
    ? h(
        "label",
        {},
        "change the model of ",
        select(
          "panel to change",
          state.panels.map((panel, n) => [n, panelTitle(panel)]),
          state.edited,
          (n) => {
            Object.assign(state, { edited: Number(n), edits: noEdits(), outcome: null });
            draw();
          },
          { id: "edited" },
        ),
      )
    : null;

// A menu for small vocabularies, a text field for large ones.
function tokenChoice(panel, token, id, choose) {
  const label = `token at position ${token.position}`,
    size = panel.story.config.vocab_size;
  if (size <= MAX_OPTIONS && panel.vocabulary.length)
    return select(
      label,
      range(size).map((n) => [n, printable(panel.text(n))]),
      id,
      (n) => choose(Number(n)),
      { "data-swap": token.position },
    );
  const change = async (e) => {
    const known = panel.vocabulary.findIndex((text) => text === e.target.value || printable(text) === e.target.value);
    const found = known >= 0 ? known : await source.token(panel, e.target.value).catch(() => null);
    e.target.setCustomValidity(found === null ? "this is not a single token of the vocabulary" : "");
    if (found === null) e.target.reportValidity();
    else choose(found);
  };
  return h("input", {
    class: "word-field",
    list: "vocabulary",
    value: printable(panel.text(id)),
    size: Math.max(3, panel.text(id).length),
    "aria-label": label,
    "data-swap": token.position,
    onchange: change,
  });
}
const vocabularyList = (panel) =>
  panel.vocabulary.length > MAX_OPTIONS
    ? h(
        "datalist",
        { id: "vocabulary" },
        panel.vocabulary.map((text) => h("option", { value: printable(text) })),
      )
    : null;

// Calls `use` synchronously if the value is available, so that the focus is kept; otherwise when it arrives.
const whenReady = (value, use) => (value instanceof Promise ? value.then(use, showError) : use(value));

function embeddingFields(panel, id) {
  const fields = h("span", { class: "choices" }),
    max = state.open.has("embedding") ? Infinity : MAX_EDITED_DIMS;
  const field = (original, dim) => {
    const key = `${id}.${dim}`;
    const change = (e) => {
      const value = e.target.valueAsNumber;
      if (Number.isFinite(value) && Math.abs(value) < 1e6) state.edits.embeddings.set(key, value);
      draw();
    };
    const value = (state.edits.embeddings.get(key) ?? original).toFixed(4);
    return h("input", {
      type: "number",
      step: 0.1,
      "aria-label": `element ${dim}`,
      "data-embedding": dim,
      value,
      onchange: change,
    });
  };
  whenReady(source.embedding(panel, id), (values) =>
    fields.replaceChildren(
      ...flatten([
        values.slice(0, max).map(field),
        moreButton(Math.max(0, values.length - max), "values", "embedding"),
      ]),
    ),
  );
  return fields;
}

function outcome(panel) {
  const shown = h("div", { id: "outcome", "aria-live": "polite", "aria-busy": "true" });
  const edits = editList(state.edits),
    key = JSON.stringify(edits);
  const previous = state.outcome?.panel === panel ? state.outcome : null;
  if (previous) shown.append(outcomeBars(previous.words, previous.key !== "[]"), positionTable(panel, previous));
  if (previous?.key === key) {
    shown.removeAttribute("aria-busy");
    return shown; // Already up to date.
  }
  whenReady(source.whatIf(panel, edits), ({ words, positions }) => {
    if (key !== JSON.stringify(editList(state.edits))) return; // Superseded by a later edit.
    state.outcome = { panel, key, words, positions };
    shown.replaceChildren(outcomeBars(words, edits.length > 0), positionTable(panel, state.outcome));
    shown.removeAttribute("aria-busy");
  });
  return shown;
}
// The probability of each token of the prompt where it comes next.
function positionTable(panel, { key, positions = [] }) {
  const listed = positions.filter((change) => tokensOf(panel)[change.position]),
    rows = firstOf(listed.length, 12, "what-if-positions");
  if (key === "[]" || !listed.length) return h("div");
  const sign = (change) => (change >= 0 ? "+" : "−");
  return h(
    "div",
    {},
    h("h3", {}, isMasked(panel) ? "The token itself, or the predicted one, at every position" : "The token that follows, at every position"),
    scrollTable(
      headerRow([isMasked(panel) ? "at" : "after", [isMasked(panel) ? "token" : "next token"], "before", "with the edits", "change"]),
      h(
        "tbody",
        {},
        rows.list
          .map((n) => listed[n])
          .map((each) =>
            h(
              "tr",
              {},
              tokenHeader(panel, each.position),
              h("td", { class: "words-cell" }, printable(each.text)),
              h("td", { class: "tint", style: shade(each.before) }, percent(each.before, 2)),
              h("td", { class: "tint", style: shade(each.after) }, percent(each.after, 2)),
              h("td", {}, `${sign(each.after - each.before)}${(100 * Math.abs(each.after - each.before)).toFixed(2)}`),
            ),
          ),
      ),
    ),
    moreButton(rows.more, "tokens", "what-if-positions"),
  );
}
function outcomeBars(tokens, isChanged) {
  const top = Math.max(...tokens.map((token) => token.after));
  const change = (token) =>
    `${token.after >= token.before ? "+" : "−"}${(100 * Math.abs(token.after - token.before)).toFixed(2)}`;
  return bars(
    tokens.slice(0, 8).map((token) => ({
      name: printable(token.text),
      value: token.after,
      class: token.after === top ? "chosen" : "",
      was: isChanged ? token.before : undefined,
      text: isChanged
        ? `${percent(token.after, 2)}  was ${percent(token.before, 2)} (${change(token)})`
        : percent(token.after, 2),
    })),
    1,
  );
}
