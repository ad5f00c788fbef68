// The page: asks this server alone, and puts what models write into text nodes, never into markup.
"use strict";

const $ = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

let models = [];
let running = null; // the AbortController of the answer under way
let lastPrompt = "";
let messages = [];

// --- asking

async function ask(path, body, signal) {
  const response = await fetch(path, {
    method: body ? "POST" : "GET",
    headers: body ? { "Content-Type": "application/json" } : {},
    body: body && JSON.stringify(body),
    signal,
  });
  if (!response.ok) {
    const told = await response.json().catch(() => null);
    throw new Error(told?.error?.message ?? `the server answers ${response.status}`);
  }
  return response;
}

// The objects of a stream of events.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      const data = line.slice(6);
      if (data === "[DONE]") return;
      const object = JSON.parse(data);
      if (object.error) throw new Error(object.error.message);
      yield object;
    }
  }
}

function settings() {
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  return {
    model: $("model").value,
    temperature: number("temperature"),
    top_p: number("top_p"),
    top_k: number("top_k"),
    seed: number("seed"),
    stop: $("stop").value || undefined,
    max_tokens: number("max_tokens"),
    overflow: "slide",
    stream: true,
    stream_options: { include_usage: true },
  };
}

// --- answers

// Text with a span for each token that brings its probabilities.
class Answer {
  constructor(element) {
    this.element = element;
    this.length = 0; // in characters, as offsets count
    this.part = []; // tokens of a character that is not whole yet
    element.classList.add("writing");
  }

  // `tokens`: [{token, logprob, top: [[token, logprob]], offset}]
  add(text, tokens) {
    const characters = [...text];
    const start = this.length;
    this.length += characters.length;
    let from = 0;
    for (const [at, token] of tokens.entries()) {
      const end = at + 1 < tokens.length ? tokens[at + 1].offset - start : characters.length;
      const piece = characters.slice(from, Math.max(from, end)).join("");
      from = Math.max(from, end);
      this.part.push(token);
      if (!piece) continue;
      this.element.append(this.piece(piece, this.part));
      this.part = [];
    }
    const rest = characters.slice(from).join("");
    if (rest) this.element.append(rest);
  }

  piece(text, tokens) {
    const span = document.createElement("span");
    const p = Math.exp(tokens.reduce((sum, token) => sum + token.logprob, 0));
    span.className = "piece";
    span.textContent = text;
    span.tabIndex = this.element.querySelector(".piece") ? -1 : 0;
    span.style.setProperty("--doubt", `${Math.round((1 - p) * 100)}%`);
    span.ariaLabel = `${text}, ${percent(p)}`;
    span.tokens = tokens;
    return span;
  }

  end() {
    this.element.classList.remove("writing");
  }
}

const percent = (p) => `${(p * 100).toFixed(p < 0.1 ? 2 : 1)} %`;

function show(span) {
  all(".piece.shown").forEach((other) => other.classList.remove("shown"));
  span.classList.add("shown");
  const rows = span.tokens.flatMap(({ token, logprob, top }) =>
    (top.length ? top : [[token, logprob]]).map(([text, p]) => [text, p, text === token]),
  );
  const body = document.querySelector("#token tbody");
  body.replaceChildren(
    ...rows.map(([text, p, drawn]) => {
      const row = document.createElement("tr");
      row.className = drawn ? "drawn" : "";
      for (const content of [text.replaceAll("\n", "↵") || "∅", percent(Math.exp(p))]) {
        row.insertCell().textContent = content;
      }
      return row;
    }),
  );
  $("token").hidden = false;
  $("hint").hidden = true;
}

document.addEventListener("mouseover", (event) => {
  if (event.target.tokens) show(event.target);
});
document.addEventListener("focusin", (event) => {
  if (event.target.tokens) show(event.target);
});
document.addEventListener("keydown", (event) => {
  const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
  if (!event.target.tokens || !step) return;
  let other = event.target[step];
  while (other && !other.tokens) other = other[step];
  if (!other) return;
  event.target.tabIndex = -1;
  other.tabIndex = 0;
  other.focus();
  event.preventDefault();
});

// Runs `work` as the one answer under way.
async function run(work) {
  running?.abort();
  const mine = (running = new AbortController());
  const begin = performance.now();
  $("error").hidden = true;
  $("status").textContent = "waiting for the first token …";
  busy(true);
  let usage = null;
  try {
    await work(mine.signal, (chunk) => {
      usage = chunk.usage ?? usage;
    });
  } catch (error) {
    if (error.name !== "AbortError") {
      $("error").textContent = error.message;
      $("error").hidden = false;
    }
  }
  if (running !== mine) return;
  running = null;
  busy(false);
  const seconds = (performance.now() - begin) / 1000;
  $("status").textContent = mine.signal.aborted
    ? "stopped"
    : usage
      ? `${usage.completion_tokens} tokens in ${seconds.toFixed(2)} s` +
        ` · ${Math.round(usage.completion_tokens / Math.max(seconds, 1e-3))} tokens/s`
      : "";
}

function busy(is) {
  all(".stop").forEach((button) => (button.disabled = !is));
  $("again").disabled = is || !lastPrompt;
  $("retry").disabled = is || !messages.length;
}

// --- complete

function complete(prompt) {
  lastPrompt = prompt;
  const given = document.createElement("span");
  given.className = "given";
  given.textContent = prompt;
  $("text").replaceChildren(given);
  const answer = new Answer($("text"));
  return run(async (signal, seen) => {
    try {
      const body = { ...settings(), prompt, logprobs: 5 };
      const read = await (await ask("/tokenize", { model: body.model, content: prompt }, signal)).json();
      if (read.count > read.max_model_len) {
        const note = document.createElement("span");
        note.className = "cut";
        note.textContent = `The model reads ${read.max_model_len} tokens at once: the beginning of these ${read.count} is left out.`;
        given.before(note);
      }
      for await (const chunk of events(await ask("/v1/completions", body, signal))) {
        seen(chunk);
        for (const { text, logprobs } of chunk.choices) {
          const tokens = (logprobs?.tokens ?? []).map((token, at) => ({
            token,
            logprob: logprobs.token_logprobs[at],
            offset: logprobs.text_offset[at],
            top: Object.entries(logprobs.top_logprobs?.[at] ?? {}).sort((a, b) => b[1] - a[1]),
          }));
          answer.add(text, tokens);
        }
      }
    } finally {
      answer.end();
    }
  });
}

// --- chat

function bubble(role, content = "") {
  const element = document.createElement("div");
  element.className = `message ${role}`;
  const who = document.createElement("span");
  who.className = "who";
  who.textContent = role === "user" ? "You" : "Model";
  element.append(who, content);
  $("messages").append(element);
  element.scrollIntoView({ block: "nearest" });
  return element;
}

function reply() {
  const element = bubble("assistant");
  const answer = new Answer(element);
  const conversation = messages; // which may have been left when the answer ends
  return run(async (signal, seen) => {
    let content = "";
    try {
      const body = { ...settings(), messages: conversation, logprobs: true, top_logprobs: 5 };
      for await (const chunk of events(await ask("/v1/chat/completions", body, signal))) {
        seen(chunk);
        for (const { delta, logprobs } of chunk.choices) {
          const tokens = (logprobs?.content ?? []).map(({ token, logprob, top_logprobs, text_offset }) => ({
            token,
            logprob,
            offset: text_offset,
            top: top_logprobs.map((top) => [top.token, top.logprob]),
          }));
          content += delta.content ?? "";
          answer.add(delta.content ?? "", tokens);
        }
      }
    } catch (error) {
      if (!answer.length) element.remove();
      throw error;
    } finally {
      answer.end();
      if (content) conversation.push({ role: "assistant", content });
    }
  });
}

// --- controls

$("complete-form").addEventListener("submit", (event) => {
  event.preventDefault();
  complete($("prompt").value);
});
$("explain").addEventListener("click", (event) => {
  event.currentTarget.href = `/explain?${new URLSearchParams({ model: $("model").value, prompt: $("prompt").value })}`;
});
$("again").addEventListener("click", () => complete(lastPrompt));
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    $("complete-form").requestSubmit();
  }
});
$("chat-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const content = $("said").value.trim();
  if (!content || running) return;
  $("said").value = "";
  messages.push({ role: "user", content });
  bubble("user", content);
  reply();
});
$("said").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("chat-form").requestSubmit();
  }
});
$("retry").addEventListener("click", () => {
  if (messages.at(-1)?.role === "assistant") {
    messages.pop();
    $("messages").lastElementChild?.remove();
  }
  reply();
});
$("reset").addEventListener("click", () => {
  running?.abort();
  running = null; // the next message need not wait until it has ended
  $("status").textContent = "";
  messages = [];
  $("messages").replaceChildren();
  busy(false);
  $("said").focus();
});
all(".stop").forEach((button) => button.addEventListener("click", () => running?.abort()));

const tabs = all("[role=tab]");
function choose(tab) {
  for (const other of tabs) {
    const is = other === tab;
    other.ariaSelected = String(is);
    other.tabIndex = is ? 0 : -1;
    $(other.getAttribute("aria-controls")).hidden = !is;
  }
}
tabs.forEach((tab, at) => {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const other = tabs[(at + step + tabs.length) % tabs.length];
    choose(other);
    other.focus();
  });
});

for (const range of all("input[type=range]")) {
  const shown = document.querySelector(`output[for=${range.id}]`);
  const tell = () => (shown.textContent = Number(range.value).toFixed(2));
  range.addEventListener("input", tell);
  tell();
}

function about() {
  const model = models.find((model) => model.id === $("model").value);
  if (!model) return;
  const { n_params, n_ctx_train, n_vocab, chat } = model.meta;
  const size = n_params ? `${n_params.toLocaleString("en")} parameters · ` : "";
  $("about").textContent =
    `${size}context of ${n_ctx_train} tokens · vocabulary of ${n_vocab}` +
    (chat ? "" : " · no chat template: it continues text");
}

async function start() {
  if (matchMedia("(max-width: 48rem)").matches) $("settings").open = false;
  try {
    models = (await (await ask("/v1/models")).json()).data;
    $("model").append(...models.map(({ id }) => new Option(id, id)));
    $("model").addEventListener("change", about);
    about();
  } catch (error) {
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
}
start();
