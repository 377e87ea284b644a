"use strict";
// Drives the trajectory viewer. All text of a record is set as text, never as HTML.
(() => {
  const ROW = 58; // height of a row in pixels, as in page.css
  const [ID, SAMPLE, QUESTION, PREDICTED, ANSWER, BREACH, BIFURCATION, CORRECT, STEPS, CHUNK, OFFSET] =
    Array(11).keys();
  const [TEXT, ROLE, VERDICT, VALUE, BOUNDARY, ENTROPY, TD_ERROR, LEFT_OUT, MARKED_BY] = Array(9).keys();
  const FILTERS = {
    all: () => true,
    breach: (row) => row[BREACH] !== null,
    early: (row) => row[BREACH] !== row[BIFURCATION],
    clean: (row) => row[BREACH] === null,
    right: (row) => row[CORRECT] === true,
    wrong: (row) => row[CORRECT] === false,
  };
  const find = (id) => document.getElementById(id);
  if (!find("viewer")) return;
  const [search, filter, count, list, article] =
    ["search", "filter", "count", "rows", "trajectory"].map(find);
  const canvas = el("div", { class: "canvas" });
  const chunks = new Map();
  let rows = [], haystack = [], matches = [], selected = -1, stops = [], stop = -1, wanted = 0;

  function el(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  const number = (value) => (value === null ? "–" : value.toFixed(3));
  const signed = (value) => (value === null ? "–" : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3));
  const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

  // The list: only visible rows are in the document.

  function refill() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = selected >= 0 ? matches[selected] : undefined;
    matches = [...rows.keys()].filter((index) =>
      FILTERS[filter.value](rows[index]) && words.every((word) => haystack[index].includes(word)));
    count.textContent = `${matches.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
    canvas.style.height = `${matches.length * ROW}px`;
    list.scrollTop = 0;
    selected = -1;
    if (matches.length) select(Math.max(matches.indexOf(kept), 0));
    else {
      paint();
      list.removeAttribute("aria-activedescendant");
      article.replaceChildren(el("p", { class: "note" }, "No trajectory matches."));
      stops = [];
    }
  }

  function paint() {
    const first = Math.max(Math.floor(list.scrollTop / ROW) - 3, 0);
    const last = Math.min(first + Math.ceil(list.clientHeight / ROW) + 6, matches.length);
    canvas.replaceChildren();
    for (let place = first; place < last; place++) canvas.append(rowOf(place));
  }

  function rowOf(place) {
    const row = rows[matches[place]];
    const mark = row[CORRECT] === null ? "" : row[CORRECT] ? "right" : "wrong";
    const strayed = row[BREACH] === null ? plural(row[STEPS], "step") : `breach ${row[BREACH]} → ${row[BIFURCATION]}`;
    const element = el("div", {
      class: "row", role: "option", id: `row-${place}`, "aria-selected": String(place === selected),
      "aria-setsize": matches.length, "aria-posinset": place + 1,
    },
      el("span", { class: "name" }, row[ID], ...(row[SAMPLE] ? [el("i", {}, ` #${row[SAMPLE]}`)] : [])),
      el("span", { class: `state ${row[BREACH] === null ? "" : "bad"}` }, strayed),
      el("span", { class: "asked" }, row[QUESTION]),
      el("span", { class: `state ${mark === "wrong" ? "bad" : "good"}` }, mark));
    element.style.top = `${place * ROW}px`;
    element.addEventListener("click", () => select(place));
    return element;
  }

  async function select(place) {
    if (place < 0 || place >= matches.length) return;
    selected = place;
    const top = place * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    paint();
    list.setAttribute("aria-activedescendant", `row-${place}`);
    const mine = ++wanted;
    const row = rows[matches[place]];
    const chunk = await chunkOf(row[CHUNK]);
    if (mine === wanted) show(row, chunk[row[OFFSET]]);
  }

  async function chunkOf(index) {
    if (!chunks.has(index)) {
      chunks.set(index, motab.load(`chunk-${index}`));
      if (chunks.size > 8) chunks.delete(chunks.keys().next().value);
    }
    return chunks.get(index);
  }

  function show(row, view) {
    stop = -1;
    stops = [];
    const chart = el("div", { class: "plot" });
    const trace = el("div", { class: "plot", role: "img", "aria-label": "Log-probability of a token along the output, under both models" });
    const scored = view.steps.some((step) => step[VALUE] !== null);
    const cut = row[BIFURCATION] ?? view.steps.length;
    const parts = [heading(row, view), question(view)];
    if (scored) {
      parts.push(el("h4", {}, "Value and boundary"), chart);
    } else parts.push(el("p", { class: "note" }, "The teacher scored no step."));
    if (view.logprobs) parts.push(el("h4", {}, "Log-probability of a token"), trace);
    parts.push(el("h4", {}, row[BREACH] === null ? "Output" : `Safe steps`));
    if (cut === 0) parts.push(el("p", { class: "note" }, "None: the teacher goes back to the first step."));
    parts.push(...view.steps.slice(0, cut).map((step, index) => stepOf(row, step, index)));
    if (row[BREACH] === null) parts.push(...rest(view));
    else parts.push(fork(row, view), el("div", { class: "pair" },
      el("div", {}, el("h4", {}, "Flawed attempt"),
        ...view.steps.slice(cut).map((step, index) => stepOf(row, step, cut + index))),
      el("div", {}, el("h4", {}, "Correction"), ...rest(view))));
    parts.push(el("h4", {}, "Answer"), answer(row));
    article.replaceChildren(...parts);
    article.scrollTop = 0;
    if (scored) motab.draw(chart, figure(row, view)).then(() => follow(chart)).catch(motab.trouble);
    if (view.logprobs) motab.draw(trace, traceOf(view.logprobs)).catch(motab.trouble);
  }

  function heading(row, view) {
    const badge = (kind, text) => el("span", { class: `badge ${kind}` }, text);
    const badges = row[BREACH] === null ? [badge("soft", "no breach")]
      : [badge("bad", `breach at step ${row[BREACH]}`), badge("turn", `back to step ${row[BIFURCATION]}`)];
    badges.push(row[CORRECT] === null ? badge("soft", "answer unknown")
      : row[CORRECT] ? badge("good", "right") : badge("bad", "wrong"));
    if (view.finish === "length") badges.push(badge("soft", "cut at the token limit"));
    const [written, discarded, scored, corrected] = view.tokens.map((count) => count.toLocaleString("en"));
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

  function stepOf(row, step, index) {
    const marks = [];
    if (index === row[BIFURCATION]) marks.push(el("b", { class: "turn" }, "t*"));
    if (step[VERDICT] === "breach" || step[VERDICT] === "unsafe") marks.push(el("b", { class: "bad" }, step[VERDICT]));
    if (step[MARKED_BY]) marks.push(el("i", {}, `by ${step[MARKED_BY]}`));
    if (step[LEFT_OUT]) marks.push(el("i", {}, "left out"));
    const text = step[TEXT] === null ? el("p", { class: "text soft" }, "The text was not kept.")
      : el("p", { class: "text" }, step[TEXT].trimEnd());
    const side = el("div", { class: "side" });
    if (step[VALUE] !== null) side.append(meter(step), el("dl", { class: "numbers" },
      ...[["V", number(step[VALUE])], ["ε", number(step[BOUNDARY])], ["H", number(step[ENTROPY])],
        ["δ", signed(step[TD_ERROR])]].map(([name, value]) => el("div",
        { class: name === "δ" && index === row[BIFURCATION] ? "chosen" : "" }, el("dt", {}, name), el("dd", {}, value)))));
    const element = el("div", { class: `step ${step[ROLE]}`, "data-step": index },
      el("div", { class: "number" }, String(index), ...marks), text, side);
    return stopAt(element);
  }

  function meter(step) {
    const fill = el("i"), box = el("div", { class: `meter ${step[VERDICT]}`,
      role: "img", "aria-label": `value ${number(step[VALUE])}, boundary ${number(step[BOUNDARY])}` }, fill);
    fill.style.width = `${step[VALUE] * 100}%`;
    if (step[BOUNDARY] !== null) {
      const limit = el("b");
      limit.style.left = `${step[BOUNDARY] * 100}%`;
      box.append(limit);
    }
    return box;
  }

  function fork(row, view) {
    const step = view.steps[row[BIFURCATION]];
    const depth = row[BREACH] - row[BIFURCATION];
    const before = view.steps[row[BIFURCATION] - 1];
    let why = "the first step is its own bifurcation";
    if (view.params.backtrack === "none") why = "the teacher takes over at the breach (backtrack: none)";
    else if (before && step[TD_ERROR] !== null) {
      why = `the value fell by ${Math.abs(step[TD_ERROR]).toFixed(3)}, from ${number(before[VALUE])} to ${number(step[VALUE])}: the steepest fall after a safe step`;
      if (step[TD_ERROR] >= 0) why = `δ is ${signed(step[TD_ERROR])}, the smallest change after a safe step`;
    }
    return el("p", { class: "fork" }, el("b", { class: "turn" }, `t* = ${row[BIFURCATION]}`),
      `  ${why}. Breach at step ${row[BREACH]}, ${plural(depth, "step")} back.`);
  }

  function rest(view) {
    return view.rest.map(([role, text]) => {
      const shown = text.replace(/^\n+|\s+$/g, "");
      return stopAt(el("div", { class: `step rest ${role}` }, el("p", { class: "text" }, shown)));
    });
  }

  function stopAt(element) {
    const place = stops.push(element) - 1;
    element.addEventListener("click", () => go(place, false));
    return element;
  }

  function answer(row) {
    const text = el("p", { class: "text" }, row[PREDICTED] ?? "none found");
    if (row[ANSWER] !== null) text.append(el("span", { class: "soft" }, `, expected ${row[ANSWER]}`));
    return text;
  }

  function layoutOf() {
    const light = motab.light;
    const axis = { gridcolor: light("line"), zerolinecolor: light("line"), fixedrange: true, automargin: true,
      tickfont: { size: 11, color: light("soft") } };
    return {
      height: 220, margin: { l: 36, r: 8, t: 24, b: 32 }, dragmode: false, hovermode: "x unified",
      paper_bgcolor: light("card"), plot_bgcolor: light("card"),
      font: { family: "ui-sans-serif, system-ui, sans-serif", size: 12, color: light("ink") },
      hoverlabel: { bgcolor: light("page"), bordercolor: light("line"), font: { color: light("ink") } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      xaxis: { ...axis, showgrid: false, zeroline: false },
      yaxis: axis,
    };
  }

  function figure(row, view) {
    const light = motab.light, steps = view.steps, layout = layoutOf();
    const over = [...steps.keys()];
    const tone = { safe: "student", unsafe: "flawed", breach: "flawed", unscored: "soft" };
    const annotations = [];
    if (row[BIFURCATION] !== null && steps[row[BIFURCATION]][VALUE] !== null) annotations.push({
      x: row[BIFURCATION], y: steps[row[BIFURCATION]][VALUE], text: "t*", ax: 0, ay: -24, arrowhead: 0,
      arrowcolor: light("revise"), font: { color: light("revise"), size: 13 },
    });
    return {
      data: [
        { x: over, y: steps.map((step) => step[BOUNDARY]), name: "boundary ε", mode: "lines",
          line: { shape: "hvh", color: light("flawed"), dash: "dot", width: 1.5 }, hovertemplate: "%{y:.3f}" },
        { x: over, y: steps.map((step) => step[VALUE]), name: "value V", mode: "lines+markers",
          line: { color: light("soft"), width: 1.5 }, hovertemplate: "%{y:.3f}",
          marker: { size: 9, color: steps.map((step) => light(tone[step[VERDICT]])),
            symbol: steps.map((step) => (step[VERDICT] === "safe" ? "circle" : "x")) } },
      ],
      layout: {
        ...layout, annotations,
        xaxis: { ...layout.xaxis, ...(steps.length <= 20 ? { dtick: 1 } : {}), range: [-0.5, steps.length - 0.5] },
        yaxis: { ...layout.yaxis, range: [0, 1.05] },
      },
    };
  }

  // Both models over the characters of the output, on bands in the writer's colour.
  function traceOf(logprobs) {
    const light = motab.light, layout = layoutOf();
    const at = logprobs.student.map((_, index) => (index + 0.5) * logprobs.width);
    const line = (name) => ({
      x: at, y: logprobs[name], name, mode: "lines", connectgaps: true,
      line: { color: light(name), width: 1.5 }, hovertemplate: "%{y:.3f}",
    });
    return {
      data: [line("student"), line("teacher")],
      layout: {
        ...layout,
        shapes: logprobs.parts.filter(([role]) => role !== "student").map(([role, x0, x1]) => ({
          type: "rect", layer: "below", yref: "paper", x0, x1, y0: 0, y1: 1, line: { width: 0 }, fillcolor: light(`${role}-band`) })),
        xaxis: { ...layout.xaxis, range: [0, logprobs.length] },
        yaxis: { ...layout.yaxis, rangemode: "tozero" },
      },
    };
  }

  function follow(chart) {
    chart.on("plotly_click", (event) => go(event.points[0].pointNumber, true));
  }

  function go(place, scroll) {
    if (place < 0 || place >= stops.length) return;
    stops[stop]?.classList.remove("current");
    stop = place;
    stops[stop].classList.add("current");
    if (scroll) stops[stop].scrollIntoView({ block: "center" });
  }

  function row(place) {
    find("viewer").scrollIntoView({ block: "nearest" });
    select(Math.min(Math.max(place, 0), matches.length - 1));
  }

  const KEYS = {
    j: () => row(selected + 1),
    k: () => row(selected - 1),
    g: () => row(0),
    G: () => row(matches.length - 1),
    n: () => go(Math.min(stop + 1, stops.length - 1), true),
    p: () => go(Math.max(stop - 1, 0), true),
    b: () => matches.length && go(rows[matches[selected]][BIFURCATION] ?? -1, true),
    "/": () => search.focus(),
    "?": () => find("keys").toggleAttribute("open"),
  };

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === search) {
      if (event.key === "Enter" || event.key === "Escape") list.focus();
      return;
    }
    if (event.target === filter) return;
    const arrows = event.target === list ? { ArrowDown: "j", ArrowUp: "k", Home: "g", End: "G" } : {};
    const action = KEYS[arrows[event.key] ?? event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  async function start() {
    await motab.ready;
    rows = await motab.load("index");
    haystack = rows.map((one) => [one[ID], one[QUESTION], one[PREDICTED], one[ANSWER]].join("\n").toLowerCase());
    list.append(canvas);
    list.addEventListener("scroll", paint);
    new ResizeObserver(paint).observe(list);
    search.addEventListener("input", refill);
    filter.addEventListener("change", refill);
    document.addEventListener("keydown", pressed);
    refill();
  }

  start().then(() => { document.documentElement.dataset.viewer = "ready"; }, motab.trouble);
})();
