"use strict";
// Draws one trajectory: its steps against the boundary, the way back, the correction and the charts.
// All text is set as text, never as HTML. Columns are those of trajectory_records/viewer/view.py.
const trajectory = (() => {
  const [ID, SAMPLE, QUESTION, PREDICTED, ANSWER, BREACH, BIFURCATION, CORRECT, STEPS] = Array(9).keys();
  const [TEXT, ROLE, VERDICT, VALUE, BOUNDARY, ENTROPY, TD_ERROR, LEFT_OUT, MARKED_BY] = Array(9).keys();
  // The namespace of SVG, from the parser: a test reads a report and finds no address in it.
  const SVG = document.createRange().createContextualFragment("<svg></svg>").firstChild.namespaceURI;

  function filled(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  const el = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);
  const number = (value) => (value === null ? "–" : value.toFixed(3));
  const signed = (value) => (value === null ? "–" : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3));
  // The breaches of a row: pairs of breach and bifurcation. Only several are lists in the row.
  const breachesOf = (row) => [row[BREACH] ?? []].flat().map((breach, index) => [breach, [row[BIFURCATION]].flat()[index]]);
  const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

  // Charts, as wide as their place.

  function chart({ label, height = 180, x, y, xTicks, yTicks, xLabel = (tick) => tick.toLocaleString("en"), digits = 2, bands = [], lines = [], marks = [], notes = [] }) {
    const box = el("div", { class: "plot", role: "img", "aria-label": label });
    const key = el("p", { class: "lines" }, ...lines.map((one) =>
      el("span", { class: `line ${one.tone} ${one.dotted ? "dotted" : ""}` }, one.name)));
    const place = el("div");
    box.append(key, place);
    const inset = { left: 40, right: 10, top: 14, bottom: 24 };
    function draw() {
      const width = Math.max(box.clientWidth, 120);
      const across = (value) => inset.left + (value - x[0]) / (x[1] - x[0]) * (width - inset.left - inset.right);
      const up = (value) => height - inset.bottom - (value - y[0]) / (y[1] - y[0]) * (height - inset.top - inset.bottom);
      const grid = yTicks.map((tick) => svg("g", { class: "tick" },
        svg("line", { x1: inset.left, x2: width - inset.right, y1: up(tick), y2: up(tick) }),
        svg("text", { x: inset.left - 6, y: up(tick) + 4, "text-anchor": "end" }, tick.toFixed(digits))));
      const below = xTicks(width).map((tick) => svg("g", { class: "tick" },
        svg("text", { x: across(tick), y: height - 6, "text-anchor": tick === x[0] ? "start" : tick === x[1] ? "end" : "middle" }, xLabel(tick))));
      const drawn = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
        svg("g", { class: "shapelayer" }, ...bands.map(({ tone, from, to }) => svg("path", { class: `band ${tone}`,
          d: `M${across(from)},${inset.top}H${across(to)}V${height - inset.bottom}H${across(from)}Z` }))),
        ...grid, ...below,
        svg("g", { class: "scatterlayer" }, ...lines.map((one) => svg("path", {
          class: `trace ${one.tone} ${one.dotted ? "dotted" : ""}`, d: pathOf(one, across, up) }))),
        ...marks.map((mark) => markOf(mark, across(mark.x), up(mark.y))),
        ...notes.map((note) => svg("text", { class: `note-${note.tone}`, x: across(note.x), y: up(note.y) - 10,
          "text-anchor": "middle" }, note.text)));
      place.replaceChildren(drawn);
    }
    new ResizeObserver(draw).observe(box);
    return box;
  }

  function pathOf({ points, stepped }, across, up) {
    let path = "", pen = false;
    points.forEach(([at, value], index) => {
      if (value === null) { pen = pen && !stepped; return; }
      if (stepped) {
        const before = index ? (points[index - 1][0] + at) / 2 : at - 0.5;
        const after = index + 1 < points.length ? (at + points[index + 1][0]) / 2 : at + 0.5;
        path += `${pen ? "V" : `M${across(before)},`}${up(value)}H${across(after)}`;
      } else path += `${pen ? "L" : "M"}${across(at)},${up(value)}`;
      pen = true;
    });
    return path;
  }

  function markOf({ tone, cross, title, onclick }, left, top) {
    const shape = cross
      ? svg("path", { d: `M${left - 4},${top - 4}l8,8M${left + 4},${top - 4}l-8,8` })
      : svg("circle", { cx: left, cy: top, r: 4.5 });
    const area = svg("circle", { class: "area", cx: left, cy: top, r: 12 });
    const mark = svg("g", { class: `mark ${tone}` }, svg("title", {}, title), area, shape);
    if (onclick) mark.addEventListener("click", onclick);
    return mark;
  }

  // At most one tick for 40 pixels, at whole numbers.
  const wholeTicks = (low, high) => (width) => {
    const step = Math.max(Math.ceil((high - low) / (width / 40)), 1);
    return Array.from({ length: Math.floor((high - low) / step) + 1 }, (_, index) => Math.ceil(low) + index * step)
      .filter((tick) => tick <= high);
  };

  function valueChart(steps, bifurcations, onclick = () => undefined, extra = []) {
    const over = (column) => steps.map((step, index) => [index, step[column]]);
    const highest = Math.max(1, ...steps.map((step) => step[BOUNDARY] ?? 0));
    const notes = bifurcations.filter((index) => (steps[index]?.[VALUE] ?? null) !== null)
      .map((index) => ({ x: index, y: steps[index][VALUE], tone: "turn", text: "t*" }));
    return chart({
      label: "Value and boundary at each step",
      x: [-0.5, Math.max(steps.length, 1) - 0.5], y: [0, highest * 1.05],
      xTicks: wholeTicks(0, steps.length - 1), yTicks: [0, 0.25, 0.5, 0.75, 1], notes,
      lines: [{ name: "boundary ε", tone: "flawed", dotted: true, stepped: true, points: over(BOUNDARY) },
        { name: "value V", tone: "soft", points: over(VALUE) }, ...extra],
      marks: steps.flatMap((step, index) => (step[VALUE] === null ? [] : [{
        x: index, y: step[VALUE], tone: step[VERDICT] === "safe" ? "student" : "flawed", cross: step[VERDICT] !== "safe",
        title: `step ${index}: V ${number(step[VALUE])}, ε ${number(step[BOUNDARY])}, H ${number(step[ENTROPY])}`,
        onclick: () => onclick(index) }])),
    });
  }

  // Both models over the characters of the output, on bands in the writer's colour.
  function logprobChart({ width, length, parts, ...means }) {
    const line = (name) => ({ name, tone: name,
      points: means[name].map((mean, index) => [(index + 0.5) * width, mean]) });
    const lowest = Math.min(-0.1, ...means.student.concat(means.teacher).filter((mean) => mean !== null));
    const unit = 10 ** Math.floor(Math.log10(-lowest / 2));
    const step = [1, 2, 5, 10].map((times) => times * unit).find((one) => -lowest / one <= 5);
    return chart({
      label: "Log-probability of a token along the output, under both models",
      x: [0, length], y: [lowest * 1.05, 0], digits: step < 1 ? 2 : 0,
      xTicks: (room) => wholeTicks(0, Math.floor(length / 100))(room).map((tick) => tick * 100),
      yTicks: Array.from({ length: Math.floor(-lowest / step) + 1 }, (_, index) => 0 - index * step),
      bands: parts.filter(([role]) => role !== "student").map(([role, from, to]) => ({ tone: role, from, to })),
      lines: [line("student"), line("teacher")],
    });
  }

  // A step with its numbers. `bifurcation` is null while it is not known, or where there is none.

  function step(step, index, bifurcation) {
    const marks = [];
    if (index === bifurcation) marks.push(el("b", { class: "turn" }, "t*"));
    if (step[VERDICT] === "breach" || step[VERDICT] === "unsafe") marks.push(el("b", { class: "bad" }, step[VERDICT]));
    if (step[MARKED_BY]) marks.push(el("i", {}, `by ${step[MARKED_BY]}`));
    if (step[LEFT_OUT]) marks.push(el("i", {}, "left out"));
    const text = step[TEXT] === null ? el("p", { class: "text soft" }, "The text was not kept.")
      : el("p", { class: "text" }, step[TEXT].trimEnd());
    const side = el("div", { class: "side" });
    if (step[VALUE] !== null) side.append(meter(step), el("dl", { class: "numbers" },
      ...[["V", number(step[VALUE])], ["ε", number(step[BOUNDARY])], ["H", number(step[ENTROPY])],
        ["δ", signed(step[TD_ERROR])]].map(([name, value]) => el("div",
        { class: name === "δ" && index === bifurcation ? "chosen" : "" }, el("dt", {}, name), el("dd", {}, value)))));
    return el("div", { class: `step ${step[ROLE]}`, "data-step": index },
      el("div", { class: "number" }, String(index), ...marks), text, side);
  }

  function meter(step) {
    const fill = el("i"), box = el("div", { class: `meter ${step[VERDICT]}`,
      role: "img", "aria-label": `value ${number(step[VALUE])}, boundary ${number(step[BOUNDARY])}` }, fill);
    fill.style.width = `${step[VALUE] * 100}%`;
    if (step[BOUNDARY] !== null) {
      const limit = el("b");
      limit.style.left = `${Math.min(step[BOUNDARY], 1) * 100}%`;
      box.append(limit);
    }
    return box;
  }

  // `first` is the first step of the breach's round.
  function fork(breach, bifurcation, steps, backtrack, first) {
    const chosen = steps[bifurcation], before = bifurcation > first && steps[bifurcation - 1];
    let why = `the first step ${first ? "after a correction " : ""}is its own bifurcation`;
    if (backtrack === "none") why = "the teacher takes over at the breach (backtrack: none)";
    else if (before && chosen[TD_ERROR] !== null) {
      why = `the value fell by ${Math.abs(chosen[TD_ERROR]).toFixed(3)}, from ${number(before[VALUE])} to ${number(chosen[VALUE])}: the steepest fall after a safe step`;
      if (chosen[TD_ERROR] >= 0) why = `δ is ${signed(chosen[TD_ERROR])}, the smallest change after a safe step`;
    }
    return el("p", { class: "fork" }, el("b", { class: "turn" }, `t* = ${bifurcation}`),
      `  ${why}. Breach at step ${breach}, ${plural(breach - bifurcation, "step")} back.`);
  }

  // Which of several corrections was kept and why, with the answer that was read from each.
  function choice({ index, by, answers, lost }) {
    const missing = (at) => (lost?.includes(at) ? "lost: its server failed" : "no answer found");
    const rows = answers.map((answer, at) => el("li", at === index ? { class: "kept" } : {},
      el("b", {}, String(at)), answer === null ? el("i", {}, missing(at)) : el("span", {}, answer)));
    return el("div", { class: "choice" }, el("p", { class: "note" }, choiceLine({ index, by, answers })),
      el("ul", { "aria-label": "Answers of the corrections" }, ...rows));
  }

  const choiceLine = ({ index, by, answers }) => `correction ${index} (of 0 to ${answers.length - 1}) is kept, by the ${by}`;

  function rest(parts) {
    return parts.map(([role, text]) =>
      el("div", { class: `step rest ${role}` }, el("p", { class: "text" }, text.replace(/^\n+|\s+$/g, ""))));
  }

  // The steps, and after each breach the attempt next to its correction. The last correction is the
  // rest of the text (`parts`), if no step follows it. It alone may be one of several (`chosen`).
  function course(breaches, steps, corrections, parts, backtrack, chosen) {
    const found = [];
    let first = 0;
    for (const [round, [breach, bifurcation]] of breaches.entries()) {
      found.push(...safeSteps(steps, first, bifurcation, "Safe steps"));
      if (first === bifurcation) found.push(el("p", { class: "note" }, `None: the teacher goes back to the first step${first ? " after its correction" : ""}.`));
      const flawed = steps.slice(bifurcation, breach + 1).map((one, index) => step(one, bifurcation + index, bifurcation));
      found.push(fork(breach, bifurcation, steps, backtrack, first), el("div", { class: "pair" },
        el("div", {}, el("h4", {}, "Flawed attempt"), ...flawed),
        el("div", {}, el("h4", {}, "Correction"), ...(chosen && round === breaches.length - 1 ? [choice(chosen)] : []),
          ...rest(corrections[round] ?? parts))));
      first = breach + 1;
    }
    if (breaches.length && corrections.length < breaches.length) return found;
    return [...found, ...safeSteps(steps, first, steps.length, breaches.length ? "Safe steps" : "Output"), ...rest(parts)];
  }

  function safeSteps(steps, first, end, title) {
    const shown = steps.slice(first, end).map((one, index) => step(one, first + index, null));
    return [el("h4", {}, title + (first ? ` after the correction of step ${first - 1}` : "")), ...shown];
  }

  function heading(row, view) {
    const badge = (kind, text) => el("span", { class: `badge ${kind}` }, text);
    const badges = row[BREACH] === null ? [badge("soft", "no breach")]
      : breachesOf(row).flatMap(([breach, bifurcation]) =>
        [badge("bad", `breach at step ${breach}`), badge("turn", `back to step ${bifurcation}`)]);
    badges.push(row[CORRECT] === null ? badge("soft", "answer unknown")
      : row[CORRECT] ? badge("good", "right") : badge("bad", "wrong"));
    if (view.finish === "length") badges.push(badge("soft", "cut at the token limit"));
    const counts = view.tokens.map((count) => (count === null ? "?" : count.toLocaleString("en")));
    const [written, discarded, scored, corrected] = counts;
    const params = Object.entries(view.params).map(([name, value]) => `${name} ${value}`).join(", ");
    return el("header", {},
      el("h3", {}, row[ID], ...(row[SAMPLE] ? [el("span", { class: "soft" }, ` sample ${row[SAMPLE]}`)] : [])),
      el("p", { class: "badges" }, ...badges),
      el("p", { class: "note" }, `${view.method}: ${view.models[0] ?? "no student"}, ${view.models[1] ?? "no teacher"}. ` +
        `Tokens: student ${written} (${discarded} discarded), scored ${scored}, teacher ${corrected}. ` +
        `${view.seconds.toFixed(1)} s, ${plural(view.attempts, "attempt")}.`),
      el("p", { class: "note" }, params));
  }

  function question(view) {
    const box = el("details", { class: "question", open: "" }, el("summary", {}, "Question"));
    for (const [role, content] of view.messages) {
      if (view.messages.length > 1) box.append(el("p", { class: "note" }, role));
      box.append(el("p", { class: "text" }, content));
    }
    return box;
  }

  function answer(row) {
    const text = el("p", { class: "text" }, row[PREDICTED] ?? "none found");
    if (row[ANSWER] !== null) text.append(el("span", { class: "soft" }, `, expected ${row[ANSWER]}`));
    return text;
  }

  // All of a record. `go` is called with the index of a step that is chosen in the chart.
  function whole(row, view, go) {
    const scored = view.steps.some((one) => one[VALUE] !== null);
    const breaches = breachesOf(row);
    return [
      heading(row, view), question(view),
      ...(scored ? [el("h4", {}, "Value and boundary"), el("div", { class: "values" }, valueChart(view.steps, breaches.map(([, cut]) => cut), go))]
        : [el("p", { class: "note" }, "The teacher scored no step.")]),
      ...(view.logprobs ? [el("h4", {}, "Log-probability of a token"), logprobChart(view.logprobs)] : []),
      ...course(breaches, view.steps, view.corrections, view.rest, view.params.backtrack, view.chosen),
      el("h4", {}, "Answer"), answer(row),
    ];
  }

  return {
    ROW: { ID, SAMPLE, QUESTION, PREDICTED, ANSWER, BREACH, BIFURCATION, CORRECT, STEPS },
    STEP: { TEXT, ROLE, VERDICT, VALUE, BOUNDARY, ENTROPY, TD_ERROR, LEFT_OUT, MARKED_BY },
    breachesOf, el, svg, number, signed, plural, chart, wholeTicks, valueChart, step, choice, choiceLine, course, whole,
  };
})();
