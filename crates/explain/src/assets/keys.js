// Mouse, keyboard, and deep links.
"use strict";

function highlight(position, key) {
  document.querySelectorAll(".lit").forEach((each) => each.classList.remove("lit"));
  if (position === undefined) return;
  const positions = key === undefined ? [position] : [position, key];
  for (const at of positions)
    document
      .querySelectorAll(
        `th[data-p="${at}"], .word[data-p="${at}"], span[data-p="${at}"], g[data-p="${at}"], text[data-p="${at}"]`,
      )
      .forEach((each) => each.classList.add("lit"));
  const cells =
    key === undefined
      ? `td[data-p="${position}"], td[data-k="${position}"], i[data-p="${position}"], i[data-k="${position}"], line[data-p="${position}"]`
      : `td[data-p="${position}"][data-k="${key}"], i[data-p="${position}"][data-k="${key}"]`;
  document.querySelectorAll(cells).forEach((each) => each.classList.add("lit"));
}
const highlightAt = (event) => {
  const at = event.target.closest?.("[data-p]");
  highlight(at?.dataset.p, at?.dataset.k);
};
document.addEventListener("mouseover", highlightAt);
document.addEventListener("focusin", highlightAt);

function pin(event) {
  const cell = event.target.closest("td.n");
  if (!cell) return;
  const chosen = {
    panel: Number(cell.dataset.pane),
    name: cell.dataset.name,
    index: cell.dataset.index.split(",").map(Number),
  };
  if (isSameValue(state.trail[state.trail.length - 1], chosen)) return;
  state.trail = [chosen];
  state.open.delete("operands");
  drawWhy();
  saveLink();
}
document.addEventListener("click", pin);

// The next cell in the direction of an arrow key.
function neighbour(cell, key) {
  const row = cell.parentElement,
    column = [...row.children].indexOf(cell),
    step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[key];
  if (key === "ArrowLeft" || key === "ArrowRight") {
    let at = row.children[column + step];
    while (at && !at.matches("td.n")) at = step < 0 ? at.previousElementSibling : at.nextElementSibling;
    return at;
  }
  const other = step < 0 ? row.previousElementSibling : row.nextElementSibling,
    at = other?.children[column];
  return at?.matches("td.n") ? at : null;
}

document.addEventListener("keydown", (event) => {
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (target.matches("td.n")) {
    if (key === "Enter" || key === " ") {
      event.preventDefault();
      pin(event);
      return;
    }
    if (key.startsWith("Arrow")) {
      event.preventDefault();
      const to = neighbour(target, key);
      if (to) {
        target.tabIndex = -1;
        to.tabIndex = 0;
        to.focus();
      }
      return;
    }
  }
  if (key === "Escape") closeWhy();
  if (/^(SELECT|INPUT|TEXTAREA)$/.test(target.tagName) || !state.panels.length) return;
  if (key === "ArrowRight") go(state.step + 1);
  else if (key === "ArrowLeft") go(state.step - 1);
  else if (key === "a") {
    state.all = !state.all;
    go(state.step);
  }
});

// --- deep links: #step=hook_embed&view=all&head=1&position=2&why=blocks.0.attn.hook_pattern:0,3,1

function saveLink() {
  const link = new URLSearchParams({ step: cards[state.step].id }),
    why = state.trail[state.trail.length - 1];
  if (state.all) link.set("view", "all");
  if (state.head) link.set("head", state.head);
  if (state.position !== null) link.set("position", state.position);
  if (state.source !== null) link.set("source", state.source);
  if (why) link.set("why", `${why.name}:${why.index.join(",")}${why.panel ? `:${why.panel}` : ""}`);
  const hash = `#${link.toString().replaceAll("%3A", ":").replaceAll("%2C", ",")}`;
  if (location.hash !== hash) window.history.replaceState(null, "", hash);
}
function loadLink() {
  if (!state.panels.length) return;
  const link = new URLSearchParams(location.hash.slice(1)),
    toIndex = (text) => Math.max(0, Math.trunc(Number(text)) || 0),
    indexParam = (name, fallback) => (link.has(name) ? toIndex(link.get(name)) : fallback);
  cards = listCards();
  const step = cards.findIndex((card) => card.id === link.get("step"));
  state.step = step >= 0 ? step : indexParam("step", 1) - 1;
  state.all = link.get("view") === "all";
  state.head = Math.min(indexParam("head", 0), headCount() - 1);
  state.position = indexParam("position", null);
  state.source = indexParam("source", null);
  const [name, index, panel] = (link.get("why") || "").split(":");
  state.trail =
    name && /^\d+(,\d+)*$/.test(index)
      ? [{ panel: Math.min(toIndex(panel), state.panels.length - 1), name, index: index.split(",").map(Number) }]
      : [];
}
window.addEventListener("hashchange", () => {
  loadLink();
  draw();
});
