"use strict";
// The token comes in the fragment, which never leaves the browser; it is kept for this tab and taken out of the address bar.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) { sessionStorage.setItem("token", given); history.replaceState(null, "", location.pathname); }
const token = sessionStorage.getItem("token") || "";
const at = (id) => document.getElementById(id);
const cards = new Map(), rows = new Map(), curves = new Map();

function make(tag, text, name) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
}
function pair(list, term, value, name) {
  if (value === null || value === undefined || value === "") return;
  const group = make("div");
  group.append(make("dt", term), make("dd", value, name));
  list.append(group);
}
const short = (text) => (text && text.length > 14 ? `${text.slice(0, 6)}…${text.slice(-4)}` : text);

function left(deadline) {
  const seconds = Math.floor((new Date(deadline) - Date.now()) / 1000);
  if (seconds <= 0) return "the window has closed";
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min ${seconds % 60} s`;
}
function curve(job) {
  const known = curves.get(job.job_id), figure = make("figure");
  if (!known || known.loss.length < 2) return figure;
  const top = Math.max(...known.loss), low = Math.min(...known.loss), last = known.loss.length - 1;
  const space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg"), line = document.createElementNS(space, "polyline");
  svg.setAttribute("viewBox", "0 0 100 40");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "loss curve");
  line.setAttribute("points", known.loss.map((y, x) => `${(100 * x) / last},${38 - (36 * (y - low)) / (top - low || 1)}`).join(" "));
  svg.append(line);
  figure.append(svg, make("figcaption", `loss ${known.loss[0].toFixed(3)} → ${known.loss[last].toFixed(3)} in ${known.steps} lines`));
  return figure;
}
function draw(job) {
  const card = make("article", undefined, `job ${job.status}`), title = make("h2", job.name), list = make("dl");
  title.append(make("em", job.progress && job.status === "running" ? `${job.status}, ${job.progress}` : job.status));
  pair(list, "model", job.model);
  pair(list, "provider", short(job.provider));
  pair(list, "task", short(job.task_id));
  pair(list, "fee", job.fee);
  pair(list, "gas", job.gas);
  pair(list, "adapter", job.adapter);
  pair(list, "files", job.path);
  if (job.deadline) pair(list, "acknowledge within", left(job.deadline), "deadline");
  card.append(title, list, curve(job));
  if (job.note) card.append(make("p", job.note, "note"));
  const old = cards.get(job.job_id);
  if (old) old.replaceWith(card); else at("jobs").prepend(card);
  cards.set(job.job_id, card);
}
function sums(value) {
  const place = at("sums");
  place.replaceChildren();
  const show = (name, text) => { const group = make("div"); group.append(make("b", text), make("span", name)); place.append(group); };
  for (const name of ["queued", "running", "succeeded", "failed", "cancelled"]) if (value.counts[name]) show(name, value.counts[name]);
  show("fees", value.fee);
  show("gas", value.gas);
  show("adapters deployed", value.adapters);
  if (value.hidden) show("older jobs not shown", value.hidden);
}
function take(name, value) {
  if (name === "begin") {
    rows.clear(); cards.forEach((card) => card.remove()); cards.clear();
    at("who").textContent = `${value.wallet || ""} · ${value.network}`;
    at("link").textContent = "live"; at("link").className = "live";
  } else if (name === "jobs") {
    for (const job of value.jobs) { rows.set(job.job_id, job); draw(job); }
    at("empty").hidden = rows.size > 0;
    sums(value.sums);
  }
}
async function ask(path) { return fetch(path, { headers: { Authorization: `Bearer ${token}` }, cache: "no-store" }); }
async function listen() {
  const reply = await ask("/api/stream");
  if (reply.status === 401) { at("link").textContent = "open the address that `zg ui` printed: its token is missing"; at("link").className = "lost"; return false; }
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return true;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const fields = Object.fromEntries(text.slice(0, end).split("\n").filter((l) => !l.startsWith(":")).map((l) => [l.slice(0, l.indexOf(":")), l.slice(l.indexOf(":") + 2)]));
      if (fields.event) take(fields.event, JSON.parse(fields.data));
    }
  }
}
async function follow() {
  for (;;) {
    try { if (!(await listen())) return; } catch { /* it ended; say so and try again */ }
    at("link").textContent = "connection lost, trying again"; at("link").className = "lost";
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}
// Curves one at a time, newest first; again while a job trains. Providers answer few requests per second.
async function fetchCurves() {
  for (;;) {
    for (const job of [...rows.values()].reverse().slice(0, 24)) {
      const known = curves.get(job.job_id), done = known && known.progress === job.progress && job.progress !== "Training";
      if (!job.task_id || done) continue;
      try {
        const reply = await ask(`/api/jobs/${encodeURIComponent(job.job_id)}/loss`);
        const found = reply.ok ? await reply.json() : { loss: [], steps: 0 };  // asked again when the task has moved on
        curves.set(job.job_id, { ...found, progress: job.progress });
        draw(rows.get(job.job_id) || job);
      } catch { break; }
    }
    await new Promise((resolve) => setTimeout(resolve, rows.size ? 5000 : 250));
  }
}
setInterval(() => { for (const job of rows.values()) if (job.deadline) draw(job); }, 1000);
follow();
fetchCurves();
