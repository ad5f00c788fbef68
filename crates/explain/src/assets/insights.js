// Cards about what follows from the numbers: next words, the draw, who spoke, guesses, the verdict.
"use strict";

// The class of what is otherwise in the pane beside it.
function differsFrom(pane, of, mine) {
  const other = otherOf(pane),
    theirs = other && of(other.story);
  return theirs !== undefined && theirs !== null && theirs !== mine ? "differs" : null;
}

function tokensBody(pane) {
  const when = (t) => (t.pass === 0 ? "read with the prompt" : `computed alone, pass ${t.pass}`);
  return [
    table(
      columns(["word", "position", "id", ["from"], ["when"]]),
      h(
        "tbody",
        {},
        tokensOf(pane).map((t) =>
          h(
            "tr",
            { class: differsFrom(pane, (story) => story.tokens[t.position]?.text, t.text) },
            tokenHead(pane, t.position),
            h("td", {}, `${t.position}`),
            numberCellOfToken(pane, t),
            h("td", { class: "words-cell" }, t.from === "prompt" ? "the prompt" : "the answer"),
            h("td", { class: "words-cell whole soft" }, when(t)),
          ),
        ),
      ),
    ),
    pane.story.unknown.length
      ? h("p", { class: "note" }, `Not in the vocabulary: ${pane.story.unknown.join(", ")}`)
      : null,
    pane.story.truncated
      ? h("p", { class: "note" }, `The prompt's first ${pane.story.truncated} words did not fit the context.`)
      : null,
  ];
}
const numberCellOfToken = (pane, token) =>
  h(
    "td",
    {
      class: "n",
      tabindex: -1,
      "data-p": token.position,
      "data-pane": state.panes.indexOf(pane),
      "data-name": "tokens",
      "data-index": `${token.position}`,
    },
    `${token.id}`,
  );

function nextWordsBody(pane) {
  const rows = some(pane.story.next_words.length, 100, "next-words"),
    theirs = otherOf(pane)?.story.next_words;
  return [
    table(
      columns(["after", ["the model's guess"], "", ["what came"], "its percentage", "surprise"]),
      h(
        "tbody",
        {},
        rows.list.map((position) => {
          const next = pane.story.next_words[position],
            top = next.top[0],
            other = theirs?.[position]?.top[0];
          const hit = next.next && next.next.id === top.id,
            differs = other && other.text !== top.text;
          return h(
            "tr",
            {},
            tokenHead(pane, position),
            h(
              "td",
              {
                class: `words-cell${differs ? " differs" : ""}`,
                title: differs ? `${visible(other.text)} in the other` : null,
              },
              visible(top.text),
            ),
            h("td", { class: "tint", style: shade(top.probability) }, percent(top.probability)),
            h(
              "td",
              { class: `words-cell${next.given ? "" : " chosen"}` },
              next.next ? `${visible(next.next.text)}${hit ? " ✓" : ""}` : "–",
            ),
            h("td", {}, next.next ? percent(next.next.probability) : "–"),
            h("td", {}, next.surprise === null ? "–" : `${next.surprise.toFixed(2)} bits`),
          );
        }),
      ),
    ),
    moreButton(rows.more, "words", "next-words"),
    h(
      "p",
      { class: "soft" },
      "Surprise is −log₂ of the percentage: 0 bits were certain, 1 bit a coin toss. Words in colour were chosen by the model.",
    ),
  ];
}

function answerBody(pane, chosen) {
  const sampling = pane.story.sampling,
    tokens = tokensOf(pane),
    pass = tokens[chosen.after].pass,
    drawn = chosen.uniform !== null;
  const n = pane.story.answer.indexOf(chosen),
    at = (story) => story.answer[n]?.token.text;
  const fates = {
    top_k: "cut by top-k",
    top_p: "cut by top-p",
    min_p: "cut by min-p",
    forbidden: "forbidden",
  };
  return [
    h(
      "p",
      {},
      pass === 0
        ? `The prompt was read in one pass of ${tokens.filter((t) => t.pass === 0).length} words.`
        : `Only ${quoted(tokens[chosen.after].text)} was computed; keys and values of the ${chosen.after} words before came from the cache.`,
    ),
    h(
      "p",
      {},
      !drawn
        ? "Temperature 0: the likeliest word is taken."
        : `Temperature ${sampling.temperature}, seed ${sampling.seed}: the random number is ${chosen.uniform.toFixed(4)}, and it falls into the share of ${quoted(chosen.token.text)}.`,
    ),
    drawn ? strip(chosen) : null,
    bars(
      chosen.candidates.map((c) => ({
        name: visible(c.text),
        value: c.probability,
        class:
          c.id === chosen.token.id
            ? `chosen ${differsFrom(pane, at, chosen.token.text) ?? ""}`
            : fates[c.cut]
              ? "cut"
              : "",
        text: `${percent(c.probability, 2)}${fates[c.cut] ? `  ${fates[c.cut]}` : drawn ? `  ${c.from.toFixed(3)}–${(c.from + c.share).toFixed(3)}` : ""}`,
      })),
      1,
    ),
    chosen.more ? h("p", { class: "soft" }, `and ${chosen.more} words more`) : null,
    chosen === pane.story.answer[pane.story.answer.length - 1] ? h("p", {}, ending(pane.story.finish)) : null,
  ];
}
const ending = (finish) =>
  ({
    eos: "The answer ends with this word, which ends texts.",
    length: "The answer ends here: no more words were asked for.",
    context_full: "The answer ends here: the model's context is full.",
  })[typeof finish === "string" ? finish : Object.keys(finish)[0]] ?? "The answer ends here.";
// The shares side by side from 0 to 1, and where the random number fell.
function strip(chosen) {
  const kept = chosen.candidates.filter((c) => !c.cut && c.share > 0);
  return h(
    "div",
    {
      class: "strip",
      role: "img",
      "aria-label": `the random number ${chosen.uniform.toFixed(4)} falls between the bounds of ${visible(chosen.token.text)}`,
    },
    kept.map((c) =>
      h(
        "span",
        {
          class: c.id === chosen.token.id ? "part chosen" : "part",
          title: `${visible(c.text)}: ${percent(c.share, 2)}`,
          style: `left:${(100 * c.from).toFixed(3)}%;width:${(100 * c.share).toFixed(3)}%`,
        },
        c.share > 0.06 ? visible(c.text) : "",
      ),
    ),
    h("i", { style: `left:${(100 * chosen.uniform).toFixed(3)}%` }),
  );
}

function contributionsBody(pane) {
  return pane.story.contributions.map((c) => {
    const parts = [...c.parts].sort((a, b) => Math.abs(b.value) - Math.abs(a.value)),
      shown = parts.slice(0, 14),
      rest = parts.slice(14);
    const listed = shown.map((part) => ({ name: part.name, value: part.value, text: showNumber(part.value, 2) }));
    if (rest.length) {
      const value = rest.reduce((sum, part) => sum + part.value, 0);
      listed.push({ name: `${rest.length} smaller parts`, value, text: showNumber(value, 2) });
    }
    return [
      h("h3", {}, `${quoted(c.token.text)} after ${quoted(tokensOf(pane)[c.position].text)}`),
      waterfall(listed, { name: "together", value: c.sum, text: showNumber(c.sum, 2) }),
      h(
        "p",
        { class: "soft" },
        `The parts add up to ${showNumber(c.sum, 4)}; the output value is ${showNumber(c.logit, 4)}${Math.abs(c.sum - c.logit) <= 1e-3 * Math.max(1, Math.abs(c.logit)) ? " ✓" : ": they differ"}. Norms are taken with the scale that they had.`,
      ),
    ];
  });
}

function lensBody(pane) {
  const position = closely(pane),
    last = pane.story.lens[pane.story.lens.length - 1]?.top[position]?.[0];
  const theirs = otherOf(pane)?.story.lens;
  if (!last)
    return h(
      "p",
      {},
      `For a model of this size the guesses are computed only where words were chosen; choose one of the last words above.`,
    );
  return [
    h(
      "p",
      {},
      `If the model stopped early and went straight to the output layer: what it would say after ${quoted(tokensOf(pane)[position].text)}.`,
    ),
    table(
      columns(["", ["first guess"], "", ["second"], ["third"]]),
      h(
        "tbody",
        {},
        pane.story.lens.map((stage, n) => {
          const guesses = stage.top[position].slice(0, 3),
            other = theirs?.[n]?.top[position]?.[0];
          const differs = other && other.text !== guesses[0].text;
          return h(
            "tr",
            {},
            h("th", { scope: "row", class: "long" }, `after ${stage.after}`),
            h(
              "td",
              {
                class: `words-cell${guesses[0].id === last.id ? " chosen" : ""}${differs ? " differs" : ""}`,
                title: differs ? `${visible(other.text)} in the other` : null,
              },
              visible(guesses[0].text),
            ),
            h("td", { class: "tint", style: shade(guesses[0].probability) }, percent(guesses[0].probability)),
            guesses
              .slice(1)
              .map((guess) =>
                h(
                  "td",
                  { class: `words-cell${guess.id === last.id ? " chosen" : ""}` },
                  `${visible(guess.text)} ${percent(guess.probability)}`,
                ),
              ),
          );
        }),
      ),
    ),
  ];
}

function verdictBody(pane) {
  const verdict = pane.story.verdict;
  return [
    h("p", {}, capital(`${verdict.sentence}.`)),
    h(
      "details",
      {},
      h("summary", {}, "tensor by tensor"),
      table(
        columns(["tensor", "numbers", "largest difference"]),
        h(
          "tbody",
          {},
          verdict.differences.map((d) =>
            h(
              "tr",
              {},
              h("th", { scope: "row", class: "long" }, d.name),
              h("td", {}, `${d.count}`),
              h("td", {}, d.largest === null ? "∞" : d.largest.toExponential(1)),
            ),
          ),
        ),
      ),
    ),
  ];
}
