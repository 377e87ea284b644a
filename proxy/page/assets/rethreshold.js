"use strict";
// Judges the stored steps of a finished trajectory again, under thresholds that sliders set (Eq. 6 to 8).
const rethreshold = (() => {
  const { el, number, STEP } = trajectory;

  // A judge's marks and the values of a scorer of one's own are none, so no threshold for V fits them.
  const areProbabilities = (scoring) => !/^(judge_|http$)/.test(scoring);

  function boundaries(steps, base, scale) {
    return steps.map((step) => (scale === 0 ? base : base * Math.exp(-scale * step[STEP.ENTROPY])));
  }

  // As proxy/core/credit.py: the steepest fall of value after a safe step; the earliest wins a tie.
  function bifurcation(values, limits) {
    let found = values.length - 1, steepest = Infinity;
    for (let index = 1; index < values.length; index++) {
      const fall = values[index] - values[index - 1];
      if (values[index - 1] >= limits[index - 1] && fall < steepest) [found, steepest] = [index, fall];
    }
    return found;
  }

  function outcome(steps, base, scale, backtracks) {
    const limits = boundaries(steps, base, scale), values = steps.map((step) => step[STEP.VALUE]);
    const breach = values.findIndex((value, index) => value < limits[index]);
    if (breach < 0) return { limits, breach: null, bifurcation: null };
    const cut = backtracks ? bifurcation(values.slice(0, breach + 1), limits) : breach;
    return { limits, breach, bifurcation: cut };
  }

  function sentence({ breach, bifurcation }, steps, wasBreached, isFirst) {
    return judgement({ breach, bifurcation }, steps, wasBreached)
      + (isFirst ? " Only the steps before the first correction are judged again: what follows depends on it." : "");
  }

  function judgement({ breach, bifurcation }, steps, wasBreached) {
    if (breach !== null) return `Breach at step ${breach} (V ${number(steps[breach][STEP.VALUE])}); the teacher would go back to t* = ${bifurcation}.`;
    if (!wasBreached) return "No breach: the student's whole text would stand.";
    return "No breach in these steps. What the student would have written after them is not known, because it was stopped.";
  }

  // Fills `place` with the sliders; leaves it empty where the steps have no values to compare, or
  // each step has a boundary of its own, which no slider sets. `breach` is the first, and steps
  // after it are left out. `draw` gets the other steps with their new boundaries, and the new
  // bifurcations.
  function show(place, all, params, breach, draw) {
    const steps = breach === null ? all : all.slice(0, breach + 1);
    const adaptive = params.boundary !== "static";
    const usable = params.boundary !== "quantile" && steps.length && steps.every((step) => step[STEP.VALUE] !== null && (!adaptive || step[STEP.ENTROPY] !== null));
    place.hidden = !usable;
    if (!usable) return;
    const base = control(`${place.id}-base`, "ε₀", 0, 1, 0.01, params.base_threshold);
    const scale = control(`${place.id}-scale`, "θ", 0, 5, 0.1, adaptive ? params.entropy_scale : 0);
    const said = el("p", { class: "said", role: "status" });
    function judge() {
      const found = outcome(steps, base.value(), scale.value(), params.backtrack !== "none");
      said.textContent = sentence(found, steps, breach !== null, steps.length < all.length);
      draw(steps.map((step, index) => {
        const again = [...step];
        again[STEP.BOUNDARY] = found.limits[index];
        again[STEP.VERDICT] = step[STEP.VALUE] < found.limits[index] ? "breach" : "safe";
        return again;
      }), found.bifurcation === null ? [] : [found.bifurcation]);
    }
    for (const one of [base, scale]) one.input.addEventListener("input", judge);
    place.replaceChildren(el("summary", {}, "The same steps under other thresholds"), el("div", { class: "options two-options" }, base.field, ...(adaptive ? [scale.field] : [])), said);
    judge();
  }

  function control(id, symbol, min, max, step, value) {
    const input = el("input", { type: "range", id, min, max: Math.max(max, value), step, value });
    const out = el("output", { for: id }, String(value));
    input.addEventListener("input", () => { out.textContent = input.value; });
    const field = el("div", { class: "option" }, el("div", { class: "named" }, el("label", { for: id }, el("b", {}, symbol)), out), input);
    return { input, field, value: () => Number(input.value) };
  }

  return { areProbabilities, show, outcome };
})();
