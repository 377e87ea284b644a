"use strict";
// Shows the files of records that the server's configuration names, in the viewer of the report.
(() => {
  const { el, valueChart, ROW } = trajectory;
  const AT = 9; // of a row: the byte where its record begins
  const AT_FIRST = 2000; // rows that are read without being asked for
  const find = (id) => document.getElementById(id);
  let rows = [], next = null, reading = 0, isShown = false, wasShown = false;

  const address = (what, at) => `page/runs/${what}?${new URLSearchParams({ file: find("file").value, at })}`;

  async function list() {
    const files = await app.json("page/runs");
    const kept = find("file").value;
    find("file").replaceChildren(...files.map(({ name, size, modified }) => el("option", { value: name },
      `${name} (${(size / 1e6).toFixed(1)} MB, ${new Date(modified * 1000).toLocaleString()})`)));
    if (files.some((file) => file.name === kept)) find("file").value = kept;
    find("file").disabled = !files.length;
    if (files.length) await open();
    else {
      find("records").hidden = true;
      find("runs-state").textContent = "There are no files of records here. Set server.records, or server.page.runs to the folder of your runs.";
    }
  }

  async function open() {
    [rows, next] = [[], 0];
    await read(AT_FIRST);
  }

  async function read(wanted) {
    const mine = ++reading, enough = rows.length + wanted;
    let fault = null;
    find("runs-state").textContent = "Reading …";
    while (next !== null && rows.length < enough) {
      const part = await app.json(address("rows", next));
      if (mine !== reading) return;
      rows.push(...part.rows);
      [next, fault] = [part.next, part.fault];
    }
    find("records").hidden = !rows.length;
    find("more").hidden = next === null;
    find("runs-state").textContent = fault ?? (next === null ? "" : `The first ${rows.length.toLocaleString("en")} records of the file.`);
    if (!rows.length && !fault) find("runs-state").textContent = "The file is empty.";
    if (rows.length) viewer.fill(rows);
    document.documentElement.dataset.runs = "ready";
  }

  // Lays the sliders under the chart, where the values are a teacher's and the thresholds are known.
  // While they are open, the chart is theirs.
  function extended(article, row, { method, scoring, params, steps }, go) {
    const place = article.querySelector(".values");
    if (!place || method !== "motab" || !rethreshold.areProbabilities(scoring)) return;
    const known = params.boundary === "static" ? ["base_threshold"] : ["base_threshold", "entropy_scale"];
    if (!known.every((name) => Number.isFinite(params[name]))) return;
    const again = el("details", { class: "again", id: "run-again" }), stored = place.firstChild;
    let judged = null;
    const draw = () => place.replaceChildren(again.open ? valueChart(...judged, go) : stored);
    place.after(again);
    again.addEventListener("toggle", draw);
    rethreshold.show(again, steps, params, row[ROW.BREACH], (...found) => { judged = found; draw(); });
  }

  const trying = (work) => () => work().catch(app.trouble);

  app.view("runs", () => {
    viewer.open({ view: (row) => app.json(address("view", row[AT])), trouble: app.trouble, active: () => isShown, extended });
    find("file").addEventListener("change", trying(open));
    find("refresh").addEventListener("click", trying(list));
    find("more").addEventListener("click", trying(() => read(AT_FIRST)));
    return (turned) => {
      isShown = turned;
      if (isShown && !wasShown) {
        wasShown = true;
        trying(list)();
      }
    };
  });
})();
