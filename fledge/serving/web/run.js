// One run: how it stands, live charts of each training stage, what it wrote, what was measured, where everything comes from.

import { Chart } from "./charts.js";
import { announce, element, fill, formatBytes, formatCount, formatSeconds, load, showError } from "./common.js";
import { Curves, SOURCE_TOKENS } from "./curves.js";
import { showLineage } from "./lineage.js";
import { repeat } from "./repeat.js";
import { address, badge, formatAgo, formatLeft } from "./runs_list.js";
import { showStarted } from "./started.js";

const LIVE_SECONDS = 2;

// `lines`: figures by name, and what each is called where there are several.
const CHARTS = [
  { title: "Loss", lines: { "train/loss": "training", "validation/loss": "validation" }, format: (value) => value.toFixed(4), bands: true },
  { title: "Bits per byte", lines: { "validation/bits_per_byte": "validation" }, format: (value) => value.toFixed(3) },
  { title: "Learning rate", lines: { "train/learning_rate": "" }, format: (value) => value.toExponential(2), bands: true, fromZero: true, isNamed: false },
  { title: "Gradient norm", lines: { "train/gradient_norm": "" }, format: (value) => value.toFixed(3) },
  { title: "Tokens per second", lines: { "train/tokens_per_second_smoothed": "smoothed", "train/tokens_per_second": "since the line before" }, format: formatCount, fromZero: true, si: true },
  { title: "Memory", lines: { "train/peak_memory_bytes": "" }, format: formatBytes, fromZero: true, si: true },
  { title: "Rewards", lines: { "rewards/chosen": "chosen", "rewards/rejected": "rejected", "rewards/margins": "margin" }, format: (value) => value.toFixed(3) },
  { title: "Reward accuracy", lines: { "rewards/accuracies": "" }, format: (value) => `${(100 * value).toFixed(1)} %` },
];
const FAINT = new Set(["train/tokens_per_second"]);

export async function showRun(place, [name], signal) {
  document.title = `${name} - Fledge`;
  const path = `/board/runs/${encodeURIComponent(name)}`;
  const run = await load(path, { signal });
  const state = element("span");
  const head = element(
    "div",
    { class: "head" },
    element("div", {}, element("p", { class: "small" }, element("a", { href: "#/" }, "Runs")), element("h1", {}, name)),
    state,
  );
  const told = element("div");
  const tiles = element("dl", { class: "tiles" });
  const started = element("div");
  const training = element("section", { "aria-label": "Training" });
  const places = Object.fromEntries(["evaluations", "lineage", "cards", "config", "stages"].map((key) => [key, element("section")]));
  fill(place, head, told, tiles, started, training, Object.values(places));

  const view = new TrainingView(training, name, signal);
  let before = null;
  await repeat(signal, LIVE_SECONDS, async () => {
    const status = before === null ? run : await load(`${path}/status`, { signal });
    fill(state, badge(status.state));
    fill(told, problem(status));
    if (before !== null && before.state !== status.state) announce(`${name} is ${status.state}`);
    const isElsewhere = before === null || before.stage !== status.stage || before.state !== status.state;
    const whole = !isElsewhere ? null : before === null ? run : await load(path, { signal });
    if (isElsewhere) await view.begin(whole);
    await view.look();
    fill(tiles, tilesOf(status, view.curves));
    if (isElsewhere) showRest(places, path, whole, signal);
    before = status;
  });
  showStarted(started, name, signal);
}

function problem(status) {
  if (!status.problem) return [];
  const kind = status.state === "failed" ? "error" : "warning";
  return element("div", { class: kind, role: "status" }, element("p", {}, status.problem), status.remedy ? element("p", { class: "muted" }, status.remedy) : null);
}

function tilesOf(status, curves) {
  const tile = (title, value, note = "") =>
    value === null || value === "" ? null : element("div", {}, element("dt", {}, title), element("dd", {}, value, note ? element("div", { class: "small" }, note) : null));
  const number = (name, words) => (curves?.last(name) === null || curves === null ? null : words(curves.last(name)));
  const done = status.finished_stages.filter((stage) => status.stages.includes(stage)).length;
  return [
    tile("Stage", status.stage ?? "none", `${done} of ${status.stages.length} finished`),
    tile("Step", status.step === null ? null : status.step.toLocaleString("en"), status.step_stage === status.stage ? "" : `of ${status.step_stage}`),
    tile("Loss", number("train/loss", (value) => value.toFixed(4))),
    tile("Time left", status.seconds_left === null ? null : formatLeft(status.seconds_left), `in ${status.stage}, by ${clock(status.seconds_left)}`),
    tile("Tokens", number("train/tokens", formatCount)),
    tile("Tokens per second", number("train/tokens_per_second_smoothed", formatCount)),
    tile("Memory", number("train/peak_memory_bytes", formatBytes)),
    tile("Changed", formatAgo(status.changed_unix_seconds)),
  ];
}

function clock(seconds) {
  return new Date(Date.now() + seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", weekday: seconds > 43200 ? "short" : undefined });
}

/** The training stages of a run, one of them shown. */
class TrainingView {
  constructor(place, run, signal) {
    this.place = place;
    this.run = run;
    this.signal = signal;
    this.curves = null;
    this.stage = null;
    this.isChosen = false;
    this.charts = [];
    signal.addEventListener("abort", () => this.clear());
  }

  clear() {
    for (const { chart } of this.charts) chart.remove();
    this.charts = [];
  }

  /** The stages that there are now; the one in work is shown unless another was chosen. */
  async begin(run) {
    this.stages = run.training;
    if (this.stages.length === 0) {
      this.stage = this.curves = null;
      fill(this.place, element("div", { class: "card empty" }, run.state === "running" ? `Nothing is trained yet: ${run.stage} is in work.` : "This run has trained nothing."));
      return;
    }
    const wanted = this.stages.find((stage) => stage.name === (this.isChosen ? this.stage?.name : run.stage)) ?? this.stages.at(-1);
    await this.open(wanted);
  }

  async open(stage) {
    this.clear();
    this.stage = stage;
    this.curves = new Curves(this.run, stage.name);
    const choice = element(
      "div",
      { class: "choice", role: "group", "aria-label": "Stage", hidden: this.stages.length < 2 },
      this.stages.map((one) => element("button", { "aria-pressed": String(one === stage), click: () => this.choose(one) }, one.name)),
    );
    const scale = element("label", { class: "check small" }, element("input", { type: "checkbox", change: (event) => this.scale(event.target.checked) }), "Logarithmic loss");
    this.note = element("p", { class: "muted small" }, "No step is recorded yet.");
    this.grid = element("div", { class: "charts" });
    this.more = element("select", { "aria-label": "Another figure", change: (event) => this.add(event.target.value) });
    this.samples = element("div");
    this.sampleSteps = null;
    const rest = element("div", { class: "more field", hidden: true }, this.more);
    fill(this.place, element("div", { class: "head" }, element("h2", {}, "Training"), choice, scale), phasesTable(stage), this.note, this.grid, rest, this.samples);
    for (const given of CHARTS) this.placeChart({ ...given, chart: new Chart(given.title, given) });
    this.placeChart({ title: "Mixture", chart: new Chart("Mixture: share of each source", { stacked: true, format: (value) => `${(100 * value).toFixed(1)} %` }), isMixture: true, lines: {} });
  }

  placeChart(one) {
    this.charts.push(one);
    this.grid.append(one.chart.place);
  }

  async choose(stage) {
    this.isChosen = true;
    await this.open(stage);
    await this.look();
    this.place.querySelector('[aria-pressed="true"]').focus();
  }

  scale(isLogarithmic) {
    const loss = this.charts.find((one) => one.title === "Loss");
    loss.chart.options.logarithmic = isLogarithmic;
    loss.chart.draw();
  }

  add(name) {
    if (!name) return;
    this.placeChart({ title: name, lines: { [name]: "" }, chart: new Chart(name, { format: (value) => value.toPrecision(5) }) });
    this.drawChart(this.charts.at(-1));
    this.showOthers();
  }

  /** Read what is new and draw it. */
  async look() {
    if (this.curves === null) return;
    const curves = this.curves;
    if (!(await curves.refresh(this.signal)) || curves !== this.curves) return;
    this.draw();
    await this.showSamples();
  }

  draw() {
    for (const one of this.charts) this.drawChart(one);
    this.showOthers();
    const count = this.curves.notFinite;
    this.note.textContent = count ? `${count.toLocaleString("en")} values were not finite numbers and are not drawn.` : "";
  }

  drawChart(one) {
    const lines = one.isMixture
      ? this.curves.shares()
      : Object.entries(one.lines).map(([name, title]) => ({ name: title, points: this.curves.points(name), faint: FAINT.has(name) }));
    one.chart.show(lines, one.bands && this.stage.phases.length > 1 ? this.stage.phases.map(bandOf) : []);
  }

  /** The figures that have no chart yet. */
  showOthers() {
    const drawn = new Set(this.charts.flatMap((one) => Object.keys(one.lines)));
    const others = this.curves.names().filter((name) => !drawn.has(name) && !name.startsWith(SOURCE_TOKENS));
    fill(this.more, element("option", { value: "" }, "Show another figure ..."), others.map((name) => element("option", { value: name }, name)));
    this.more.parentElement.hidden = others.length === 0;
  }

  async showSamples() {
    const { samples } = await load(`/board/runs/${encodeURIComponent(this.run)}/stages/${encodeURIComponent(this.stage.name)}/samples`, { signal: this.signal });
    const steps = samples.map((one) => one.step).join();
    if (steps === this.sampleSteps) return;
    this.sampleSteps = steps;
    const shown = samples.slice(0, 8);
    const older = samples.slice(8);
    fill(
      this.samples,
      samples.length ? element("h3", {}, "What it writes") : null,
      element("ul", { class: "samples" }, shown.map(sampleOf)),
      older.length ? element("details", {}, element("summary", {}, `${older.length} earlier ones`), element("ul", { class: "samples" }, older.map(sampleOf))) : null,
    );
  }
}

function sampleOf(sample) {
  const prompt = sample.prompt ? element("span", { class: "prompt" }, sample.prompt, " ") : null;
  return element("li", { class: "card" }, element("div", { class: "muted small" }, `step ${sample.step.toLocaleString("en")}`), element("p", { class: "text" }, prompt, sample.text || "(nothing)"));
}

function bandOf(phase, number) {
  return { from: phase.first_step, to: phase.last_step, name: `${number + 1}: ${phase.batch_rows} x ${phase.row_tokens.toLocaleString("en")}` };
}

/** Phases and the mixture of each, where there is more than one of either. */
function phasesTable(stage) {
  const sources = [...new Set(stage.phases.flatMap((phase) => Object.keys(phase.shares)))];
  if (stage.phases.length < 2 && sources.length < 2) return null;
  const percent = (share) => (share === undefined ? "" : `${(100 * share).toFixed(1)} %`);
  return element(
    "details",
    { class: "phases" },
    element("summary", {}, `Curriculum: ${stage.phases.length} ${stage.phases.length === 1 ? "phase" : "phases"}, ${sources.length} ${sources.length === 1 ? "source" : "sources"}`),
    element(
      "div",
      { class: "scroll" },
      element(
        "table",
        {},
        element("thead", {}, element("tr", {}, ["phase", "steps", "batch", "tokens", ...sources].map((title, number) => element("th", { scope: "col", class: number ? "number" : null }, title)))),
        element(
          "tbody",
          {},
          stage.phases.map((phase, number) =>
            element(
              "tr",
              {},
              element("th", { scope: "row" }, String(number + 1)),
              [`${phase.first_step.toLocaleString("en")} to ${phase.last_step.toLocaleString("en")}`, `${phase.batch_rows} x ${phase.row_tokens.toLocaleString("en")}`, formatCount(phase.tokens), ...sources.map((source) => percent(phase.shares[source]))].map(
                (text) => element("td", { class: "number" }, text),
              ),
            ),
          ),
        ),
      ),
    ),
  );
}

// ---- below the charts: what changes only when a stage ends

function showRest(places, path, run, signal) {
  const parts = { evaluations: showEvaluations, lineage: showLineage, cards: showCards, config: showConfig };
  for (const [key, show] of Object.entries(parts)) {
    load(`${path}/${key}`, { signal })
      .then((found) => show(places[key], found))
      .catch((error) => signal.aborted || showError(places[key], error));
  }
  fill(places.stages, run.other.length ? [element("h2", {}, "Other stages"), element("div", { class: "card" }, element("dl", { class: "facts" }, run.other.map((one) => [element("dt", {}, one.place), element("dd", {}, one.outcome || "finished", one.seconds ? ` (${formatSeconds(one.seconds)})` : "")])))] : []);
}

function showEvaluations(place, found) {
  if (found.rows.length === 0) return fill(place);
  const titles = ["score", ...found.checkpoints.map((name) => `after ${name}`), "guessing", "n"];
  const cell = (one) =>
    element("td", { class: "number" }, one === null ? "" : element("span", { title: one.verdict || one.note, class: one.distinguishable === false ? "muted" : null }, one.shown));
  return fill(
    place,
    element("h2", {}, "Evaluations"),
    element(
      "div",
      { class: "card scroll" },
      element(
        "table",
        { class: "scores" },
        element("thead", {}, element("tr", {}, titles.map((title, number) => element("th", { scope: "col", class: number ? "number" : null }, title)))),
        element(
          "tbody",
          {},
          found.rows.map((row) =>
            element("tr", {}, element("th", { scope: "row", title: row.note }, row.title), row.cells.map(cell), element("td", { class: "number" }, row.guessing ?? ""), element("td", { class: "number" }, row.n.toLocaleString("en"))),
          ),
        ),
      ),
    ),
    element("p", { class: "muted small" }, "In brackets the 95 % interval. A ? marks a figure whose interval includes guessing."),
    found.answers.length
      ? element("details", {}, element("summary", {}, "Answers"), element("ul", { class: "samples" }, found.answers.map((one) => element("li", { class: "card" }, element("div", { class: "muted small" }, `after ${one.checkpoint}: ${one.question}`), element("p", { class: "text" }, one.text || "(nothing)")))))
      : null,
  );
}

function showCards(place, found) {
  if (found.cards.length === 0) return fill(place);
  return fill(
    place,
    element("h2", {}, "Data cards"),
    found.cards.map((card) =>
      element(
        "article",
        { class: "card data-card" },
        element("h3", {}, card.name),
        element("p", {}, card.summary),
        element(
          "div",
          { class: "scroll" },
          element(
            "table",
            {},
            element("thead", {}, element("tr", {}, card.columns.map((title, number) => element("th", { scope: "col", class: number > 1 ? "number" : null }, title)))),
            element("tbody", {}, card.rows.map((row) => element("tr", {}, row.map((text, number) => element("td", { class: number > 1 ? "number" : null }, text))))),
          ),
        ),
        card.limits.length ? element("details", {}, element("summary", {}, "Known limits"), element("ul", {}, card.limits.map((limit) => element("li", {}, limit)))) : null,
      ),
    ),
  );
}

function showConfig(place, found) {
  if (found.rows.length === 0) return fill(place);
  const rows = found.rows.map(({ name, value, origin }) => ({
    text: `${name} ${origin}`.toLowerCase(),
    made: element("tr", {}, element("th", { scope: "row", class: "mono" }, name), element("td", { class: "mono" }, value === null ? "unset" : typeof value === "string" ? value : JSON.stringify(value)), element("td", { class: "muted" }, origin)),
  }));
  const filter = (event) => {
    for (const row of rows) row.made.hidden = !row.text.includes(event.target.value.toLowerCase());
  };
  return fill(
    place,
    element("h2", {}, "Config"),
    element(
      "details",
      { class: "card" },
      element("summary", {}, `${rows.length} values and where they were set`),
      element("div", { class: "field" }, element("label", { for: "config-filter" }, "Only names or origins with"), element("input", { id: "config-filter", type: "search", input: filter })),
      element("div", { class: "scroll" }, element("table", { class: "config" }, element("thead", {}, element("tr", {}, ["value", "is", "from"].map((title) => element("th", { scope: "col" }, title)))), element("tbody", {}, rows.map((row) => row.made)))),
    ),
  );
}
