// Sends requests only to this server. Model output goes into text nodes, never into markup.
"use strict";

const $ = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

let models = [];
let activeRequest = null; // AbortController of the request in progress
let lastPrompt = "";
let messages = [];

// --- requests

async function request(path, body, signal) {
  const response = await fetch(path, {
    method: body ? "POST" : "GET",
    headers: body ? { "Content-Type": "application/json" } : {},
    body: body && JSON.stringify(body),
    signal,
  });
  if (!response.ok) {
    const failure = await response.json().catch(() => null);
    throw new Error(failure?.error?.message ?? `the server returned status ${response.status}`);
  }
  return response;
}

// Yields the objects of a server-sent event stream.
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

// --- completions

// Streams a completion into an element, with a span for each token.
class CompletionView {
  constructor(element) {
    this.element = element;
    this.length = 0; // in characters, like token offsets
    this.pendingTokens = []; // tokens of an incomplete character
    element.classList.add("writing");
  }

  // `tokens`: [{token, logprob, top: [[token, logprob]], offset}]
  add(text, tokens) {
    const characters = [...text];
    const start = this.length;
    this.length += characters.length;
    let from = 0;
    for (const [index, token] of tokens.entries()) {
      const end = index + 1 < tokens.length ? tokens[index + 1].offset - start : characters.length;
      const tokenText = characters.slice(from, Math.max(from, end)).join("");
      from = Math.max(from, end);
      this.pendingTokens.push(token);
      if (!tokenText) continue;
      this.element.append(this.tokenSpan(tokenText, this.pendingTokens));
      this.pendingTokens = [];
    }
    const remainder = characters.slice(from).join("");
    if (remainder) this.element.append(remainder);
  }

  tokenSpan(text, tokens) {
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

  finish() {
    this.element.classList.remove("writing");
  }
}

const percent = (p) => `${(p * 100).toFixed(p < 0.1 ? 2 : 1)}%`;
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

function showPredictions(span) {
  all(".piece.shown").forEach((other) => other.classList.remove("shown"));
  span.classList.add("shown");
  const rows = span.tokens.flatMap(({ token, logprob, top }) =>
    (top.length ? top : [[token, logprob]]).map(([text, p]) => [text, p, text === token]),
  );
  const body = document.querySelector("#token tbody");
  body.replaceChildren(
    ...rows.map(([text, p, isSampled]) => {
      const row = document.createElement("tr");
      row.className = isSampled ? "drawn" : "";
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
  if (event.target.tokens) showPredictions(event.target);
});
document.addEventListener("focusin", (event) => {
  if (event.target.tokens) showPredictions(event.target);
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

// Runs `work` as the only request in progress; aborts the previous one.
async function run(work) {
  activeRequest?.abort();
  const controller = (activeRequest = new AbortController());
  const start = performance.now();
  $("error").hidden = true;
  $("status").textContent = "waiting for the first token …";
  setBusy(true);
  let usage = null;
  try {
    await work(controller.signal, (chunk) => {
      usage = chunk.usage ?? usage;
    });
  } catch (error) {
    if (error.name !== "AbortError") {
      $("error").textContent = error.message;
      $("error").hidden = false;
    }
  }
  if (activeRequest !== controller) return;
  activeRequest = null;
  setBusy(false);
  const seconds = (performance.now() - start) / 1000;
  $("status").textContent = controller.signal.aborted
    ? "stopped"
    : usage
      ? `${plural(usage.completion_tokens, "token")} in ${seconds.toFixed(2)} s` +
        ` · ${Math.round(usage.completion_tokens / Math.max(seconds, 1e-3))} tokens/s`
      : "";
}

function setBusy(isBusy) {
  all(".stop").forEach((button) => (button.disabled = !isBusy));
  $("again").disabled = isBusy || !lastPrompt;
  $("retry").disabled = isBusy || !messages.length;
}

// A notice about parts of the prompt that the model's vocabulary does not have.
function unknownNote({ unknown, unknown_count }) {
  const note = document.createElement("span");
  note.className = "cut";
  const listed = unknown.slice(0, 10).map((text) => JSON.stringify(text)).join(", ");
  note.textContent = `${plural(unknown_count, "part")} of the prompt not in the model's vocabulary, such as ${listed}: left out or replaced by the unknown token.`;
  return note;
}

// --- complete

function complete(prompt) {
  lastPrompt = prompt;
  const promptSpan = document.createElement("span");
  promptSpan.className = "given";
  promptSpan.textContent = prompt;
  $("text").replaceChildren(promptSpan);
  const view = new CompletionView($("text"));
  return run(async (signal, onChunk) => {
    try {
      const body = { ...settings(), prompt, logprobs: 5 };
      const tokenized = await (await request("/tokenize", { model: body.model, content: prompt }, signal)).json();
      if (tokenized.count > tokenized.max_model_len) {
        const note = document.createElement("span");
        note.className = "cut";
        note.textContent = `The prompt has ${tokenized.count} tokens, but the model's context is ${tokenized.max_model_len}: the beginning is left out.`;
        promptSpan.before(note);
      }
      if (tokenized.unknown_count) promptSpan.after(unknownNote(tokenized));
      for await (const chunk of events(await request("/v1/completions", body, signal))) {
        onChunk(chunk);
        for (const { text, logprobs } of chunk.choices) {
          const tokens = (logprobs?.tokens ?? []).map((token, index) => ({
            token,
            logprob: logprobs.token_logprobs[index],
            offset: logprobs.text_offset[index],
            top: Object.entries(logprobs.top_logprobs?.[index] ?? {}).sort((a, b) => b[1] - a[1]),
          }));
          view.add(text, tokens);
        }
      }
    } finally {
      view.finish();
    }
  });
}

// --- chat

function bubble(role, content = "") {
  const element = document.createElement("div");
  element.className = `message ${role}`;
  const speaker = document.createElement("span");
  speaker.className = "who";
  speaker.textContent = role === "user" ? "You" : "Model";
  element.append(speaker, content);
  $("messages").append(element);
  element.scrollIntoView({ block: "nearest" });
  return element;
}

function generateReply() {
  const element = bubble("assistant");
  const view = new CompletionView(element);
  const conversation = messages; // "New conversation" may replace `messages` before the reply ends
  return run(async (signal, onChunk) => {
    let content = "";
    try {
      const body = { ...settings(), messages: conversation, logprobs: true, top_logprobs: 5 };
      for await (const chunk of events(await request("/v1/chat/completions", body, signal))) {
        onChunk(chunk);
        if (chunk.unknown_count) element.append(unknownNote(chunk));
        for (const { delta, logprobs } of chunk.choices) {
          const tokens = (logprobs?.content ?? []).map(({ token, logprob, top_logprobs, text_offset }) => ({
            token,
            logprob,
            offset: text_offset,
            top: top_logprobs.map((top) => [top.token, top.logprob]),
          }));
          content += delta.content ?? "";
          view.add(delta.content ?? "", tokens);
        }
      }
    } catch (error) {
      if (!view.length) element.remove();
      throw error;
    } finally {
      view.finish();
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
  if (!content || activeRequest) return;
  $("said").value = "";
  messages.push({ role: "user", content });
  bubble("user", content);
  generateReply();
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
  generateReply();
});
$("reset").addEventListener("click", () => {
  activeRequest?.abort();
  activeRequest = null; // lets the user send the next message before the request has ended
  $("status").textContent = "";
  messages = [];
  $("messages").replaceChildren();
  setBusy(false);
  $("said").focus();
});
all(".stop").forEach((button) => button.addEventListener("click", () => activeRequest?.abort()));

const tabs = all("[role=tab]");
function selectTab(tab) {
  for (const other of tabs) {
    const isSelected = other === tab;
    other.ariaSelected = String(isSelected);
    other.tabIndex = isSelected ? 0 : -1;
    $(other.getAttribute("aria-controls")).hidden = !isSelected;
  }
}
tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => selectTab(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const other = tabs[(index + step + tabs.length) % tabs.length];
    selectTab(other);
    other.focus();
  });
});

for (const range of all("input[type=range]")) {
  const output = document.querySelector(`output[for=${range.id}]`);
  const showValue = () => (output.textContent = Number(range.value).toFixed(2));
  range.addEventListener("input", showValue);
  showValue();
}

function showModelInfo() {
  const model = models.find((model) => model.id === $("model").value);
  if (!model) return;
  const { n_params, n_ctx_train, n_vocab, chat, architecture } = model.meta;
  // What the text in the form is to the model.
  const use =
    {
      encoder: " · fills blanks and embeds text, does not continue it: see Explain, and /v1/embeddings",
      prefix: " · answers a source text",
      encoder_decoder: " · answers a source text, which its encoder reads",
    }[architecture] ?? (chat ? "" : " · continues text, does not chat");
  const size = n_params ? `${n_params.toLocaleString("en")} parameters · ` : "";
  $("about").textContent =
    `${size}context of ${plural(n_ctx_train, "token")} · vocabulary of ${n_vocab}${use}`;
  $("no-chat").hidden = Boolean(chat);
  for (const element of [$("chat-form"), $("messages")]) element.hidden = !chat;
  $("explain-page").href = `/explain?${new URLSearchParams({ model: model.id })}`;
}

// The list of predictions belongs to a text of the previous model.
function forgetPredictions() {
  all(".piece.shown").forEach((span) => span.classList.remove("shown"));
  $("token").hidden = true;
  $("hint").hidden = false;
}

async function start() {
  if (matchMedia("(max-width: 900px)").matches) $("settings").open = false;
  try {
    models = (await (await request("/v1/models")).json()).data;
    $("model").append(...models.map(({ id }) => new Option(id, id)));
    $("model").addEventListener("change", () => {
      forgetPredictions();
      showModelInfo();
    });
    showModelInfo();
  } catch (error) {
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
}
start();
