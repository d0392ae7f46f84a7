// What `fledge plan` says, as tables.

import { element, fill, formatBytes, formatCount, formatSeconds } from "./common.js";

export function showPlan(place, plan) {
  const seconds = plan.stages.reduce((sum, stage) => sum + stage.seconds, 0);
  const peak = Math.max(...plan.stages.map((stage) => stage.peak_bytes));
  const known = plan.disk.reduce((sum, use) => sum + (use.size_bytes ?? 0), 0);
  const unknown = plan.disk.filter((use) => use.size_bytes === null).map((use) => use.what);
  const tile = (title, value, note) => element("div", {}, element("dt", {}, title), element("dd", {}, value, note ? element("div", { class: "small" }, note) : null));
  fill(
    place,
    element(
      "section",
      { class: "plan" },
      element("h2", {}, "Plan"),
      element(
        "dl",
        { class: "tiles" },
        tile("Training takes", formatSeconds(seconds), plan.stages.every((stage) => stage.is_measured) ? "measured on this machine" : "partly assumed"),
        tile("Parameters", formatCount(plan.parameters), `vocabulary ${plan.vocabulary_size.toLocaleString("en")}`),
        tile("Memory at most", formatBytes(peak), `of ${formatBytes(plan.stages[0].available_bytes)}`),
        unknown.length ? tile("Disk at least", formatBytes(known), `without ${unknown.join(", ")}, not known yet`) : tile("Disk at most", formatBytes(known), ""),
      ),
      plan.warnings.map((warning) => element("p", { class: "warning" }, warning)),
      table("Stages on this machine", ["stage", "steps", "tokens", "epochs", "batch", "rows at once", "tokens/s", "peak memory", "time"], plan.stages.map(stageRow)),
      table("Disk", ["what", "size", "how it is known"], plan.disk.map((use) => [use.what, use.size_bytes === null ? "?" : formatBytes(use.size_bytes), use.how])),
      element(
        "details",
        {},
        element("summary", {}, "The same training on other devices"),
        table("", ["device", "precision", "fits", "tokens/s", "time"], plan.devices.map((one) => [one.device, one.precision, one.fits ? "yes" : "no", formatCount(one.tokens_per_second), formatSeconds(one.seconds)])),
      ),
    ),
  );
}

function stageRow(stage) {
  const { length } = stage;
  return [
    stage.stage,
    length.steps.toLocaleString("en"),
    formatCount(length.tokens),
    stage.epochs === null ? "" : stage.epochs.toFixed(2),
    `${length.batch_rows} x ${length.row_tokens.toLocaleString("en")}`,
    stage.fits ? String(stage.batch.rows) : "none fits",
    formatCount(stage.tokens_per_second),
    formatBytes(stage.peak_bytes),
    formatSeconds(stage.seconds),
  ];
}

function table(caption, titles, rows) {
  return element(
    "div",
    { class: "card scroll" },
    element(
      "table",
      {},
      caption ? element("caption", {}, caption) : null,
      element("thead", {}, element("tr", {}, titles.map((title) => element("th", { scope: "col" }, title)))),
      element("tbody", {}, rows.map(([first, ...rest]) => element("tr", {}, element("th", { scope: "row" }, first), rest.map((text) => element("td", {}, text))))),
    ),
  );
}
