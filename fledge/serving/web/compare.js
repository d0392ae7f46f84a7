// Runs side by side: their curves over each other, what each came to, and in which settings they differ.

import { Chart } from "./charts.js";
import { element, fill, formatCount, formatSeconds, load } from "./common.js";
import { Curves } from "./curves.js";
import { repeat } from "./repeat.js";
import { address } from "./runs_list.js";

const CHARTS = [
  { title: "Loss", name: "train/loss", format: (value) => value.toFixed(4) },
  { title: "Validation loss", name: "validation/loss", format: (value) => value.toFixed(4) },
  { title: "Bits per byte", name: "validation/bits_per_byte", format: (value) => value.toFixed(3) },
  { title: "Learning rate", name: "train/learning_rate", format: (value) => value.toExponential(2), fromZero: true },
  { title: "Gradient norm", name: "train/gradient_norm", format: (value) => value.toFixed(3) },
  { title: "Tokens per second", name: "train/tokens_per_second_smoothed", format: formatCount, fromZero: true, si: true },
];
const FIGURES = [
  ["parameters", "Parameters", formatCount],
  ["steps", "Steps", (value) => value.toLocaleString("en")],
  ["tokens", "Tokens", formatCount],
  ["loss", "Loss", (value) => value.toFixed(4)],
  ["validation_loss", "Validation loss", (value) => value.toFixed(4)],
  ["seconds", "Time", formatSeconds],
];

export async function showComparison(place, names, signal) {
  document.title = "Compare - Fledge";
  const query = names.map((name) => `run=${encodeURIComponent(name)}`).join("&");
  const found = await load(`/board/compare?${query}`, { signal });
  const grid = element("div", { class: "charts" });
  const choice = element("div", { class: "choice", role: "group", "aria-label": "Stage" });
  const charts = CHARTS.map((given) => ({ ...given, chart: new Chart(given.title, given) }));
  signal.addEventListener("abort", () => charts.forEach(({ chart }) => chart.remove()));
  fill(
    place,
    element("div", { class: "head" }, element("div", {}, element("p", { class: "small" }, element("a", { href: "#/" }, "Runs")), element("h1", {}, "Compare")), choice),
    element("section", { "aria-label": "Curves" }, grid),
    figures(found),
    settings(found),
  );
  fill(grid, charts.map(({ chart }) => chart.place));
  if (found.stages.length === 0) {
    fill(grid, element("div", { class: "card empty" }, "None of these runs has trained anything."));
    return;
  }

  let curves = [];
  async function look() {
    const news = await Promise.all(curves.map(({ known }) => known.refresh(signal)));
    if (!news.some(Boolean)) return;
    for (const { chart, name } of charts) {
      chart.show(curves.map(({ run, known }) => ({ name: run, points: known.points(name) })));
    }
  }
  async function open(stage) {
    const having = found.runs.filter((run, number) => stage.has[number]);
    curves = having.map((run) => ({ run, known: new Curves(run, stage.name) }));
    for (const button of choice.children) button.setAttribute("aria-pressed", String(button.textContent === stage.name));
    await look();
  }
  fill(choice, found.stages.map((stage) => element("button", { click: () => open(stage) }, stage.name)));
  await open(found.stages[0]);
  await repeat(signal, 3, look);
}

function figures(found) {
  const rows = found.stages.flatMap((stage) =>
    FIGURES.filter(([key]) => stage.stats.some((stats) => stats[key] !== undefined)).map(([key, title, words]) => [
      `${title}, ${stage.name}`,
      ...stage.stats.map((stats) => (stats[key] === undefined ? "" : words(stats[key]))),
    ]),
  );
  if (rows.length === 0) return null;
  return element("section", {}, element("h2", {}, "What they came to"), element("div", { class: "card scroll" }, table(["", ...found.runs], rows, true)));
}

function settings(found) {
  const shown = (value) => (typeof value === "string" ? value : value === null ? "unset" : JSON.stringify(value));
  const rows = found.differing.map((row) => [row.name, ...row.values.map(shown)]);
  return element(
    "section",
    {},
    element("h2", {}, "Where their settings differ"),
    rows.length ? element("div", { class: "card scroll" }, table(["value", ...found.runs], rows, false)) : element("div", { class: "card" }, "In none of them."),
  );
}

function table(titles, rows, isNumbers) {
  const kind = (number) => (number && isNumbers ? "number" : number ? "mono" : null);
  const title = (text, number) => element("th", { scope: "col", class: kind(number) }, number ? element("a", { href: address("run", text) }, text) : text);
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, titles.map(title))),
    element("tbody", {}, rows.map(([name, ...values]) => element("tr", {}, element("th", { scope: "row", class: isNumbers ? null : "mono" }, name), values.map((text) => element("td", { class: kind(1) }, text))))),
  );
}
