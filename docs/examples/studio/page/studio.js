// The page: it sends each order until the server has it, always under one key, and shows all jobs.
"use strict";

const by = (id) => document.getElementById(id);
const form = by("order"), prompt = by("prompt"), send = by("send"), notice = by("notice");
const grid = by("jobs"), line = by("line"), view = by("view");
const jobs = new Map(); // key -> the job as the server sent it, and its card

const STATES = { // state -> [class, words, sign]
  pending: ["waiting", "Waiting for its turn", ""],
  submitting: ["busy", "Being ordered", ""],
  running: ["busy", "In the making", ""],
  fetching: ["busy", "Fetching the image", ""],
  succeeded: ["", "", ""],
  failed: ["bad", "Failed", "!"],
  refused: ["bad", "Refused, not bought", "!"],
  uncertain: ["doubt", "Perhaps bought", "?"],
  withdrawn: ["", "Withdrawn, not bought", "–"],
};
const NAMES = { "1:1": "Square", "4:3": "Landscape", "3:4": "Portrait", "16:9": "Wide" };
const UNFINISHED = new Set(["pending", "submitting", "running", "fetching"]);
const RETRY_MS = [300, 1000, 2000, 4000];
const DOUBLE_CLICK_MS = 700;

// ---- ordering

// An order has a key from its first attempt until the server has accepted it. The key survives a reload, and each attempt
// sends it: the server recognises the order, also when its answer was lost.
function draft() {
  const fields = { prompt: prompt.value };
  for (const select of selects()) fields[select.id] = select.value;
  const kept = JSON.parse(sessionStorage.getItem("draft") ?? "null");
  if (kept !== null && JSON.stringify(kept.fields) === JSON.stringify(fields)) return kept;
  const random = crypto.getRandomValues(new Uint8Array(16));
  const key = Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
  sessionStorage.setItem("draft", JSON.stringify({ key, fields }));
  return { key, fields };
}

let sending = false, edited = false, next = false, takenAt = 0;

async function order() {
  if (sending) {
    next ||= edited; // another order: it is sent once this one is accepted. Unedited, it is the same order once more
    return;
  }
  if (prompt.value.trim() === "") {
    if (Date.now() - takenAt < DOUBLE_CLICK_MS) return; // the second half of a double click, on a box just emptied
    notice.textContent = "Say what you want to see first.";
    prompt.focus();
    return;
  }
  busy(true);
  edited = next = false;
  let accepted = false;
  const mine = draft();
  try {
    const answer = await post(mine);
    const body = await answer.json().catch(() => ({}));
    if (answer.status === 202) {
      sessionStorage.removeItem("draft");
      accepted = true;
      takenAt = Date.now();
      if (!jobs.has(body.key)) show([body]); // a card there already came by the event stream, which may be ahead of this answer
      if (!edited) prompt.value = "";
      notice.textContent = "";
    } else {
      if (answer.status === 409) sessionStorage.removeItem("draft");
      notice.textContent = sentence(body.detail ?? `the server said no (${answer.status})`);
    }
  } catch {
    notice.textContent = edited
      ? `The server can’t be reached. It may not have “${mine.fields.prompt}”: look for it below once the server is back.`
      : "The server can’t be reached. Your order is kept: send it again, it is bought once.";
  } finally {
    busy(false);
    prompt.focus();
  }
  if (accepted && next) await order();
}

async function post({ key, fields }) {
  for (const pause of [...RETRY_MS, null]) {
    try {
      const answer = await fetch("/api/jobs", {
        method: "POST",
        headers: { "Content-Type": "application/json", "Idempotency-Key": key },
        body: JSON.stringify(fields),
        signal: AbortSignal.timeout(20000),
      });
      if (answer.status < 500 || pause === null) return answer;
    } catch (error) {
      if (pause === null) throw error;
    }
    notice.textContent = "The server can’t be reached. Trying again …";
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

function busy(on) {
  sending = on;
  send.setAttribute("aria-disabled", String(on));
}

form.addEventListener("submit", (event) => { event.preventDefault(); order(); });
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); order(); }
});
form.addEventListener("input", () => {
  edited = true;
  notice.textContent = "";
});

function reuse(text) {
  edited = true;
  prompt.value = text;
  prompt.focus();
  window.scrollTo({ top: 0 });
}
by("example").addEventListener("click", () => reuse("a lighthouse in fog"));

// ---- showing

function show(changed) {
  for (const job of changed) {
    const known = jobs.get(job.key);
    if (known !== undefined && JSON.stringify(known.job) === JSON.stringify(job)) continue;
    const card = known?.card ?? added(job);
    fill(card, job);
    if (known !== undefined && !done(known.job) && done(job)) announce(job);
    jobs.set(job.key, { job, card });
  }
  by("none").hidden = jobs.size > 0;
}

function added(job) {
  const card = by("card").content.firstElementChild.cloneNode(true);
  card.dataset.made = job.created_at;
  const after = [...grid.children].find((other) => other.dataset.made < job.created_at);
  grid.insertBefore(card, after ?? null);
  card.querySelector(".again").addEventListener("click", () => reuse(jobs.get(job.key).job.prompt));
  return card;
}

// Prompts and messages of the gateway are set as text, never as HTML.
function fill(card, job) {
  const [kind, , sign] = STATES[stage(job)] ?? ["", "", ""];
  const part = (name) => card.querySelector(name);
  card.className = `card ${kind}`;
  card.dataset.state = stage(job);
  part(".prompt").textContent = part(".prompt").title = job.prompt;
  part(".state").textContent = words(job);
  part(".again").hidden = !["failed", "refused", "withdrawn"].includes(job.state);
  const bar = part(".bar");
  bar.hidden = job.progress == null;
  if (!bar.hidden) bar.value = Math.max(bar.value, job.progress); // each worker estimates for itself: it never goes back
  const frame = part(".frame");
  if (job.images.length === 0) {
    frame.replaceChildren(...(sign === "" ? [] : [made("span", "sign", sign)]), made("p", "why", reason(job)));
  } else if (frame.querySelector("img") === null) {
    frame.replaceChildren(enlargeable(job));
  }
}

function made(tag, name, text) {
  const part = document.createElement(tag);
  part.className = name;
  part.textContent = text;
  if (name === "sign") part.ariaHidden = "true";
  return part;
}

function enlargeable(job) {
  const button = document.createElement("button"), image = document.createElement("img");
  button.type = "button";
  button.setAttribute("aria-label", `Enlarge: ${job.prompt}`);
  image.src = job.images[0];
  image.alt = job.prompt;
  image.loading = "lazy";
  button.append(image);
  button.addEventListener("click", () => {
    view.querySelector("img").src = job.images[0];
    view.querySelector("img").alt = job.prompt;
    by("caption").textContent = job.prompt;
    view.showModal();
  });
  return button;
}
view.addEventListener("click", (event) => { if (event.target === view) view.close(); });

function stage(job) { return job.state === "succeeded" && job.images.length === 0 ? "fetching" : job.state; }
function done(job) { return !UNFINISHED.has(stage(job)); }
function seconds(from, to) { return `${Math.max(0, Math.round((to - Date.parse(from)) / 1000))} s`; }
function sentence(text) { return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : "."); }

function words(job) {
  if (stage(job) === "succeeded") {
    const cost = job.credits === null ? null : `${job.credits} ${job.credits === "1" ? "credit" : "credits"}`;
    return [job.resolution, seconds(job.created_at, Date.parse(job.ended_at)), cost].filter(Boolean).join(" · ");
  }
  const said = STATES[stage(job)]?.[1] ?? job.state;
  return done(job) ? said : `${said} · ${seconds(job.created_at, Date.now())}`;
}

function reason(job) {
  if (job.state === "uncertain") {
    return "Its answer is lost, and it is not bought again by itself. Look for it in the gateway’s own list of tasks.";
  }
  return ["failed", "refused"].includes(job.state) ? sentence(job.error ?? "the gateway gave no reason") : "";
}

function announce(job) {
  by("status").textContent = `${stage(job) === "succeeded" ? "Done" : words(job)}: ${job.prompt}`;
}

setInterval(() => {
  for (const { job, card } of jobs.values()) if (!done(job)) card.querySelector(".state").textContent = words(job);
}, 1000);

// ---- listening

function listen() {
  const source = new EventSource("/api/events");
  source.addEventListener("open", () => connection("live", "Live"));
  source.addEventListener("jobs", (event) => show(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    connection("lost", "Reconnecting …");
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 1000); // a proxy's error page ends it for good
  });
}

function connection(state, said) {
  line.dataset.state = state;
  line.firstElementChild.textContent = said;
}

// ---- beginning

function selects() { return [...form.querySelectorAll("label:not([hidden]) > select")]; }

async function offerChoices() {
  const choices = await fetch("/api/choices").then((answer) => answer.json()).catch(() => ({}));
  for (const [id, values] of Object.entries(choices)) {
    by(id).replaceChildren(...values.map((value) => new Option(NAMES[value] ?? value, value)));
    by(id).parentElement.hidden = false;
  }
  const kept = JSON.parse(sessionStorage.getItem("draft") ?? "null");
  if (kept !== null && prompt.value === "") { // the page was reloaded before the server had answered
    prompt.value = kept.fields.prompt;
    for (const select of selects()) select.value = kept.fields[select.id] ?? select.value;
  }
}

listen();
offerChoices();
