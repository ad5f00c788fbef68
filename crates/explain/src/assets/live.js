// The form that asks a server for stories, and the beginning: of a file, or of a server's page.
"use strict";

const tell = (error) => {
  const place = $("trouble");
  if (!place) return;
  place.textContent = error ? error.message : "";
  place.hidden = !error;
};
// What the form holds where an address says nothing.
const USUAL = {
  model: "",
  prompt: "",
  max_tokens: "4",
  temperature: "0",
  top_k: "0",
  top_p: "1",
  seed: "0",
  compare: "",
  beside: "",
};
const FIELDS = Object.keys(USUAL);
const field = (name) => document.querySelector(`#ask [name="${name}"]`);

function drawForm(models, link) {
  const names = models.map((model) => [model.id, model.id]),
    given = (name, none = USUAL[name]) => link.get(name) ?? none;
  const amount = (name, label, value, more) =>
    h("label", {}, label, h("input", { type: "number", name, value, ...more }));
  fill(
    "ask",
    h(
      "form",
      {
        id: "form",
        onsubmit: (e) => {
          e.preventDefault();
          submit(true);
        },
      },
      h(
        "div",
        { class: "line" },
        h(
          "label",
          { class: "grow" },
          "What the model reads",
          h(
            "textarea",
            {
              name: "prompt",
              rows: 1,
              spellcheck: "false",
              placeholder: "Type the beginning of a text",
              onkeydown: (e) => {
                if (e.key === "Enter" && !e.shiftKey) {
                  e.preventDefault();
                  submit(true);
                }
              },
            },
            given("prompt"),
          ),
        ),
        h(
          "label",
          {},
          "Model",
          select("model", names, given("model", names[0]?.[0]), () => {}, { name: "model" }),
        ),
        h("button", { class: "primary", id: "explain" }, "Explain"),
      ),
      h(
        "details",
        { open: ["compare", "beside", "temperature", "max_tokens"].some((name) => link.get(name)) },
        h("summary", {}, "How it answers, and what to compare with"),
        h(
          "div",
          { class: "line" },
          amount("max_tokens", "Words of the answer", given("max_tokens"), { min: 1, max: 32 }),
          amount("temperature", "Temperature", given("temperature"), { min: 0, max: 2, step: 0.1 }),
          amount("top_k", "Top k (0 keeps all)", given("top_k"), { min: 0 }),
          amount("top_p", "Top p", given("top_p"), { min: 0.01, max: 1, step: 0.01 }),
          amount("seed", "Seed", given("seed"), { min: 0 }),
        ),
        h(
          "div",
          { class: "line" },
          h(
            "label",
            { class: "grow" },
            "Beside it, another prompt",
            h("input", { name: "compare", value: given("compare"), placeholder: "none" }),
          ),
          names.length > 1
            ? h(
                "label",
                {},
                "or another model",
                select("another model", [["", "none"], ...names], given("beside"), () => {}, { name: "beside" }),
              )
            : null,
        ),
      ),
      h("p", { id: "trouble", class: "note", role: "alert", hidden: true }),
      h("p", { id: "busy", class: "soft", role: "status" }),
    ),
  );
}

let asked = 0;
async function submit(isNew) {
  const turn = ++asked,
    values = Object.fromEntries(FIELDS.map((name) => [name, field(name)?.value ?? ""]));
  const { prompt, model, compare, beside } = values,
    request = { prompt, model };
  for (const name of ["max_tokens", "temperature", "top_k", "top_p", "seed"]) request[name] = Number(values[name]);
  const requests = [request];
  if (compare || beside) requests.push({ ...request, prompt: compare || prompt, model: beside || model });
  tell(null);
  fill("busy", "The model reads …");
  try {
    const panes = [];
    for (const each of requests) panes.push(await source.pane(each));
    if (turn !== asked) return;
    const link = new URLSearchParams(Object.entries(values).filter(([name, value]) => value !== USUAL[name]));
    if (isNew) window.history.pushState(null, "", `${location.pathname}?${link}${location.hash}`);
    const first = !state.panes.length;
    Object.assign(state, { panes, edits: noEdits(), outcome: null, position: null, trail: [], open: new Set() });
    if (first) recall();
    draw();
  } catch (error) {
    if (turn === asked) tell(error);
  }
  if (turn === asked) fill("busy", "");
}

async function startLive() {
  fill("header", titles("Every number that a model computes for your words, in the order in which they come about."));
  const link = new URLSearchParams(location.search);
  drawForm([], link);
  try {
    const response = await fetch("/v1/models"),
      told = await response.json();
    if (!response.ok) throw new Error(told?.error?.message ?? `the server answers ${response.status}`);
    drawForm(told.data, link);
  } catch (error) {
    tell(error);
    return;
  }
  if (link.has("prompt")) await submit(false);
  else field("prompt").focus();
  window.addEventListener("popstate", () => {
    const link = new URLSearchParams(location.search),
      said = (name) => link.get(name) ?? (name === "model" ? field(name).value : USUAL[name]);
    const others = FIELDS.filter((name) => field(name) && said(name) !== field(name).value);
    if (!others.length || !link.has("prompt")) return;
    for (const name of others) field(name).value = said(name);
    submit(false);
  });
}

if (source.isLive) startLive();
else {
  recall();
  draw();
}
