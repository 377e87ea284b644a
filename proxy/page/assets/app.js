"use strict";
// Asks the server with the key, and shows one of the views. Nothing of an answer is read as HTML.
const app = (() => {
  const KEY = "motab-key";
  const VIEWS = ["watch", "fleet", "runs"];
  const find = (id) => document.getElementById(id);
  const opened = new Map(), shown = [];
  let key = sessionStorage.getItem(KEY), setUp = null;

  class Refused extends Error {}

  // The answer to a request; an error's message is the server's. A refused key brings up the login.
  async function ask(path, options = {}) {
    const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("the server does not answer");
    }
    if (answer.status === 401) {
      logIn(key ? "The server does not know this key." : "");
      throw new Refused("the server asks for a key");
    }
    return answer;
  }

  async function json(path, options) {
    const answer = await ask(path, options);
    if (!answer.ok) throw new Error(await messageOf(answer));
    return answer.json();
  }

  async function messageOf(answer) {
    const text = await answer.text();
    try {
      return JSON.parse(text).error.message;
    } catch {
      return `the server answered ${answer.status}`;
    }
  }

  function trouble(error) {
    if (error instanceof Refused || error.name === "AbortError") return;
    find("trouble").textContent = error.message;
    find("trouble").hidden = false;
  }

  // The key lives as long as this tab: in its session storage, which no other tab and no other site reads.

  function logIn(fault) {
    key = null;
    sessionStorage.removeItem(KEY);
    VIEWS.forEach((name) => { find(`view-${name}`).hidden = true; });
    find("forget").hidden = true;
    find("login").hidden = false;
    find("login-fault").textContent = fault;
    find("login-fault").hidden = !fault;
    find("key").value = "";
    find("key").focus();
  }

  find("login-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key = find("key").value.trim();
    sessionStorage.setItem(KEY, key);
    start();
  });

  find("forget").addEventListener("click", () => {
    sessionStorage.removeItem(KEY);
    location.reload();
  });

  // A view is a part of the page with a link in the bar. `open` is called once, `show` each time.

  const current = () => (VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "watch");

  function turn() {
    if (!setUp || !find("login").hidden) return;
    find("trouble").hidden = true;
    const name = current();
    for (const view of VIEWS) find(`view-${view}`).hidden = view !== name;
    for (const link of document.querySelectorAll(".bar nav a")) {
      if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.title = `motab: ${name}`;
    shown.forEach((one) => one(name));
  }

  function view(name, open) {
    opened.set(name, open);
  }

  async function start() {
    find("trouble").hidden = true;
    try {
      setUp = await json("page/setup");
    } catch (error) {
      trouble(error);
      return;
    }
    find("login").hidden = true;
    find("key").value = "";
    find("forget").hidden = !key;
    find("version").textContent = `version ${setUp.version}`;
    for (const [name, open] of opened) {
      const show = open(setUp);
      if (show) shown.push((turned) => show(turned === name));
    }
    opened.clear();
    turn();
    document.documentElement.dataset.page = "ready";
  }

  window.addEventListener("hashchange", () => {
    if (VIEWS.includes(location.hash.slice(1))) turn();
  });
  document.addEventListener("DOMContentLoaded", start);
  return { ask, json, messageOf, trouble, view, current };
})();
