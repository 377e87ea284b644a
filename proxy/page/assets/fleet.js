"use strict";
// Shows the server's own metrics, live, while somebody looks at them.
(() => {
  const { el, chart, plural } = trajectory;
  const find = (id) => document.getElementById(id);
  const EVERY_MS = 2000, KEPT = 90, RECENT = 15;
  const seen = [];
  let setUp = null, timer = null, isShown = false;

  // Prometheus' text: `name{label="value",...} number`.
  function parsed(text) {
    const found = new Map();
    for (const line of text.split("\n")) {
      const match = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line);
      if (!match || line.startsWith("#")) continue;
      const labels = {};
      for (const [, name, value] of (match[2] ?? "").matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g))
        labels[name] = value.replace(/\\(.)/g, (_, char) => (char === "n" ? "\n" : char));
      if (!found.has(match[1])) found.set(match[1], []);
      found.get(match[1]).push({ labels, value: Number(match[3]) });
    }
    return found;
  }

  const agrees = (labels, wanted) => Object.entries(wanted).every(([name, value]) => labels[name] === value);

  function sum(sample, name, wanted = {}) {
    return (sample.metrics.get(name) ?? []).filter((one) => agrees(one.labels, wanted))
      .reduce((total, one) => total + one.value, 0);
  }

  const names = (sample, metric, label) => [...new Set((sample.metrics.get(metric) ?? []).map((one) => one.labels[label]))];
  const before = () => seen[Math.max(seen.length - 1 - RECENT, 0)];

  function rate(late, early, name, wanted) {
    const seconds = (late.at - early.at) / 1000;
    return seconds ? Math.max(sum(late, name, wanted) - sum(early, name, wanted), 0) / seconds : 0;
  }

  // The q-quantile of a histogram's growth, up to the bucket's bound; null where nothing was added.
  function quantile(late, early, name, wanted, q) {
    const grown = new Map();
    for (const [sample, sign] of [[late, 1], [early, -1]])
      for (const one of sample.metrics.get(`${name}_bucket`) ?? [])
        if (agrees(one.labels, wanted)) {
          const bound = one.labels.le === "+Inf" ? Infinity : Number(one.labels.le);
          grown.set(bound, (grown.get(bound) ?? 0) + sign * one.value);
        }
    const bounds = [...grown.keys()].sort((one, other) => one - other);
    const total = grown.get(Infinity) ?? 0;
    return total > 0 ? bounds.find((bound) => grown.get(bound) >= q * total) : null;
  }

  const whole = (value) => Math.round(value).toLocaleString("en");
  const perSecond = (value) => (value >= 10 ? whole(value) : value.toFixed(1));
  const share = (part, all) => (all ? `${(100 * part / all).toFixed(0)}%` : "–");
  const time = (seconds) => (seconds === null ? "–" : seconds === Infinity ? "> 30 min" : seconds < 1 ? `≤ ${Math.round(seconds * 1000)} ms` : `≤ ${seconds} s`);
  const tile = (label, value, detail) => el("div", {}, el("dt", {}, label), el("dd", {}, value, el("span", {}, detail)));

  // The trajectories that breached, and those that could have: a model alone never does.
  function strayed(now, wanted = {}) {
    const [breach, safe] = ["breach", "safe"].map((outcome) => sum(now, "motab_trajectories_total", { method: "motab", outcome, ...wanted }));
    return [breach, breach + safe];
  }

  function tiles(now, then) {
    const [breached, judged] = strayed(now);
    const failed = sum(now, "motab_trajectories_total", { outcome: "failed" });
    const waits = sum(now, "motab_student_waits_total");
    const waiting = sum(now, "motab_upstream_waiting");
    const roles = [["student", "student"], ["teacher", "teacher"], ["scored", "teacher_scored"]];
    const spent = roles.filter(([role]) => role in setUp.prices)
      .reduce((total, [role, kind]) => total + setUp.prices[role] * sum(now, "motab_tokens_total", { kind }) / 1e6, 0);
    const isPriced = Object.keys(setUp.prices).length > 0;
    find("tiles").replaceChildren(
      tile("Under way", whole(sum(now, "motab_active_trajectories")), `of at most ${whole(setUp.max_concurrent)} trajectories`),
      tile("Breach rate", share(breached, judged), `${whole(breached)} of ${whole(judged)} that a teacher judged; ${whole(failed)} failed`),
      ...roles.map(([role, kind]) => tile({ student: "Student writes", teacher: "Teacher writes", scored: "Teacher scores" }[role],
        `${perSecond(rate(now, then, "motab_tokens_total", { kind }))}/s`, `${whole(sum(now, "motab_tokens_total", { kind }))} tokens so far`)),
      tile("Scoring calls", `${perSecond(rate(now, then, "motab_score_calls_total", {}))}/s`, `${whole(sum(now, "motab_score_calls_total"))} so far`),
      tile("Waits", whole(waiting), `calls wait for a place; students waited ${whole(waits)} times`),
      tile("Cost", isPriced ? spent.toFixed(spent < 10 ? 4 : 2) : "–", isPriced ? "so far, at the configured prices" : "no server.page.prices are set"),
    );
  }

  function rates() {
    const roles = [["student", "student writes", "student"], ["teacher", "teacher writes", "teacher"], ["soft", "teacher scores", "teacher_scored"]];
    const lines = roles.map(([tone, name, kind]) => ({ tone, name, points: seen.slice(1).map((now, index) => {
      const then = seen[Math.max(index + 1 - RECENT, 0)];
      return [(now.at - seen.at(-1).at) / 1000, rate(now, then, "motab_tokens_total", { kind })];
    }) }));
    const highest = Math.max(1, ...lines.flatMap((line) => line.points.map(([, value]) => value)));
    const unit = 10 ** Math.floor(Math.log10(highest));
    const step = [0.2, 0.5, 1, 2].map((times) => times * unit).find((one) => highest / one <= 5);
    const top = Math.ceil(highest / step) * step;
    find("rates").replaceChildren(chart({
      label: "Tokens a second over the last three minutes", height: 180, x: [-(KEPT * EVERY_MS) / 1000, 0], y: [0, top], lines,
      digits: step < 1 ? 1 : 0, yTicks: Array.from({ length: Math.round(top / step) + 1 }, (_, index) => index * step),
      xTicks: () => [-180, -120, -60, 0], xLabel: (seconds) => (seconds ? `${-seconds / 60} min ago` : "now"),
    }));
  }

  function table(heads, rows, empty) {
    if (!rows.length) return el("p", { class: "note" }, empty);
    return el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((head, index) => el("th", { scope: "col", class: index ? "number" : "" }, head)))),
      el("tbody", {}, ...rows.map(({ cells, tone = [], sub }) => el("tr", { class: sub ? "sub" : "" }, ...cells.map((cell, index) =>
        (index ? el("td", { class: `number ${tone[index] ?? ""}` }, cell) : el("th", { scope: "row" }, cell)))))));
  }

  const toneOf = (state) => ({ ok: "good", drained: "soft" }[state] ?? "bad");

  // A fault is a sentence, which wraps; the row has its upstream's name already.
  const health = (state, upstream) => el("span", { class: state.includes(" ") ? "health fault" : "health" },
    state.replace(`upstream '${upstream}': `, ""));

  // `answers` has the replicas that are configured now; the metrics still have those of before. One
  // that answers again is out until a check has found it.
  function stateOf(replica, up, answers) {
    if (answers && !(replica in answers)) return "drained";
    const answer = answers?.[replica] ?? "ok";
    return up || answer !== "ok" ? answer : "out";
  }

  function upstreams(now, then, ready) {
    const rows = [];
    const metric = "motab_upstream_request_seconds";
    const known = new Set([...Object.keys(ready.upstreams ?? {}), ...names(now, "motab_upstream_max_concurrent", "upstream")]);
    for (const upstream of known) {
      const state = ready.upstreams?.[upstream] ?? "unknown";
      const places = ["write", "score"].map((kind) => {
        const most = sum(now, "motab_upstream_max_concurrent", { upstream, kind });
        return most ? `${whole(sum(now, "motab_upstream_running", { upstream, kind }))} / ${whole(most)}` : "–";
      });
      const all = sum(now, `${metric}_count`, { upstream });
      const failed = all - sum(now, `${metric}_count`, { upstream, outcome: "ok" }) - sum(now, `${metric}_count`, { upstream, outcome: "cancelled" });
      rows.push({ cells: [upstream, health(state, upstream), ...places, whole(sum(now, "motab_upstream_waiting", { upstream })), whole(all), whole(failed),
        time(quantile(now, then, metric, { upstream, outcome: "ok" }, 0.5)), time(quantile(now, then, metric, { upstream, outcome: "ok" }, 0.95))],
      tone: ["", toneOf(state), "", "", "", "", failed ? "bad" : ""] });
      const replicas = (now.metrics.get("motab_replica_up") ?? []).filter((one) => one.labels.upstream === upstream).map((one) => one.labels.replica);
      for (const replica of replicas.length > 1 ? replicas : []) {
        const up = sum(now, "motab_replica_up", { upstream, replica });
        const said = stateOf(replica, up, ready.replicas?.[upstream]);
        const done = sum(now, "motab_replica_requests_total", { upstream, replica });
        const bad = done - sum(now, "motab_replica_requests_total", { upstream, replica, outcome: "ok" }) - sum(now, "motab_replica_requests_total", { upstream, replica, outcome: "cancelled" });
        rows.push({ sub: true, cells: [replica, health(said, upstream), plural(sum(now, "motab_replica_trajectories", { upstream, replica }), "trajectory").replace("trajectorys", "trajectories"),
          `${whole(sum(now, "motab_replica_running_requests", { upstream, replica }))} running`, "", whole(done), whole(bad), "", ""],
        tone: ["", toneOf(said), "", "", "", "", bad ? "bad" : ""] });
      }
    }
    find("upstreams").replaceChildren(table(["upstream", "health", "writing", "scoring", "waiting", "requests", "failed", "half within", "95% within"], rows, "There are none."));
  }

  function modelTable(now) {
    const rows = names(now, "motab_trajectories_total", "model").map((model) => {
      const count = (outcome) => sum(now, "motab_trajectories_total", { model, outcome });
      return { cells: [model, whole(count("safe") + count("breach")), share(...strayed(now, { model })), whole(count("failed"))],
        tone: ["", "", "", count("failed") ? "bad" : ""] };
    });
    find("models").replaceChildren(table(["model", "finished", "breached", "failed"], rows, "No trajectory has finished yet."));
  }

  function errors(now) {
    const rows = [];
    // This page's own looks at a server that is not ready are answered 503.
    const answered = (now.metrics.get("motab_requests_total") ?? []).filter(({ labels }) => Number(labels.status) >= 400 && labels.route !== "/ready");
    for (const status of [...new Set(answered.map((one) => one.labels.status))].sort())
      rows.push({ cells: [`answered ${status}`, whole(answered.filter((one) => one.labels.status === status).reduce((total, one) => total + one.value, 0))] });
    for (const outcome of names(now, "motab_upstream_request_seconds_count", "outcome").filter((one) => !["ok", "cancelled"].includes(one)).sort())
      rows.push({ cells: [outcome, whole(sum(now, "motab_upstream_request_seconds_count", { outcome }))] });
    for (const code of names(now, "motab_upstream_retries_total", "code").sort())
      rows.push({ cells: [`tried again after ${code}`, whole(sum(now, "motab_upstream_retries_total", { code }))] });
    find("errors").replaceChildren(table(["code", "number"], rows, "None."));
  }

  async function look() {
    clearTimeout(timer);
    if (!isShown || document.hidden) return;
    try {
      const [metrics, ready] = await Promise.all([app.ask("metrics").then((answer) => answer.text()), app.ask("ready").then((answer) => answer.json())]);
      seen.push({ at: performance.now(), metrics: parsed(metrics) });
      if (seen.length > KEPT) seen.shift();
      const now = seen.at(-1), then = before();
      tiles(now, then);
      rates();
      upstreams(now, then, ready);
      modelTable(now);
      errors(now);
      find("fleet-state").className = `note ${ready.status === "ready" ? "" : "bad"}`;
      find("fleet-state").textContent = `The server is ${ready.status}. ${seen.length > 1 ? `Rates and latencies are those of the last ${Math.round((now.at - then.at) / 1000)} seconds.` : "Rates and latencies come with the next look."} Tokens count when their trajectory ends.`;
      document.documentElement.dataset.fleet = "ready";
    } catch (error) {
      find("fleet-state").className = "note bad";
      find("fleet-state").textContent = `No news: ${error.message}.`;
    }
    if (isShown && !document.hidden) timer = setTimeout(look, EVERY_MS);
  }

  app.view("fleet", (given) => {
    setUp = given;
    document.addEventListener("visibilitychange", look);
    return (turned) => {
      if (turned === isShown) return;
      isShown = turned;
      look();
    };
  });
})();
