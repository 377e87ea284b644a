"use strict";
// Shared by all pages: unpacks data, starts Plotly, draws plots in light or dark colours.
const motab = (() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const quiet = { displayModeBar: false, responsive: true };
  const drawn = [];
  let palette = {};

  async function unpack(name) {
    const packed = atob(document.getElementById(`data-${name}`).textContent);
    const bytes = Uint8Array.from(packed, (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  async function load(name) {
    return JSON.parse(await unpack(name));
  }

  // Figures are made in light colours; in dark mode each colour is replaced by its counterpart.
  function themed(value, dictionary) {
    if (typeof value === "string") return dictionary.get(value) ?? value;
    if (Array.isArray(value)) return value.map((item) => themed(item, dictionary));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, item]) => [key, themed(item, dictionary)]),
    );
  }

  function draw(element, figure) {
    const known = drawn.find((one) => one.element === element);
    if (known) known.figure = figure;
    else drawn.push({ element, figure });
    const pairs = Object.values(palette).map(([light, night]) => [light, night]);
    const { data, layout } = themed(figure, new Map(dark.matches ? pairs : []));
    return Plotly.react(element, data, layout, quiet);
  }

  function trouble(error) {
    const line = document.getElementById("trouble");
    line.textContent = `This page could not be drawn: ${error.message}`;
    line.hidden = false;
  }

  async function start() {
    if (!("DecompressionStream" in window)) {
      throw new Error("it needs a browser from 2023 or later (DecompressionStream)");
    }
    palette = await load("palette");
    const script = document.createElement("script");
    script.textContent = await unpack("plotly");
    document.head.append(script);
    const plots = await load("plots");
    for (const element of document.querySelectorAll("[data-plot]")) {
      await draw(element, plots[element.dataset.plot]);
    }
    dark.addEventListener("change", () => drawn.forEach((one) => draw(one.element, one.figure)));
  }

  const ready = start();
  ready.then(() => { document.documentElement.dataset.plots = "ready"; }, trouble);
  return { ready, load, trouble };
})();
