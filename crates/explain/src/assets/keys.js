// Pointing, choosing, keys, and addresses that lead back to what is shown.
"use strict";

function light(position, key) {
  document.querySelectorAll(".lit").forEach((each) => each.classList.remove("lit"));
  if (position === undefined) return;
  const places = key === undefined ? [position] : [position, key];
  for (const place of places)
    document
      .querySelectorAll(
        `th[data-p="${place}"], .word[data-p="${place}"], span[data-p="${place}"], g[data-p="${place}"], text[data-p="${place}"]`,
      )
      .forEach((each) => each.classList.add("lit"));
  const cells =
    key === undefined
      ? `td[data-p="${position}"], td[data-k="${position}"], i[data-p="${position}"], i[data-k="${position}"], line[data-p="${position}"]`
      : `td[data-p="${position}"][data-k="${key}"], i[data-p="${position}"][data-k="${key}"]`;
  document.querySelectorAll(cells).forEach((each) => each.classList.add("lit"));
}
const lightAt = (event) => {
  const at = event.target.closest?.("[data-p]");
  light(at?.dataset.p, at?.dataset.k);
};
document.addEventListener("mouseover", lightAt);
document.addEventListener("focusin", lightAt);

function pin(event) {
  const cell = event.target.closest("td.n");
  if (!cell) return;
  const chosen = {
    pane: Number(cell.dataset.pane),
    name: cell.dataset.name,
    index: cell.dataset.index.split(",").map(Number),
  };
  if (sameNumber(state.trail[state.trail.length - 1], chosen)) return;
  state.trail = [chosen];
  state.open.delete("operands");
  drawWhy();
  remember();
}
document.addEventListener("click", pin);

// From a number to the one beside, above or below it.
function neighbour(cell, key) {
  const row = cell.parentElement,
    column = [...row.children].indexOf(cell),
    way = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[key];
  if (key === "ArrowLeft" || key === "ArrowRight") {
    let at = row.children[column + way];
    while (at && !at.matches("td.n")) at = way < 0 ? at.previousElementSibling : at.nextElementSibling;
    return at;
  }
  const other = way < 0 ? row.previousElementSibling : row.nextElementSibling,
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
  if (/^(SELECT|INPUT|TEXTAREA)$/.test(target.tagName) || !state.panes.length) return;
  if (key === "ArrowRight") go(state.step + 1);
  else if (key === "ArrowLeft") go(state.step - 1);
  else if (key === "a") {
    state.all = !state.all;
    draw();
  }
});

// --- deep links: #step=hook_embed&view=all&head=1&position=2&why=blocks.0.attn.hook_pattern:0,3,1

function remember() {
  const link = new URLSearchParams({ step: cards[state.step].id }),
    why = state.trail[state.trail.length - 1];
  if (state.all) link.set("view", "all");
  if (state.head) link.set("head", state.head);
  if (state.position !== null) link.set("position", state.position);
  if (why) link.set("why", `${why.name}:${why.index.join(",")}${why.pane ? `:${why.pane}` : ""}`);
  const hash = `#${link.toString().replaceAll("%3A", ":").replaceAll("%2C", ",")}`;
  if (location.hash !== hash) window.history.replaceState(null, "", hash);
}
function recall() {
  if (!state.panes.length) return;
  const link = new URLSearchParams(location.hash.slice(1)),
    whole = (text) => Math.max(0, Math.trunc(Number(text)) || 0),
    number = (name, none) => (link.has(name) ? whole(link.get(name)) : none);
  cards = list();
  const step = cards.findIndex((card) => card.id === link.get("step"));
  state.step = step >= 0 ? step : number("step", 1) - 1;
  state.all = link.get("view") === "all";
  state.head = Math.min(number("head", 0), state.panes[0].story.config.n_heads - 1);
  state.position = number("position", null);
  const [name, index, pane] = (link.get("why") || "").split(":");
  state.trail =
    name && /^\d+(,\d+)*$/.test(index)
      ? [{ pane: Math.min(whole(pane), state.panes.length - 1), name, index: index.split(",").map(Number) }]
      : [];
}
window.addEventListener("hashchange", () => {
  recall();
  draw();
});
