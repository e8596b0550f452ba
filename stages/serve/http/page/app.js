// Ask, listen to the events, draw them. Texts from outside only ever become text nodes.
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let entries = [];
let stopping = null;
let aheadFirst = false; // of the next comparison: they take turns

function make(tag, content = "", attributes = {}) {
  const node = document.createElement(tag);
  node.append(...[content].flat());
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function draw(tag, attributes, content = "") {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (content !== "") node.append(content);
  return node;
}

const ms = (value) => value == null ? "–" : value === 0 ? "0" : value < 10 ? `${value.toFixed(1)} ms`
  : value < 10000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;

function setState(state, said, error = "") {
  document.body.dataset.state = state;
  $("status").textContent = said;
  $("error").textContent = error;
  $("error").hidden = error === "";
  $("ask").disabled = state === "asking" || state === "loading";
  $("stop").disabled = state !== "asking";
}

// -- talking to the service -------------------------------------------------------------------

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

class Failed extends Error {}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { headers: headers(), ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed("The service does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Failed(explain({ status: response.status, title: response.statusText, ...problem }));
}

function explain(problem) {
  const advice = {
    401: "Type the service's key under “Key” and ask again.",
    429: "It is busy. Wait a moment and ask again.",
    503: "Wait until it has opened its entries, or choose another entry.",
    504: "Ask for less, or ask again when it is less busy.",
  }[problem.status] || "";
  return `${problem.title} (${problem.status}): ${problem.detail || "no reason given"} ${advice}`;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const found = /^event: (\w+)\ndata: ([^]*)$/.exec(part);
      if (found) yield [found[1], JSON.parse(found[2])];
    }
  }
}

// -- one run ----------------------------------------------------------------------------------

function newRun(label) {
  const run = {
    label, bars: [], hints: [], evidence: new Map(), steps: new Map(), total: 0, timings: {},
    there: 0, missed: 0,
    box: make("article"), answer: make("p", "", { class: "answer", "aria-live": "polite" }),
    facts: make("p", "", { class: "soft" }), timeline: make("div"),
    passages: make("ol"), list: make("ol"),
  };
  run.box.append(
    make("h2", label === "" ? "Answer" : `Answer, ${label}`), run.answer, run.facts,
    make("h3", "Timeline"), run.timeline, make("h3", "Passages"), run.passages,
    make("h3", "Steps"), run.list,
  );
  $("runs").append(run.box);
  return run;
}

async function perform(run, body, signal) {
  const response = await ask("/answer", { method: "POST", body: JSON.stringify(body), signal });
  let ended = false;
  for await (const [name, e] of events(response)) {
    if (name === "begin") showStep(run, e);
    else if (name === "token") run.answer.append(e.text);
    else if (name === "evidence") showEvidence(run, e);
    else if (name === "step") { run.bars.push(e); showStep(run, e); }
    else if (name === "hint") run.hints.push(e);
    else if (name === "copy") run.bars.push({ kind: "copy", ...e });
    else if (name === "clusters") { run.there += e.hits; run.missed += e.misses; }
    else if (name === "timings") { run.timings = e; run.total = e.total_ms; }
    else if (name === "error") throw new Failed(explain(e));
    else if (name === "done") { ended = true; finish(run, e); }
    if (name === "begin" && e.kind === "LLM") run.answer.textContent = "";
  }
  if (!ended) throw new Failed("The answer broke off: the service ended or the connection did.");
}

function showStep(run, e) {
  let item = run.steps.get(e.no);
  if (!item) {
    item = { head: make("summary"), asked: make("p"), gave: make("p") };
    const box = make("details", [item.head, make("h3", "asked"), item.asked, make("h3", "gave"),
      item.gave]);
    run.list.append(make("li", box));
    run.steps.set(e.no, item);
  }
  if (e.asked !== undefined) item.asked.textContent = e.asked;
  const what = { LLM: "The model writes", Choice: "The model chooses", Search: "Search" }[e.kind];
  const took = e.end_ms === undefined ? " …"
    : `: ${ms(e.end_ms - e.start_ms)}, from ${ms(e.start_ms)}`;
  item.head.textContent = `${what || e.kind}${took}`;
  if (e.failed) item.head.textContent += ": failed";
  const tokens = e.tokens_out === undefined ? "" : ` (${e.tokens_in} tokens in, ${e.tokens_out} out)`;
  item.gave.textContent = e.failed || (e.gave === undefined ? "" : `${e.gave}${tokens}`);
}

function showEvidence(run, e) {
  for (const hit of e.hits) {
    if (run.evidence.has(hit.docid)) continue;
    run.evidence.set(hit.docid, hit);
    const head = make("summary", [make("strong", hit.title || hit.docid),
      ` · score ${hit.score.toFixed(3)}`]);
    const facts = { docid: hit.docid, document: hit.parent, passage: String(hit.seq),
      characters: `${hit.start}–${hit.end}`, locator: hit.locator || "–",
      "found by": e.query };
    const lineage = make("dl", Object.entries(facts).flatMap(
      ([name, value]) => [make("dt", name), make("dd", value)]));
    run.passages.append(make("li", make("details", [head, make("p", hit.text), lineage])));
  }
}

function finish(run, e) {
  run.answer.textContent = e.answer || "(no text)";
  const c = e.counts;
  run.facts.textContent = `${ms(run.total)} in all · first token after ` +
    `${ms(run.timings.first_token_ms)} · ${c.searches} searches, ${c.llm_calls} calls of the ` +
    `model, ${c.tokens_out} tokens · ended: ${e.stop_reason}`;
  if (run.there + run.missed) {
    run.facts.textContent += ` · ${run.there} of ${run.there + run.missed} clusters were there`;
  }
  if (!run.passages.children.length) run.passages.append(make("li", "No passage was read."));
}

// Milliseconds in which at least one of these bars ran: what runs side by side counts once.
function covered(bars) {
  let [sum, until] = [0, 0];
  for (const b of [...bars].sort((one, other) => one.start_ms - other.start_ms)) {
    sum += Math.max(0, b.end_ms - Math.max(until, b.start_ms));
    until = Math.max(until, b.end_ms);
  }
  return sum;
}

// -- the timeline -----------------------------------------------------------------------------

function showTimeline(run, scale) {
  const rows = [["model", ["LLM", "Choice"]], ["search", ["Search", "Encode", "Score"]],
    ["copies", ["copy"]]].filter(([name, kinds]) =>
    name !== "copies" || run.bars.some((b) => kinds.includes(b.kind)));
  const width = Math.max(280, run.timeline.clientWidth), left = 62, right = 12, high = 26, top = 6;
  const x = (t) => left + (width - left - right) * t / Math.max(scale, 1);
  const height = top + rows.length * high + 22;
  const said = rows.map(([name, kinds]) => {
    const own = run.bars.filter((b) => kinds.includes(b.kind));
    return `${name}: ${own.length}, ${ms(covered(own))} together`;
  });
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `Timeline of ${ms(run.total)}. ${said.join("; ")}.` });
  const ticks = width < 480 ? 2 : 4;
  for (let i = 0; i <= ticks; i += 1) {
    const t = scale * i / ticks;
    svg.append(draw("line", { class: "grid", x1: x(t), x2: x(t), y1: top,
      y2: top + rows.length * high }));
    const anchor = i === 0 ? "start" : i === ticks ? "end" : "middle";
    svg.append(draw("text", { class: "tick", x: x(t), y: height - 6, "text-anchor": anchor }, ms(t)));
  }
  rows.forEach(([name, kinds], row) => {
    const y = top + row * high;
    svg.append(draw("text", { x: 0, y: y + 17 }, name));
    for (const b of run.bars.filter((one) => kinds.includes(one.kind))) {
      const bar = draw("rect", { class: b.kind, x: x(b.start_ms), y: y + 4, height: high - 8, rx: 2,
        width: Math.max(1.5, x(b.end_ms) - x(b.start_ms)) });
      bar.append(draw("title", {}, `${b.kind} ${ms(b.start_ms)} to ${ms(b.end_ms)}`));
      svg.append(bar);
    }
  });
  for (const hint of run.hints) {
    const mark = draw("rect", { class: "hint", x: x(hint.at_ms) - 1, y: top, width: 2,
      height: rows.length * high });
    mark.append(draw("title", {}, `hint: ${hint.query}`));
    svg.append(mark);
  }
  run.timeline.replaceChildren(svg, make("p",
    said.join(" · ") + (run.hints.length ? ` · hints: ${run.hints.length}` : ""), { class: "legend soft" }));
}

function compare(runs) {
  const searched = (run) => covered(run.bars.filter((b) => b.kind === "Search"));
  // As they ran; the table always has none before lookahead.
  const first = runs[0].label;
  runs = [...runs].sort((one, other) => (one.label === "none" ? -1 : other.label === "none" ? 1 : 0));
  const rows = [["whole answer", (r) => r.total], ["first token", (r) => r.timings.first_token_ms],
    ["waiting for searches", searched]];
  const head = make("tr", ["", ...runs.map((r) => r.label), "none / lookahead"].map(
    (text) => make("th", text, { scope: "col" })));
  const body = rows.map(([name, value]) => {
    const [none, ahead] = runs.map(value);
    const ratio = none && ahead ? `${(none / ahead).toFixed(2)}×` : "–";
    return make("tr", [make("th", name, { scope: "row" }), make("td", ms(none)),
      make("td", ms(ahead)), make("td", ratio)]);
  });
  const same = runs[0].answer.textContent === runs[1].answer.textContent;
  $("comparison").replaceChildren(make("article", [make("h2", "Compared"),
    make("table", [make("thead", head), make("tbody", body)]),
    make("p", (same ? "Both answers are the same. " : "The answers differ. ") +
      `“${first}” ran first; the next comparison turns it round. Both began with nothing in ` +
      "memory, drew alike, and the second wrote as many tokens as the first.", { class: "soft" })]));
}

// -- the form ---------------------------------------------------------------------------------

function chosen() {
  return entries.find((e) => e.entry === $("entry").value);
}

function showEntry() {
  const entry = chosen();
  if (!entry) return;
  $("about").textContent = `${entry.strategy} over ${entry.corpus}, index ${entry.index}, model ` +
    `${entry.model}${entry.open ? "" : `. Not open: ${entry.why}`}`;
  for (const radio of document.getElementsByName("ahead")) {
    radio.disabled = !entry.lookahead && radio.value !== "none";
    if (!entry.lookahead) radio.checked = radio.value === "none";
    else if (radio.value === "lookahead") radio.checked = true;
  }
  $("why-not").hidden = entry.lookahead;
  $("why-not").textContent = "This entry's index lies in memory: there is nothing to fetch ahead.";
}

async function submit(event) {
  event.preventDefault();
  if (document.body.dataset.state === "asking") return;
  const question = $("question").value.trim();
  if (question === "") { setState("failed", "", "Type a question first."); return; }
  stopping = new AbortController();
  setState("asking", "Asking …");
  $("runs").replaceChildren();
  $("comparison").replaceChildren();
  const mode = document.querySelector("input[name=ahead]:checked").value;
  const both = mode === "both";
  const order = aheadFirst ? ["lookahead", "none"] : ["none", "lookahead"];
  if (both) aheadFirst = !aheadFirst;
  const modes = both ? order : [mode];
  const comparison = both && [...crypto.getRandomValues(new Uint8Array(16))]
    .map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const runs = [];
  try {
    for (const one of modes) {
      const run = newRun(chosen().lookahead ? one : "");
      runs.push(run);
      const body = { question, entry: $("entry").value, lookahead: one === "lookahead",
        ...(comparison && { comparison }) };
      await perform(run, body, stopping.signal);
    }
    setState("done", "Done.");
  } catch (error) {
    if (error.name === "AbortError") setState("stopped", "Stopped. The model's place is free again.");
    else if (error instanceof Failed) setState("failed", "", error.message);
    else setState("failed", "", `The connection broke: ${error.message}`);
  }
  const scale = Math.max(...runs.map((r) => Math.max(r.total, ...r.bars.map((b) => b.end_ms))), 1);
  for (const run of runs) showTimeline(run, scale);
  if (modes.length === 2 && document.body.dataset.state === "done") compare(runs);
  if (document.body.dataset.state === "done") $("results").focus({ preventScroll: true });
}

async function load() {
  try {
    entries = (await (await ask("/catalogue")).json()).filter((e) => e.answers);
  } catch (error) {
    setState("failed", "", error.message);
    return;
  }
  const open = entries.find((e) => e.open);
  $("entry").replaceChildren(...entries.map((e) => make("option",
    e.open ? e.entry : `${e.entry} (not open)`, { value: e.entry })));
  if (open) $("entry").value = open.entry;
  showEntry();
  if (!entries.length) setState("failed", "", "No entry of this catalogue writes answers.");
  else if (open) setState("idle", "");
  else {
    setState("loading", "The entries are being opened …");
    setTimeout(load, 1000);
  }
}

$("form").addEventListener("submit", submit);
$("entry").addEventListener("change", showEntry);
$("key").addEventListener("change", load);
$("stop").addEventListener("click", () => stopping?.abort());
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
load();
