"use strict";
// Shows the example, and opens the viewer on the trajectories that the page holds.
(() => {
  const [CHUNK, OFFSET] = [9, 10];
  const chunks = new Map();
  if (!document.getElementById("viewer")) return;

  async function viewOf(row) {
    const index = row[CHUNK];
    if (!chunks.has(index)) {
      chunks.set(index, motab.load(`chunk-${index}`));
      if (chunks.size > 8) chunks.delete(chunks.keys().next().value);
    }
    return (await chunks.get(index))[row[OFFSET]];
  }

  async function showExample() {
    const place = document.getElementById("example-trajectory");
    if (!place) return;
    const [row, view] = await motab.load("example");
    place.replaceChildren(...trajectory.whole(row, view, (index) =>
      place.querySelector(`[data-step="${index}"]`).scrollIntoView({ block: "center" })));
  }

  async function start() {
    await motab.ready;
    await showExample();
    viewer.open({ view: viewOf, trouble: motab.trouble });
    viewer.fill(await motab.load("index"));
  }

  start().then(() => { document.documentElement.dataset.viewer = "ready"; }, motab.trouble);
})();
