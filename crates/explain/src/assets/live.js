// The form of the server's page, and the entry point of the script for both kinds of page (file and server).
"use strict";

const showError = (error) => {
  const box = $("trouble");
  if (!box) return;
  box.textContent = error ? error.message : "";
  box.hidden = !error;
};
// The form's default values.
const DEFAULTS = {
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
const FIELDS = Object.keys(DEFAULTS);
const field = (name) => document.querySelector(`#ask [name="${name}"]`);

function drawForm(models, link) {
  const names = models.map((model) => [model.id, model.id]),
    param = (name, fallback = DEFAULTS[name]) => link.get(name) ?? fallback;
  const numberField = (name, label, value, more) =>
    h("label", {}, label, h("input", { type: "number", name, value, ...more }));
  setChildren(
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
          "Prompt",
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
            param("prompt"),
          ),
        ),
        h(
          "label",
          {},
          "Model",
          select("model", names, param("model", names[0]?.[0]), () => {}, { name: "model" }),
        ),
        h("button", { class: "primary", id: "explain" }, "Explain"),
      ),
      h(
        "details",
        { open: ["compare", "beside", "temperature", "max_tokens"].some((name) => link.get(name)) },
        h("summary", {}, "Sampling and comparison"),
        h(
          "div",
          { class: "line" },
          numberField("max_tokens", "Max tokens", param("max_tokens"), { min: 1, max: 32 }),
          numberField("temperature", "Temperature", param("temperature"), { min: 0, max: 2, step: 0.1 }),
          numberField("top_k", "Top k (0 keeps all)", param("top_k"), { min: 0 }),
          numberField("top_p", "Top p", param("top_p"), { min: 0.01, max: 1, step: 0.01 }),
          numberField("seed", "Seed", param("seed"), { min: 0 }),
        ),
        h(
          "div",
          { class: "line" },
          h(
            "label",
            { class: "grow" },
            "Compare with another prompt",
            h("input", { name: "compare", value: param("compare"), placeholder: "none" }),
          ),
          names.length > 1
            ? h(
                "label",
                {},
                "or another model",
                select("another model", [["", "none"], ...names], param("beside"), () => {}, { name: "beside" }),
              )
            : null,
        ),
      ),
      h("p", { id: "trouble", class: "note", role: "alert", hidden: true }),
      h("p", { id: "busy", class: "soft", role: "status" }),
    ),
  );
}

let latestRequest = 0;
async function submit(isNew) {
  const requestNumber = ++latestRequest,
    values = Object.fromEntries(FIELDS.map((name) => [name, field(name)?.value ?? ""]));
  const { prompt, model, compare, beside } = values,
    request = { prompt, model };
  for (const name of ["max_tokens", "temperature", "top_k", "top_p", "seed"]) request[name] = Number(values[name]);
  const requests = [request];
  if (compare || beside) requests.push({ ...request, prompt: compare || prompt, model: beside || model });
  showError(null);
  setChildren("busy", "Computing …");
  try {
    const panels = [];
    for (const each of requests) panels.push(await source.panel(each));
    if (requestNumber !== latestRequest) return;
    const link = new URLSearchParams(Object.entries(values).filter(([name, value]) => value !== DEFAULTS[name]));
    if (isNew) window.history.pushState(null, "", `${location.pathname}?${link}${location.hash}`);
    const first = !state.panels.length;
    Object.assign(state, { panels, edits: noEdits(), edited: 0, outcome: null, position: null, source: null, trail: [], open: new Set() });
    if (first) loadLink();
    draw();
  } catch (error) {
    if (requestNumber === latestRequest) showError(error);
  }
  if (requestNumber === latestRequest) setChildren("busy", "");
}

async function startLive() {
  setChildren("header", titles("Every value that a model computes for your prompt, in the order of computation."));
  const link = new URLSearchParams(location.search);
  drawForm([], link);
  try {
    const response = await fetch("/v1/models"),
      reply = await response.json();
    if (!response.ok) throw new Error(reply?.error?.message ?? `the server returned ${response.status}`);
    drawForm(reply.data, link);
  } catch (error) {
    showError(error);
    return;
  }
  if (link.has("prompt")) await submit(false);
  else field("prompt").focus();
  window.addEventListener("popstate", () => {
    const link = new URLSearchParams(location.search),
      linked = (name) => link.get(name) ?? (name === "model" ? field(name).value : DEFAULTS[name]);
    const changed = FIELDS.filter((name) => field(name) && linked(name) !== field(name).value);
    if (!changed.length || !link.has("prompt")) return;
    for (const name of changed) field(name).value = linked(name);
    submit(false);
  });
}

if (source.isLive) startLive();
else {
  loadLink();
  draw();
}
