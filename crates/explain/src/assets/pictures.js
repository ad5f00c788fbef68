// Pictures: planes, sinusoids, attention as lines and heat maps, RoPE angles, curves over training.
"use strict";

// The available width. Pictures are not scaled, so that text has the same size on small screens.
const room = () => Math.min(620, window.innerWidth - 66);

// The width of a text in pixels, in the font of the pictures.
const ruler = document.createElement("canvas").getContext("2d");
function textWidth(text, size) {
  ruler.font = `${size}px system-ui, sans-serif`;
  return ruler.measureText(text).width;
}

// Two-dimensional vectors as points on a plane: [{at: [x, y], from, text, position, hollow}].
function plane(points, label) {
  const size = 320,
    ends = points.flatMap((p) => [p.at, ...(p.from ? [p.from] : [])]);
  const max = 1.25 * Math.max(...ends.flat().map(Math.abs), 1e-6);
  const x = (v) => size / 2 + (v / max) * (size / 2),
    y = (v) => size / 2 - (v / max) * (size / 2);
  const ticks = ticksUpTo(max * 0.97).flatMap((value) => [-value, value]);
  const texts = [
    ...ticks.map((value) => ({ at: [x(value), size / 2 + 15], anchor: "middle", text: axisNumber(value) })),
    ...ticks.map((value) => ({ at: [size / 2 - 6, y(value) + 4], anchor: "end", text: axisNumber(value) })),
    { at: [size - 4, size / 2 - 7], anchor: "end", text: "element 0" },
    { at: [size / 2 + 6, 14], anchor: "start", text: "element 1" },
  ];
  const labels = placeLabels(
    points.map((p) => ({ x: x(p.at[0]), y: y(p.at[1]), width: textWidth(p.text, 13) })),
    size,
    texts.map(({ at, anchor, text }) => {
      const width = textWidth(text, 11),
        left = at[0] - { start: 0, middle: width / 2, end: width }[anchor];
      return [left, at[1] - 10, left + width, at[1] + 3];
    }),
  );
  const line = (from, to, more) => s("line", { x1: x(from[0]), y1: y(from[1]), x2: x(to[0]), y2: y(to[1]), ...more });
  return s(
    "svg",
    { class: "plane", viewBox: `0 0 ${size} ${size}`, width: size, role: "img", "aria-label": label },
    s("line", { class: "axis", x1: 0, x2: size, y1: size / 2, y2: size / 2 }),
    s("line", { class: "axis", x1: size / 2, x2: size / 2, y1: 0, y2: size }),
    ticks.map((value) => [
      s("line", { class: "axis", x1: x(value), x2: x(value), y1: size / 2 - 3, y2: size / 2 + 3 }),
      s("line", { class: "axis", x1: size / 2 - 3, x2: size / 2 + 3, y1: y(value), y2: y(value) }),
    ]),
    texts.map(({ at, anchor, text }) => s("text", { class: "tick", x: at[0], y: at[1], "text-anchor": anchor }, text)),
    points.filter((p) => p.from).map((p) => line(p.from, p.at, { class: "way", "data-p": p.position })),
    points.map((p, i) =>
      s(
        "g",
        { "data-p": p.position },
        labels[i].lead ? s("line", { class: "lead", ...labels[i].lead }) : null,
        s("circle", { cx: x(p.at[0]), cy: y(p.at[1]), r: 5, class: p.hollow ? "hollow" : "dot" }),
        s("text", { class: "label", x: labels[i].x, y: labels[i].y }, p.text),
        s("title", {}, `${p.text}: ${p.at.map((v) => formatNumber(v)).join(", ")}`),
      ),
    ),
  );
}

// The numbers at an axis from 0 to `max`, without the 0: round ones, at most three.
function ticksUpTo(max) {
  const power = 10 ** Math.floor(Math.log10(max)),
    step = [0.5, 1, 2, 5].map((factor) => factor * power).find((step) => max / step < 4);
  return range(Math.floor(max / step + 1e-9)).map((n) => (n + 1) * step);
}
const axisNumber = (value) => `${Number(value.toPrecision(3))}`.replace("-", "−");

// Places each label beside its dot, where it overlaps least and is nearer to its own dot than to another. A label
// at a distance gets a line that leads to its dot. `taken` are boxes that labels avoid.
function placeLabels(dots, size, taken = []) {
  const boxes = [...taken, ...dots.map((dot) => [dot.x - 6, dot.y - 6, dot.x + 6, dot.y + 6])];
  const box = (left, base, width) => [left, base - 11, left + width, base + 3];
  const nearest = ([a, b, c, d], dot) => [Math.max(a, Math.min(c, dot.x)), Math.max(b, Math.min(d, dot.y))];
  const distance = (area, dot) => Math.hypot(nearest(area, dot)[0] - dot.x, nearest(area, dot)[1] - dot.y);
  return dots.map((dot, own) => {
    const { width } = dot;
    const around = (gap) => [
      [gap, 4],
      [-gap - width, 4],
      [-width / 2, -gap - 1],
      [-width / 2, gap + 10],
      [gap, 10 + gap],
      [-gap - width, 10 + gap],
      [gap, -gap],
      [-gap - width, -gap],
    ];
    const spots = [9, 22, 38].flatMap((gap, ring) => around(gap).map(([dx, dy]) => ({ ring, area: box(dot.x + dx, dot.y + dy, width) })));
    const cost = ({ ring, area }) => {
      const [a, b, c, d] = area,
        overlaps = boxes.filter(([e, f, g, i]) => a < g && e < c && b < i && f < d).length,
        isOutside = a < 4 || c > size - 4 || b < 4 || d > size - 4,
        ownDistance = distance(area, dot),
        isNearOther = dots.some((other, n) => n !== own && distance(area, other) < ownDistance + 4);
      // A line to its dot makes a distant label clear, even near another dot.
      return 20 * overlaps + 50 * isOutside + (isNearOther ? (ring ? 3 : 8) : 0) + 2 * ring;
    };
    const best = spots.map((spot) => ({ ...spot, cost: cost(spot) })).reduce((best, spot) => (spot.cost < best.cost ? spot : best));
    boxes.push(best.area);
    const [x2, y2] = nearest(best.area, dot);
    return { x: best.area[0], y: best.area[1] + 11, lead: best.ring ? { x1: dot.x, y1: dot.y, x2, y2 } : null };
  });
}

// The sinusoids of the position encoding, with a dot at each token's position.
function sinusoids(panel, step) {
  const width = step.shape[1],
    shown = Math.min(width, 6),
    last = Math.max(panel.story.config.context_length - 1, 1);
  const limit = Math.min(last, Math.max(rowTokens(panel, step).length + 2, 12), 63);
  const W = room(),
    H = 112,
    left = 34,
    x = (p) => left + (p / limit) * (W - left - 14),
    y = (v) => 58 - v * 28;
  const tick = (value) => s("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, `${value}`.replace("-", "−"));
  return h(
    "div",
    { class: "waves" },
    h("p", { class: "soft" }, `Each curve is one element of the encoding; its dots are the tokens, at their position p from left to right.`),
    range(shown).map((dim) => {
      const wave = dim % 2 ? Math.cos : Math.sin,
        f = frequencyOf(dim, width);
      const points = range(241)
        .map((i) => (i / 240) * limit)
        .map((p) => `${x(p).toFixed(1)},${y(wave(p * f)).toFixed(1)}`);
      const tokens = rowTokens(panel, step).filter((t) => t.position <= limit);
      return s(
        "svg",
        {
          viewBox: `0 0 ${W} ${H}`,
          width: W,
          role: "img",
          "aria-label": `the sinusoid of element ${dim}, with each token's position`,
        },
        s("text", { x: 0, y: 13, class: "label" }, `element ${dim}: ${dim % 2 ? "cos" : "sin"}(p · f) with f = ${formatNumber(f)}`),
        [1, 0, -1].map(tick),
        s("line", { class: "axis", x1: left, x2: W - 14, y1: y(0), y2: y(0) }),
        s("line", { class: "axis", x1: left, x2: left, y1: y(1), y2: y(-1) }),
        s("polyline", { class: "curve", points: points.join(" ") }),
        tokens.map((t) =>
          s(
            "g",
            { "data-p": markOf(step.rows, t.position) },
            s("line", { class: "drop", x1: x(t.position), x2: x(t.position), y1: y(0), y2: y(wave(t.position * f)) }),
            s("circle", { class: "dot", cx: x(t.position), cy: y(wave(t.position * f)), r: 5 }),
            tokens.length <= 14
              ? s(
                  "text",
                  { x: x(t.position), y: H - 2, "text-anchor": "middle" },
                  printable(t.text).slice(0, Math.floor(W / 62)),
                )
              : null,
            s("title", {}, `${printable(t.text)} at position ${t.position}: ${formatNumber(wave(t.position * f))}`),
          ),
        ),
      );
    }),
  );
}

// Attention as lines from each query (below) to its keys (above); thicker means a larger weight.
// The keys may be other tokens than the queries; `marks` are what highlights a query and a key.
function attentionLines(texts, weight, chosen, choose, { keyTexts = texts, marks = [(at) => at, (at) => at] } = {}) {
  const longest = Math.max(texts.length, keyTexts.length),
    step = Math.min(110, Math.max(34, room() / longest)),
    W = step * longest,
    H = 150;
  const x = (at) => step * (at + 0.5),
    clip = Math.max(2, Math.floor(step / 8));
  const label = (token) => {
    const text = printable(token);
    return text.length > clip ? `${text.slice(0, clip - 1)}…` : text;
  };
  const lines = texts.flatMap((_, query) =>
    range(keyTexts.length)
      .filter((key) => weight(query, key) !== null)
      .map((key) => ({ query, key, weight: weight(query, key) || 0 })),
  );
  return h(
    "div",
    { class: "scroll" },
    s(
      "svg",
      {
        class: "looks",
        viewBox: `0 0 ${W} ${H}`,
        width: W,
        role: "img",
        "aria-label": `what ${quoted(texts[chosen])} attends to: ${lines
          .filter((l) => l.query === chosen)
          .map((l) => `${printable(keyTexts[l.key])} ${percent(l.weight)}`)
          .join(", ")}`,
      },
      lines
        .filter((l) => l.weight > 0.004)
        .sort(compareBy((l) => l.query === chosen))
        .map((l) =>
          s(
            "line",
            {
              class: l.query === chosen ? "look chosen" : "look",
              x1: x(l.query),
              y1: H - 28,
              x2: x(l.key),
              y2: 26,
              "stroke-width": (0.6 + 7 * l.weight).toFixed(2),
              "stroke-opacity": (l.query === chosen ? 0.25 + 0.75 * l.weight : 0.22 * l.weight).toFixed(3),
              "data-p": marks[0](l.query),
              "data-k": marks[1](l.key),
            },
            s("title", {}, weightTitle(texts, keyTexts, l.query, l.key, l.weight)),
          ),
        ),
      keyTexts.map((text, at) =>
        s("text", { class: "label", x: x(at), y: 16, "text-anchor": "middle", "data-p": marks[1](at) }, label(text)),
      ),
      texts.map((text, at) =>
        s(
          "text",
          {
            class: `label query${at === chosen ? " chosen" : ""}`,
            x: x(at),
            y: H - 10,
            "text-anchor": "middle",
            "data-p": marks[0](at),
            onclick: () => choose(at),
          },
          label(text),
        ),
      ),
    ),
  );
}

const MAX_NAMED_ROWS = 16,
  MIN_NUMBERED_CELL = 34,
  MAX_CELLS = 64;

// A heat map of attention weights, with tokens and values where there is room. `other` are the weights
// to compare with, `largest` the size in pixels at most. `links`: whether the tokens are those of the prompt, so that both are highlighted together.
function heatmap(
  texts,
  weight,
  label,
  { other = null, links = true, largest = 340, keyTexts = texts, marks = [(at) => at, (at) => at] } = {},
) {
  const n = Math.max(texts.length, keyTexts.length),
    named = n <= MAX_NAMED_ROWS;
  if (n > MAX_CELLS) return heatmapCanvas(texts, keyTexts, weight, label, marks);
  const size = named
    ? Math.max(18, Math.min(42, Math.floor(Math.min(largest, room() - 60) / n)))
    : Math.max(4, Math.floor(Math.min(largest + 80, room()) / n));
  const linkTo = (query, key) => (links ? { "data-p": marks[0](query), "data-k": marks[1](key) } : {});
  const cells = [];
  if (named)
    cells.push(
      h("span", {}),
      keyTexts.map((text, at) => h("span", { class: "top", ...(links ? { "data-p": marks[1](at) } : {}) }, h("em", {}, printable(text)))),
    );
  for (let query = 0; query < texts.length; query++) {
    if (named)
      cells.push(h("span", { class: "side", ...(links ? { "data-p": marks[0](query) } : {}) }, printable(texts[query])));
    for (let key = 0; key < keyTexts.length; key++) {
      const value = weight(query, key),
        differs = other && value !== null && Math.abs(other(query, key) - value) >= 0.05;
      const title =
        value === null
          ? null
          : weightTitle(texts, keyTexts, query, key, value) + (differs ? `, ${percent(other(query, key))} in the other panel` : "");
      cells.push(
        h(
          "i",
          {
            ...linkTo(query, key),
            class: value === null ? "masked" : `shade${differs ? " differs" : ""}${value > 0.6 ? " deep" : ""}`,
            style: value === null ? "" : shade(value),
            title,
          },
          size >= MIN_NUMBERED_CELL && value !== null ? `${Math.round(100 * value)}` : null,
        ),
      );
    }
  }
  const grid = `grid-template-columns:${named ? "max-content " : ""}repeat(${keyTexts.length},${size}px)`;
  const columns = keyTexts.length + Number(named);
  return h("div", { class: "picture", role: "img", "aria-label": label, style: grid, "data-columns": columns }, cells);
}
const weightTitle = (texts, keyTexts, query, key, weight) =>
  `${printable(texts[query])} attends to ${printable(keyTexts[key])}: ${percent(weight)}`;

// A heat map of many tokens, one pixel per weight.
function heatmapCanvas(texts, keyTexts, weight, label, marks) {
  const [rows, columns] = [texts.length, keyTexts.length],
    canvas = h("canvas", { class: "drawn", width: columns, height: rows, role: "img", "aria-label": label });
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(document.body).color;
  for (let query = 0; query < rows; query++) {
    for (let key = 0; key < columns; key++) {
      context.globalAlpha = weight(query, key) ?? 0;
      context.fillRect(key, query, 1, 1);
    }
  }
  canvas.addEventListener("mousemove", (e) => {
    const cell = (x, n) => Math.max(0, Math.min(n - 1, Math.floor(x * n)));
    const [key, query] = [cell(e.offsetX / canvas.clientWidth, columns), cell(e.offsetY / canvas.clientHeight, rows)];
    const value = weight(query, key);
    canvas.title = value === null ? "masked" : weightTitle(texts, keyTexts, query, key, value);
    highlight(`${marks[0](query)}`, `${marks[1](key)}`);
  });
  return canvas;
}

// Pairs of elements before and after the rotation.
function dials(before, after, angles) {
  const size = 92,
    centre = size / 2;
  return h(
    "div",
    { class: "dials" },
    angles.map((angle, i) => {
      const scale = Math.max(Math.hypot(...before[i]), 1e-9) / 36;
      const arm = ([x, y], kind) =>
        s("line", { class: kind, x1: centre, y1: centre, x2: centre + x / scale, y2: centre - y / scale });
      return h(
        "figure",
        {},
        s(
          "svg",
          {
            viewBox: `0 0 ${size} ${size}`,
            width: size,
            role: "img",
            "aria-label": `pair ${i} rotated by ${formatNumber(angle, 2)}`,
          },
          s("circle", { class: "axis", cx: centre, cy: centre, r: 38, fill: "none" }),
          arm(before[i], "arm before"),
          arm(after[i], "arm"),
        ),
        h("figcaption", {}, `pair ${i}: ${((angle * 180) / Math.PI).toFixed(angle < 0.1 ? 2 : 0)}°`),
      );
    }),
  );
}

// Curves over training steps: [{name, values}], with a cursor at the selected step.
function historyPlot(steps, lines, at, label) {
  const W = room(),
    H = 170,
    left = 44,
    bottom = 24,
    last = Math.max(steps[steps.length - 1], 1);
  const x = (step) => left + (step / last) * (W - left - 96),
    y = (p) => 8 + (1 - p) * (H - bottom - 12);
  let free = -100;
  const ends = lines
    .map((line) => ({ line, y: y(line.values[line.values.length - 1]) }))
    .sort(compareBy((end) => end.y))
    .map((end) => {
      free = Math.max(end.y, free + 14);
      return { ...end, y: free };
    });
  return s(
    "svg",
    { class: "history", viewBox: `0 0 ${W} ${H}`, width: W, role: "img", "aria-label": label },
    [0, 0.5, 1].map((p) => [
      s("line", { class: "axis", x1: left, x2: W - 96, y1: y(p), y2: y(p) }),
      s("text", { x: left - 6, y: y(p) + 4, "text-anchor": "end" }, `${100 * p} %`),
    ]),
    s("text", { x: left, y: H - 4 }, "step 0"),
    s("text", { x: x(last), y: H - 4, "text-anchor": "end" }, `step ${last.toLocaleString("en")}`),
    s("line", { class: "cursor", x1: x(steps[at]), x2: x(steps[at]), y1: 4, y2: H - bottom }),
    lines.map((line, i) => [
      s("polyline", {
        class: `curve tone-${i}`,
        points: line.values.map((p, n) => `${x(steps[n]).toFixed(1)},${y(p).toFixed(1)}`).join(" "),
      }),
      s("circle", { class: `dot tone-${i}`, cx: x(steps[at]), cy: y(line.values[at]), r: 4 }),
    ]),
    ends.map((end) =>
      s("text", { class: `label tone-${lines.indexOf(end.line)}`, x: W - 90, y: end.y + 4 }, end.line.name),
    ),
  );
}
