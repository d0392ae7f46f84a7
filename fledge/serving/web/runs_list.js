// The list of runs: state, where each is, how long it will take; some can be chosen to be compared.

import { element, fill, formatSeconds, load } from "./common.js";
import { repeat } from "./repeat.js";

const MOST_COMPARED = 6;

export function badge(state) {
  return element("span", { class: `badge ${state}` }, state);
}

export function address(...parts) {
  return `#/${parts.map(encodeURIComponent).join("/")}`;
}

export function formatAgo(unixSeconds) {
  const seconds = Math.max(0, Date.now() / 1000 - unixSeconds);
  return seconds < 5 ? "just now" : `${formatSeconds(seconds)} ago`;
}

export function formatLeft(seconds) {
  return seconds < 1 ? "any moment" : formatSeconds(seconds);
}

export async function showList(place, given, signal) {
  document.title = "Runs - Fledge";
  const chosen = new Set();
  const body = element("tbody");
  const compare = element("button", { disabled: true, click: () => (location.hash = address("compare", ...chosen)) }, "Compare");
  const start = element("a", { class: "button primary", href: "#/start", hidden: true }, "New run");
  const folder = element("p", { class: "muted small" });
  const empty = element("div", { class: "card empty", hidden: true });
  const table = element(
    "div",
    { class: "card scroll", hidden: true },
    element(
      "table",
      { class: "runs" },
      element("caption", { class: "unseen" }, "Runs"),
      element("thead", {}, element("tr", {}, ["", "Run", "State", "Stage", "Step", "Loss", "Time left", "Changed"].map(heading))),
      body,
    ),
  );
  fill(place, element("div", { class: "head" }, element("div", {}, element("h1", {}, "Runs"), folder), element("div", { class: "actions" }, compare, start)), table, empty);

  function choose(name, isChosen) {
    if (isChosen) chosen.add(name);
    else chosen.delete(name);
    compare.disabled = chosen.size < 2 || chosen.size > MOST_COMPARED;
    compare.textContent = chosen.size ? `Compare ${chosen.size}` : "Compare";
  }

  const boxes = new Map();
  function box(name) {
    // Kept from one look to the next, so that neither the choice nor the focus is lost.
    if (!boxes.has(name)) {
      boxes.set(name, element("input", { type: "checkbox", "aria-label": `Compare ${name}`, change: (event) => choose(name, event.target.checked) }));
    }
    return boxes.get(name);
  }

  const rows = new Map();
  await repeat(signal, 3, async () => {
    const found = await load("/board/runs", { signal });
    start.hidden = !found.can_start;
    folder.textContent = found.folder;
    table.hidden = found.runs.length === 0;
    empty.hidden = found.runs.length > 0;
    fill(
      empty,
      element("h2", {}, "No run yet"),
      element("p", {}, "A run appears here as soon as it is started: ", element("code", {}, "fledge run quickstart"), found.can_start ? ", or with New run." : "."),
    );
    const wanted = found.runs.toSorted((one, other) => (other.state === "running") - (one.state === "running") || other.changed_unix_seconds - one.changed_unix_seconds);
    for (const run of wanted) {
      const known = rows.get(run.name) ?? element("tr");
      rows.set(run.name, known);
      const focused = document.activeElement;
      fill(known, cells(run, box(run.name)));
      if (known.contains(focused)) focused.focus();
    }
    if (wanted.some((run, number) => body.children[number] !== rows.get(run.name)) || body.children.length !== wanted.length) {
      fill(body, wanted.map((run) => rows.get(run.name)));
    }
  });
}

function heading(title, number) {
  return number === 0 ? element("td") : element("th", { scope: "col", class: number === 4 || number === 5 ? "number" : null }, title);
}

function cells(run, box) {
  const left = run.seconds_left === null ? "" : `${formatLeft(run.seconds_left)} in ${run.stage}`;
  return [
    element("td", { class: "choose" }, box),
    element("th", { scope: "row" }, element("a", { href: address("run", run.name) }, run.name)),
    element("td", {}, badge(run.state), run.problem ? element("div", { class: "muted small problem" }, run.problem) : null),
    element("td", { "data-title": "Stage" }, stageOf(run)),
    element("td", { class: "number", "data-title": "Step" }, run.step === null ? "" : run.step.toLocaleString("en")),
    element("td", { class: "number", "data-title": "Loss" }, run.loss === null ? "" : run.loss.toFixed(3)),
    element("td", { "data-title": "Left" }, left),
    element("td", { class: "muted", "data-title": "Changed" }, formatAgo(run.changed_unix_seconds)),
  ];
}

function stageOf(run) {
  const done = run.finished_stages.filter((stage) => run.stages.includes(stage)).length;
  if (run.stage === null || done === run.stages.length) return run.stages.length ? `all ${run.stages.length}` : "";
  return `${run.stage} (${Math.min(done + 1, run.stages.length)} of ${run.stages.length})`;
}
