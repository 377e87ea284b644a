"use strict";
// Shows a request's options with their meaning, and writes the request as curl, Python and YAML.
const options = (() => {
  const { el } = trajectory;
  // Where a value goes: `student` is the request's top level, `motab` the object of that name.
  const SLIDERS = [
    ["base_threshold", "ε₀", "motab", 0, 1, 0.01, "Where the teacher is certain, a step with a lower V is a breach. Higher: stricter."],
    ["entropy_scale", "θ", "motab", 0, 5, 0.1, "How fast the boundary loosens with the teacher's entropy. 0: it never does."],
    ["temperature", "", "student", 0, 2, 0.05, "The student's: how freely it draws its tokens. 0: always the most probable one."],
    ["teacher_temperature", "", "motab", 0, 2, 0.05, "The same for what the teacher writes."],
    ["max_total_tokens", "", "motab", 16, 4096, 16, "The tokens after which the text is cut."],
  ];
  const CHOICES = [
    ["boundary", ["adaptive", "static"], "Static: ε is ε₀, whatever the entropy. Quantile, if the model has it: each step has an ε of its own."],
    ["backtrack", ["td_error", "none"], "None: the teacher takes over at the breach itself."],
    ["stitch", ["flawed", "clean"], "Clean: the flawed steps are left out of the text."],
  ];
  const find = (id) => document.getElementById(id);
  const inputs = new Map();
  let model = null;

  function field(name, symbol, about, control, shown = []) {
    const label = el("label", { for: `option-${name}` }, name[0].toUpperCase() + name.slice(1).replaceAll("_", " "),
      ...(symbol ? [" ", el("b", {}, symbol)] : []));
    control.setAttribute("id", `option-${name}`);
    control.setAttribute("aria-describedby", `about-${name}`);
    return el("div", { class: "option" }, el("div", { class: "named" }, label, ...shown), control,
      el("p", { class: "note", id: `about-${name}` }, about));
  }

  function slider([name, symbol, place, min, max, step, about]) {
    const value = defaultOf(name, place), most = Math.max(max, value);
    const input = el("input", { type: "range", min, max: most, step, value });
    const out = el("output", { for: `option-${name}` }, String(value));
    // A default between two stops of the slider holds until somebody moves it.
    let chosen = value;
    input.addEventListener("input", () => {
      chosen = Number(input.value);
      out.textContent = input.value;
    });
    inputs.set(name, { place, initial: value, read: () => chosen });
    return field(name, symbol, about, input, [out]);
  }

  function choice([name, values, about]) {
    const known = new Set([...values, model.params[name]]);
    const select = el("select", {}, ...[...known].map((value) => el("option", { value }, value)));
    select.value = model.params[name];
    inputs.set(name, { place: "motab", initial: model.params[name], read: () => select.value });
    return field(name, "", about, select);
  }

  function text(name, about) {
    const input = el("input", { type: "text", maxlength: 1000, value: model.params[name] });
    inputs.set(name, { place: "motab", initial: model.params[name], read: () => input.value });
    return field(name, "", about, input);
  }

  function seed() {
    const input = el("input", { type: "number", min: 0, max: 2 ** 31, step: 1, value: 5, required: "" });
    const draw = el("button", { type: "button" }, "Draw another");
    draw.addEventListener("click", () => { input.value = Math.floor(Math.random() * 1e6); input.dispatchEvent(new Event("input")); });
    inputs.set("seed", { place: "student", initial: null, read: () => Number(input.value) });
    const made = field("seed", "", "All three texts are drawn with it: the same seed, the same texts.", input);
    input.after(draw);
    return made;
  }

  const defaultOf = (name, place) => (place === "student" ? model.temperature : model.params[name]);

  // Builds the controls with the defaults of a model, as the setup describes it.
  function build(described) {
    model = described;
    inputs.clear();
    find("options").replaceChildren(seed(), ...SLIDERS.map(slider), ...CHOICES.map(choice),
      text("revise", "The word with which the teacher begins its correction."));
  }

  // The request of the pair: only what differs from the model's defaults.
  function request(question) {
    const body = { model: model.name, messages: [{ role: "user", content: question }] }, motab = {};
    for (const [name, { place, initial, read }] of inputs) {
      const value = read();
      if (value === initial) continue;
      if (place === "motab") motab[name] = value;
      else body[name] = value;
    }
    return Object.keys(motab).length ? { ...body, motab } : body;
  }

  const value = (name) => inputs.get(name).read();

  // Text for a shell, for Python and for YAML: every format has its own rules for quotes.

  const shell = (given) => `'${given.replaceAll("'", `'\\''`)}'`;

  function python(given, indent = "") {
    if (given === null) return "None";
    if (typeof given === "boolean") return given ? "True" : "False";
    if (typeof given !== "object") return JSON.stringify(given);
    if (Array.isArray(given)) return `[${given.map((one) => python(one, indent)).join(", ")}]`;
    return `{${Object.entries(given).map(([name, one]) => `${JSON.stringify(name)}: ${python(one, indent)}`).join(", ")}}`;
  }

  const root = () => new URL("v1", document.baseURI).href;

  function curl(body) {
    return `curl ${shell(`${root()}/motab/chat/completions`)} \\\n  -H 'content-type: application/json' \\\n` +
      `  -H "authorization: Bearer $MOTAB_API_KEY" \\\n  -d ${shell(JSON.stringify(body))}\n`;
  }

  function pythonic({ motab, ...body }) {
    const named = Object.entries(body).map(([name, one]) => `    ${name}=${python(one)},\n`).join("");
    return "import os\n\nfrom openai import OpenAI\n\n" +
      `client = OpenAI(base_url=${python(root())}, api_key=os.environ.get("MOTAB_API_KEY", "unused"))\n` +
      `answer = client.chat.completions.create(\n${named}    extra_body={"motab": ${python({ ...motab, trace: "full" })}},\n)\n` +
      "print(answer.choices[0].message.content)\nprint(answer.choices[0].motab)\n";
  }

  // JSON's texts, lists and objects are YAML's, too.
  function yaml() {
    const params = Object.fromEntries([...inputs].filter(([name, one]) => name !== "seed" && one.read() !== one.initial)
      .map(([name, one]) => [name, one.read()]));
    const kept = { ...model.own, ...params };
    if (kept.boundary !== "quantile") delete kept.boundary_values;
    return `models:\n  ${JSON.stringify(model.name)}:\n    student: ${JSON.stringify(model.student)}\n` +
      `    teacher: ${JSON.stringify(model.teacher)}\n    params: ${JSON.stringify(kept)}\n`;
  }

  const FORMATS = { curl, python: pythonic, yaml };

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const written = FORMATS[button.dataset.copy](request(find("question").value));
      find("snippet").textContent = written;
      find("snippet").hidden = false;
      try {
        await navigator.clipboard.writeText(written);
        find("copied").textContent = `Copied as ${button.textContent}.`;
      } catch {
        // Browsers give pages without TLS no clipboard.
        find("copied").textContent = "Select the text to copy it.";
        getSelection().selectAllChildren(find("snippet"));
      }
    });
  }

  return { build, request, value };
})();
