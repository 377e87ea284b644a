"use strict";
// Drives the list of trajectories and the keyboard. All text of a record is set as text, never as HTML.
const viewer = (() => {
  const { breachesOf, el, plural, ROW } = trajectory;
  const HEIGHT = 58; // of a row in pixels, as in viewer.css
  const FILTERS = {
    all: () => true,
    breach: (row) => row[ROW.BREACH] !== null,
    early: (row) => breachesOf(row).some(([breach, bifurcation]) => breach !== bifurcation),
    clean: (row) => row[ROW.BREACH] === null,
    right: (row) => row[ROW.CORRECT] === true,
    wrong: (row) => row[ROW.CORRECT] === false,
  };
  const find = (id) => document.getElementById(id);
  const canvas = el("div", { class: "canvas" });
  let search, filter, count, list, article;
  let rows = [], haystack = [], matches = [], selected = -1, stops = [], stop = -1, wanted = 0;
  let viewOf, fail, isActive, extend;

  // The list: only visible rows are in the document.

  function refill() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = selected >= 0 ? matches[selected] : undefined;
    matches = [...rows.keys()].filter((index) =>
      FILTERS[filter.value](rows[index]) && words.every((word) => haystack[index].includes(word)));
    count.textContent = `${matches.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
    canvas.style.height = `${matches.length * HEIGHT}px`;
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
    const first = Math.max(Math.floor(list.scrollTop / HEIGHT) - 3, 0);
    const last = Math.min(first + Math.ceil(list.clientHeight / HEIGHT) + 6, matches.length);
    canvas.replaceChildren();
    for (let place = first; place < last; place++) canvas.append(rowOf(place));
  }

  function rowOf(place) {
    const row = rows[matches[place]];
    const mark = row[ROW.CORRECT] === null ? "" : row[ROW.CORRECT] ? "right" : "wrong";
    const [first, ...more] = breachesOf(row);
    const strayed = first ? `breach ${first[0]} → ${first[1]}${more.length ? ` and ${more.length} more` : ""}`
      : plural(row[ROW.STEPS], "step");
    const element = el("div", {
      class: "row", role: "option", id: `row-${place}`, "aria-selected": String(place === selected),
      "aria-setsize": matches.length, "aria-posinset": place + 1,
    },
      el("span", { class: "name" }, row[ROW.ID], ...(row[ROW.SAMPLE] ? [el("i", {}, ` #${row[ROW.SAMPLE]}`)] : [])),
      el("span", { class: `state ${row[ROW.BREACH] === null ? "" : "bad"}` }, strayed),
      el("span", { class: "asked" }, row[ROW.QUESTION]),
      el("span", { class: `state ${mark === "wrong" ? "bad" : "good"}` }, mark));
    element.style.top = `${place * HEIGHT}px`;
    element.addEventListener("click", () => select(place));
    return element;
  }

  async function select(place) {
    if (place < 0 || place >= matches.length) return;
    selected = place;
    const top = place * HEIGHT;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + HEIGHT - list.clientHeight;
    paint();
    list.setAttribute("aria-activedescendant", `row-${place}`);
    const mine = ++wanted;
    const row = rows[matches[place]];
    try {
      const view = await viewOf(row);
      if (mine === wanted) show(row, view);
    } catch (error) {
      if (mine === wanted) fail(error);
    }
  }

  function show(row, view) {
    article.replaceChildren(...trajectory.whole(row, view, goToStep));
    extend(article, row, view, goToStep);
    article.scrollTop = 0;
    stop = -1;
    stops = [...article.querySelectorAll(".step")];
    stops.forEach((element, place) => element.addEventListener("click", () => go(place, false)));
  }

  function go(place, scroll) {
    if (place < 0 || place >= stops.length) return;
    stops[stop]?.classList.remove("current");
    stop = place;
    stops[stop].classList.add("current");
    if (scroll) stops[stop].scrollIntoView({ block: "center" });
  }

  // Corrections lie between the steps, so a step's index is not its place.
  function goToStep(index) {
    go(stops.findIndex((one) => one.dataset.step === String(index)), true);
  }

  // The first t* after the step that is chosen; after the last, the first.
  function goToTurn() {
    const turns = breachesOf(rows[matches[selected]]).map(([, bifurcation]) => bifurcation);
    const here = Number(stops[stop]?.dataset.step ?? -1);
    goToStep(turns.find((index) => index > here) ?? turns[0]);
  }

  function move(place) {
    list.closest(".viewer").scrollIntoView({ block: "nearest" });
    select(Math.min(Math.max(place, 0), matches.length - 1));
  }

  const KEYS = {
    j: () => move(selected + 1),
    k: () => move(selected - 1),
    g: () => move(0),
    G: () => move(matches.length - 1),
    n: () => go(Math.min(stop + 1, stops.length - 1), true),
    p: () => go(Math.max(stop - 1, 0), true),
    b: () => matches.length && goToTurn(),
    "/": () => search.focus(),
    "?": () => find("keys").toggleAttribute("open"),
  };

  function pressed(event) {
    if (!isActive() || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === search) {
      if (event.key === "Enter" || event.key === "Escape") list.focus();
      return;
    }
    if (event.target.matches("input, select, textarea")) return;
    const arrows = event.target === list ? { ArrowDown: "j", ArrowUp: "k", Home: "g", End: "G" } : {};
    const action = KEYS[arrows[event.key] ?? event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  // Once for a page. `view` gives the view of a row, `trouble` shows an error, keys count while
  // `active` says so, and `extended` may add to the article of a trajectory.
  function open({ view, trouble, active = () => true, extended = () => undefined }) {
    [viewOf, fail, isActive, extend] = [view, trouble, active, extended];
    [search, filter, count, list, article] = ["search", "filter", "count", "rows", "trajectory"].map(find);
    list.append(canvas);
    list.addEventListener("scroll", paint);
    new ResizeObserver(paint).observe(list);
    search.addEventListener("input", refill);
    filter.addEventListener("change", refill);
    document.addEventListener("keydown", pressed);
  }

  function fill(all) {
    rows = all;
    haystack = rows.map((one) =>
      [one[ROW.ID], one[ROW.QUESTION], one[ROW.PREDICTED], one[ROW.ANSWER]].join("\n").toLowerCase());
    refill();
  }

  return { open, fill };
})();
