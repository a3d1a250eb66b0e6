// Asks the server what is loaded, sends the form as JSON and shows each model's answer.
"use strict";

const EXAMPLES = {
  "question-answering": [
    { question: "When was the Eiffel Tower finished?",
      context: "The Eiffel Tower stands on the Champ de Mars in Paris. Work on it began in January 1887; it was finished in March 1889 and was the tallest structure in the world for 41 years, until the Chrysler Building in New York was topped out in 1930." },
    { question: "Who wrote the first program?",
      context: "Charles Babbage designed the Analytical Engine in the 1830s. Ada Lovelace, who translated an article on it, added notes with what is often called the first program: a method to compute Bernoulli numbers." },
    { question: "How many legs does an octopus have?",
      context: "Spiders have eight legs and insects six. An octopus has eight arms, three hearts and blue blood." },
  ],
  "text-classification": [
    { text: "The plot is thin, but the actors are wonderful.", second: "" },
    { text: "Not a single joke in it is funny.", second: "" },
    { text: "I have seen worse, though not this year.", second: "" },
  ],
};
const PATHS = { "question-answering": "/answer", "text-classification": "/classify" };
const FIELDS = { "question-answering": ["question", "context"], "text-classification": ["text", "second"] };
const KEPT = 20; // of the history

const find = (id) => document.getElementById(id);
const form = find("form");
let state = null;
let busy = false;
let waiting = false; // asked again while busy

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

// A screen reader says a status again whenever it is written.
function say(id, text) {
  if (find(id).textContent !== text) find(id).textContent = text;
}

// What is wrong, and in which field, if it is in one.
function showProblem(text, wrong) {
  say("problem", text);
  find("problem").hidden = !text;
  for (const name of Object.values(FIELDS).flat()) {
    const field = form.elements[name];
    if (field === wrong) {
      field.setAttribute("aria-invalid", "true");
      field.setAttribute("aria-describedby", "problem");
    } else {
      field.removeAttribute("aria-invalid");
      field.removeAttribute("aria-describedby");
    }
  }
}

function chosenTask() {
  return form.elements.task.value;
}

function fill(fields) {
  for (const [name, value] of Object.entries(fields)) form.elements[name].value = value;
}

function showTask() {
  const task = chosenTask();
  for (const part of form.querySelectorAll("[data-task]")) part.hidden = part.dataset.task !== task;
  find("examples").replaceChildren(...EXAMPLES[task].map((example) => {
    const button = element("button", example.question || example.text);
    button.type = "button";
    button.addEventListener("click", () => { fill(example); ask(); });
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
  showPrecisions();
}

function showTasks() {
  const usable = Object.keys(state.ready).filter((task) => state.ready[task].length);
  form.hidden = !usable.length;
  for (const choice of form.elements.task) choice.disabled = !usable.includes(choice.value);
  if (!usable.length) return;
  if (usable.includes(chosenTask())) return showPrecisions();
  form.elements.task.value = usable[0];
  showTask();
}

function showPrecisions() {
  const ready = state.ready[chosenTask()];
  for (const choice of form.elements.precision) choice.disabled = !ready.includes(choice.value);
  if (!ready.includes(form.elements.precision.value) && ready.length) form.elements.precision.value = ready[0];
  find("int8-state").textContent = ready.includes("int8") ? "" : state.doing ? "(being made)" : "(none here)";
}

async function follow() {
  try {
    const response = await fetch("/state");
    if (!response.ok) throw new Error();
    const before = state;
    state = await response.json();
    if (!before) start();
    showTasks();
    say("state", state.doing ? `${state.doing[0].toUpperCase()}${state.doing.slice(1)} …`
      : state.error ? "" : `Ready: ${state.models.map((model) => model.name).join(" · ")}.`);
    if (state.error && state.error !== before?.error) showProblem(state.error);
    if (state.doing) setTimeout(follow, 500);
  } catch {
    say("state", "The server does not answer; is demo.py still running? Trying again …");
    setTimeout(follow, 2000);
  }
}

function start() {
  const tasks = Object.keys(state.ready);
  for (const choice of form.elements.task) choice.closest("label").hidden = !tasks.includes(choice.value);
  find("tasks").hidden = tasks.length === 1;
  form.elements.task.value = tasks[0];
  for (const [name, most] of Object.entries(state.limits)) form.elements[name].dataset.most = most;
  for (const task of tasks) {
    const written = FIELDS[task].some((name) => form.elements[name].value);
    if (!written) fill(EXAMPLES[task][0]);
  }
  showTask();
  showHistory();
}

// The first field that cannot be sent, with the reason.
function wrongField(task) {
  for (const name of FIELDS[task]) {
    const field = form.elements[name];
    const label = form.querySelector(`label[for=${name}]`).textContent;
    const count = Array.from(field.value).length;
    if (name !== "second" && !field.value.trim()) return [field, `${label}: this is empty; write something.`];
    if (count > Number(field.dataset.most)) {
      return [field, `${label}: ${count.toLocaleString("en")} characters are too many; at most ${Number(field.dataset.most).toLocaleString("en")}.`];
    }
  }
  return null;
}

const percent = (value) => `${(100 * value).toFixed(1)} %`;

function showContext(paragraph, context, best) {
  const characters = Array.from(context); // code points, as the server counts
  const part = (from, to) => characters.slice(from, to).join("");
  paragraph.append(part(0, best.start), element("mark", part(best.start, best.end)), part(best.end));
}

function showModel(row, fields) {
  const article = find("model").content.cloneNode(true).firstElementChild;
  const part = (selector) => article.querySelector(selector);
  const best = row.answers ? row.answers[0] : null;
  const pairs = best ? row.answers.map((found) => [found.text, found.probability])
    : row.probabilities ? Object.entries(row.probabilities) : [];
  const none = row.labels && !row.labels.length;
  part("h3").textContent = row.model;
  part(".answer").textContent = best ? best.text
    : none ? "none of the labels" : row.labels ? row.labels.join(", ") : row.label ?? row.score.toFixed(2);
  const confidence = best ? best.probability : none ? undefined : row.probability;
  part(".cut").textContent = `The ${best ? "question" : "text"} was cut: it is longer than this model reads.`;
  part(".cut").hidden = !row.truncated;
  part("[data-figure=confidence]").textContent = confidence === undefined ? "–" : percent(confidence);
  part("[data-figure=time]").textContent = `${row.milliseconds} ms`;
  part("[data-figure=size]").textContent = `${row.megabytes} MB, ${(row.parameters / 1e6).toFixed(1)} M weights`;
  if (best) {
    part(".context").setAttribute("aria-label", `The text with the answer of ${row.model} marked`);
    showContext(part(".context"), fields.context, best);
  } else part(".context").remove();
  part("caption").textContent = best ? "Best answers" : "All labels";
  part("th").textContent = best ? "Answer" : "Label";
  part("tbody").append(...pairs.map(([name, probability]) => {
    const line = document.createElement("tr");
    line.append(element("td", name), element("td", percent(probability)));
    return line;
  }));
  if (!pairs.length) part("table").remove();
  return article;
}

function remember(entry) {
  const past = recall().filter((old) => JSON.stringify(old) !== JSON.stringify(entry));
  try {
    sessionStorage.setItem("asked", JSON.stringify([entry, ...past].slice(0, KEPT)));
  } catch { /* full or forbidden: the page works without a history */ }
  showHistory();
}

function recall() {
  try {
    return JSON.parse(sessionStorage.getItem("asked")) || [];
  } catch {
    return [];
  }
}

function showHistory() {
  const past = recall().filter((entry) => state.ready[entry.task]);
  find("past").hidden = !past.length;
  find("history").replaceChildren(...past.map((entry) => {
    const button = element("button", entry.fields.question || entry.fields.text);
    button.type = "button";
    button.append(element("small", entry.precision));
    button.addEventListener("click", () => {
      form.elements.task.value = entry.task;
      form.elements.precision.value = entry.precision;
      fill(entry.fields);
      showTask();
      ask();
    });
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
}

function written() {
  const task = chosenTask();
  const fields = Object.fromEntries(FIELDS[task].map((name) => [name, form.elements[name].value]));
  return { task, precision: form.elements.precision.value, fields };
}

// With `moving`, the focus goes to the answers.
async function ask(moving = true) {
  if (busy) {
    waiting = true;
    return;
  }
  const entry = written();
  const { task, precision, fields } = entry;
  const wrong = wrongField(task);
  if (wrong) {
    showProblem(wrong[1], wrong[0]);
    wrong[0].focus();
    return;
  }
  showProblem("");
  busy = true;
  find("ask").setAttribute("aria-disabled", "true");
  find("ask").textContent = "Asking …";
  find("answers").setAttribute("aria-busy", "true");
  try {
    const response = await fetch(PATHS[task], {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...fields, precision }),
    });
    const given = await response.json();
    if (!response.ok) throw new Error(given.error);
    find("asked").textContent = `${fields.question || fields.text} (${precision})`;
    find("models").replaceChildren(...given.map((row) => showModel(row, fields)));
    find("answers").hidden = false;
    if (moving && !waiting) find("answers-title").focus();
    remember(entry);
  } catch (error) {
    showProblem(error instanceof TypeError ? "The server does not answer; is demo.py still running?" : error.message);
  } finally {
    busy = false;
    find("ask").removeAttribute("aria-disabled");
    find("ask").textContent = "Ask";
    find("answers").removeAttribute("aria-busy");
  }
  const again = waiting && JSON.stringify(written()) !== JSON.stringify(entry);
  waiting = false;
  if (again) ask(false);
}

form.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
for (const choice of form.elements.task) choice.addEventListener("change", () => { showProblem(""); showTask(); });
for (const choice of form.elements.precision) choice.addEventListener("change", () => { if (busy || !find("answers").hidden) ask(false); });
find("forget").addEventListener("click", () => { sessionStorage.removeItem("asked"); showHistory(); find("ask").focus(); });
follow();
