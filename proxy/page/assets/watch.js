"use strict";
// Follows one question live: the pair with each verdict, next to each of its models alone.
(() => {
  const { el, STEP, plural } = trajectory, { pause, paced, still } = stream;
  const find = (id) => document.getElementById(id);
  const narrow = matchMedia("(max-width: 860px)");
  const TEXT_MS = 10, STEP_MS = 260;
  let models = [], running = null;

  // The newest text stays in sight until somebody scrolls.
  let isFollowing = false;
  const follow = (element) => isFollowing && element.scrollIntoView({ block: "nearest" });
  for (const event of ["wheel", "touchmove", "keydown"])
    window.addEventListener(event, () => { isFollowing = false; }, { passive: true });

  // The pair: steps as they are judged, the way back, the correction.

  class Together {
    constructor(signal) {
      this.signal = signal;
      this.text = "";
      this.steps = [];
      this.judged = 0; // characters of the judged steps
      this.breaches = []; // pairs of breach and bifurcation
      this.corrections = []; // those that the student's next steps follow
      this.chosen = null; // which of several corrections was kept
      this.open = el("p", { class: "text" });
      this.waiting = el("div", { class: "step student open" }, el("div", { class: "number" }, "…"), this.open,
        el("div", { class: "side" }, el("p", { class: "note" }, "no verdict yet")));
      this.rest = el("div", { class: "step rest live" }, el("p", { class: "text" }));
      find("pair").replaceChildren(this.waiting);
      find("pair-chart").replaceChildren();
      find("again").hidden = true;
    }

    say(kind, text) {
      const state = find("pair-state");
      state.className = `state ${kind}`;
      state.textContent = text;
    }

    add(text) {
      this.text += text;
      this.write();
    }

    isCorrecting() {
      return this.breaches.length > this.corrections.length;
    }

    write() {
      if (!this.isCorrecting()) {
        this.open.textContent = this.text.slice(this.judged);
        this.waiting.hidden = !this.open.textContent;
      } else {
        const begun = this.text.slice(this.judged);
        find("revise")?.replaceChildren(this.clean ? "" : this.revise);
        find("correction")?.replaceChildren(this.corrected(begun).replace(/^\n+/, ""));
        if (find("correction")) follow(find("correction").parentElement);
      }
    }

    // The text after the revise token, if that is there.
    corrected(begun) {
      const at = begun.indexOf(this.revise);
      return at < 0 ? begun : begun.slice(at + this.revise.length);
    }

    // A step after a breach: the correction is over, and the student writes again.
    resume(text) {
      const begun = this.text.slice(this.judged), own = this.corrected(begun);
      const before = begun.length - own.length, at = own.indexOf(text);
      const correction = at < 0 ? own : own.slice(0, at);
      this.corrections.push([...(this.clean ? [] : [["revise", this.revise]]), ["teacher", correction]]);
      this.judged += before + correction.length;
      this.lay([]);
      find("pair").append(this.waiting);
    }

    judge({ step, text, value, boundary, entropy, td_error, safe, author }) {
      if (this.isCorrecting()) this.resume(text);
      const verdict = safe === null ? "unscored" : safe ? "safe" : "breach";
      const made = [text, author, verdict, value, boundary, entropy, td_error, false, null];
      this.steps.push(made);
      this.judged += text.length;
      const element = trajectory.step(made, step, null);
      element.classList.add("arrived");
      this.waiting.before(element);
      follow(this.waiting.hidden ? element : this.waiting);
      this.write();
      this.draw();
      if (verdict === "breach") element.classList.add("struck");
      this.say(verdict === "breach" ? "bad" : "", verdict === "breach" ? `step ${step}: V is below ε` : `${plural(this.steps.length, "step")} judged`);
    }

    draw(steps = this.steps, bifurcations = this.breaches.map(([, cut]) => cut)) {
      find("pair-chart").replaceChildren(trajectory.valueChart(steps, bifurcations, (index) => this.go(index)));
    }

    go(index) {
      find("pair").querySelector(`[data-step="${index}"]`)?.scrollIntoView({ block: "center", behavior: still.matches ? "auto" : "smooth" });
    }

    // The breach stands out, then each step back to t*, and then the two ways lie next to each other.
    async turn({ breach, bifurcation }, stitch, revise) {
      this.breaches.push([breach, bifurcation]);
      [this.revise, this.clean] = [revise, stitch === "clean"];
      if (this.clean) this.judged -= this.steps.slice(bifurcation).reduce((sum, one) => sum + one[STEP.TEXT].length, 0);
      this.waiting.hidden = true;
      this.say("bad", `breach at step ${breach}`);
      await pause(900, this.signal);
      for (let index = breach; index >= bifurcation; index--) {
        this.steps[index][STEP.ROLE] = "flawed";
        find("pair").querySelector(`[data-step="${index}"]`)?.classList.add("flawed", "passed");
        this.say("turn", index > bifurcation ? `back past step ${index}` : `back to t* = ${index}`);
        await pause(450, this.signal);
      }
      this.draw();
      await pause(500, this.signal);
      this.lay([]);
      [...find("pair").querySelectorAll(".pair > div:last-child")].at(-1).append(
        ...(this.clean ? [] : [el("div", { class: "step rest revise" }, el("p", { class: "text", id: "revise" }))]),
        el("div", { class: "step rest teacher" }, el("p", { class: "text", id: "correction" })));
      this.say("teacher", "the teacher continues");
      this.write();
    }

    choose(chosen) {
      this.chosen = chosen;
      [...find("pair").querySelectorAll(".pair > div:last-child > h4")].at(-1).after(trajectory.choice(chosen));
      this.say("teacher", trajectory.choiceLine(chosen));
    }

    lay(rest, backtrack = "td_error") {
      find("pair").replaceChildren(...trajectory.course(this.breaches, this.steps, this.corrections, rest, backtrack, this.chosen));
    }

    // The trace has what is certain only at the end: the spans, and each step's place.
    finish(reason, trace, usage) {
      const whole = Array.from(this.text); // offsets count characters, JavaScript counts UTF-16 units
      const listed = trace.breaches ?? (trace.breach === null ? [] : [trace]);
      this.breaches = listed.map(({ breach, bifurcation }) => [breach, bifurcation]);
      const isBreach = (index) => this.breaches.some(([breach]) => breach === index);
      const isFlawed = (index) => this.breaches.some(([breach, cut]) => cut <= index && index <= breach);
      this.steps = trace.steps.map((one, index) => [
        one.start === null ? one.text ?? null : whole.slice(one.start, one.end).join(""),
        one.author === "teacher" ? "teacher" : one.start === null || isFlawed(index) ? "flawed" : "student",
        one.safe === null ? "unscored" : one.safe ? "safe" : isBreach(index) ? "breach" : "unsafe",
        one.value, one.boundary, one.entropy, one.td_error, one.start === null, null,
      ]);
      const { corrections, rest } = this.afterSteps(trace, whole);
      this.corrections = corrections;
      this.chosen = trace.chosen ?? null;
      this.lay(rest, trace.params.backtrack);
      if (this.steps.some((one) => one[STEP.VALUE] !== null)) this.draw();
      const spent = usage?.motab;
      const cut = reason === "length" ? ", cut at the token limit" : "";
      const found = this.breaches.map(([breach, bifurcation]) => `breach at step ${breach}, back to t* = ${bifurcation}`);
      this.say(found.length ? "turn" : "good", `${found.join("; ") || "no breach"}${cut}`);
      if (spent) find("pair").append(el("p", { class: "note" },
        `Tokens: student ${spent.student_tokens.toLocaleString("en")} (${spent.student_tokens_discarded.toLocaleString("en")} discarded), ` +
        `scored ${spent.teacher_scored_tokens.toLocaleString("en")}, teacher ${spent.teacher_tokens.toLocaleString("en")}; ` +
        `${plural(spent.score_calls, "scoring call")}.`));
      rethreshold.show(find("again"), rethreshold.areProbabilities(trace.scoring) ? this.steps : [], trace.params, trace.breach,
        (steps, bifurcations) => this.draw(steps, bifurcations));
    }

    // The text that is no step, by role: what follows the last step, and each correction before it.
    afterSteps({ steps, spans }, whole) {
      const cut = (start, end) => whole.slice(start, end).join("");
      if (!this.breaches.length) {
        const end = Math.max(0, ...steps.map((one) => one.end ?? 0));
        const rest = spans.filter((span) => span.end > end).map((span) => [span.role, cut(Math.max(span.start, end), span.end)]);
        return { corrections: [], rest };
      }
      const corrections = [];
      for (const { role, start, end } of spans.filter((span) => span.role === "revise" || span.role === "teacher")) {
        if (role === "revise" || corrections.at(-1)?.at(-1)[0] !== "revise") corrections.push([]);
        corrections.at(-1).push([role, cut(start, end)]);
      }
      const isLast = this.breaches.at(-1)[0] === steps.length - 1;
      return { rest: isLast ? corrections.splice(this.breaches.length - 1).flat() : [], corrections };
    }
  }

  async function together(body, signal) {
    const view = new Together(signal);
    view.say("", "the student writes");
    let end = null, usage = null;
    const motab = { ...body.motab, events: true, trace: "full" };
    const [stitch, revise] = [options.value("stitch"), options.value("revise")];
    await paced({ ...body, motab }, signal, async (name, data) => {
      if (name === "motab.step") {
        view.judge(data);
        return STEP_MS;
      }
      if (name === "motab.breach") return view.turn(data, stitch, revise);
      if (name === "motab.chosen") return view.choose(data.chosen);
      if (data.usage && !data.choices.length) usage = data.usage;
      for (const choice of data.choices ?? []) {
        if (choice.delta.content) view.add(choice.delta.content);
        if (choice.finish_reason) end = choice;
      }
      return TEXT_MS;
    });
    if (!end) throw new Error("the stream ended before the text did");
    view.finish(end.finish_reason, end.motab, usage);
  }

  // One of the models, without the other.
  async function alone(author, body, signal) {
    const text = find(`${author}-text`), state = find(`${author}-state`);
    state.className = "state";
    state.textContent = "writes";
    let reason = null;
    await paced(body, signal, (_, data) => {
      for (const choice of data.choices ?? []) {
        if (choice.delta.content) text.append(choice.delta.content);
        reason = choice.finish_reason ?? reason;
      }
      if (data.usage) state.textContent = plural(data.usage.completion_tokens, "token") + (reason === "length" ? ", cut" : "");
      return TEXT_MS;
    });
  }

  function soloBody(author, body) {
    const { motab, ...kept } = body, { teacher_temperature: own, ...others } = motab ?? {};
    if (author === "teacher") {
      delete kept.temperature;
      if (own !== undefined) kept.temperature = own;
    }
    return { ...kept, motab: { ...others, method: author } };
  }

  async function guarded(state, run, work) {
    try {
      await work;
    } catch (error) {
      if (run !== running) return; // the next one shows its own state
      const stopped = error.name === "AbortError";
      find(state).className = `state ${stopped ? "" : "bad"}`;
      find(state).textContent = stopped ? "stopped" : error.message;
    }
  }

  async function watch() {
    running?.abort();
    const mine = running = new AbortController();
    const model = models.find((one) => one.name === find("model").value);
    const body = options.request(find("question").value);
    const authors = ["student", "teacher"].filter((author) => model[author] !== null);
    const isPair = authors.length === 2;
    for (const author of ["student", "teacher"]) {
      find(`${author}-text`).replaceChildren();
      find(`${author}-state`).textContent = "";
      find(`${author}-card`).hidden = isPair ? !find("alone").checked : !authors.includes(author);
    }
    find("start").textContent = "Watch again";
    find("stop").hidden = false;
    find("pair").closest("section").hidden = !isPair;
    const solos = isPair && !find("alone").checked ? [] : authors;
    const works = solos.map((author) => guarded(`${author}-state`, mine,
      alone(author, isPair ? soloBody(author, body) : body, mine.signal)));
    if (isPair) works.push(guarded("pair-state", mine, together(body, mine.signal)));
    document.documentElement.dataset.watch = "running";
    isFollowing = true;
    if (narrow.matches) document.querySelector(".stage").scrollIntoView({ behavior: still.matches ? "auto" : "smooth" });
    await Promise.all(works);
    if (mine !== running) return;
    find("stop").hidden = true;
    document.documentElement.dataset.watch = "done";
  }

  function choose() {
    const model = models.find((one) => one.name === find("model").value);
    const [student, teacher] = [model.labels.student, model.labels.teacher];
    const short = (label) => label.split("/").at(-1);
    find("who").textContent = [student && `student: ${short(student)}`, teacher && `teacher: ${short(teacher)}`].filter(Boolean).join(", ");
    find("who").title = [student, teacher].filter(Boolean).join(", ");
    options.build(model);
  }

  app.view("watch", (setUp) => {
    models = [...setUp.models].sort((one, other) => Number(!other.student || !other.teacher ? 0 : 1) - Number(!one.student || !one.teacher ? 0 : 1));
    find("model").replaceChildren(...models.map((one) => el("option", { value: one.name }, one.name)));
    find("model").addEventListener("change", choose);
    choose();
    find("parameters").open = !narrow.matches;
    find("questions").replaceChildren(...setUp.questions.map((question) => {
      const chip = el("button", { type: "button", class: "chip" }, question);
      chip.addEventListener("click", () => { find("question").value = question; find("question").focus(); });
      return chip;
    }));
    if (setUp.questions.length && !find("question").value) find("question").value = setUp.questions[0];
    find("ask").addEventListener("submit", (event) => { event.preventDefault(); watch(); });
    // A browser shows its complaint about a field in sight only.
    find("ask").addEventListener("invalid", () => { find("parameters").open = true; }, true);
    find("question").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("ask").requestSubmit();
    });
    find("stop").addEventListener("click", () => running?.abort());
  });
})();
