// Charts drawn by plotly, which lies on the same server. It takes colours from the style sheet, and from us only numbers and plain names:
// plotly reads some tags in texts, so names are written without what would begin one.

import { drawing, element, fill } from "./common.js";

const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const shown = new Set();

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of shown) chart.draw();
});

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export function seriesColour(number) {
  return colour(`series-${number % DASHES.length}`);
}

function withoutTags(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** A line as it is drawn, for a legend. */
function sample(number) {
  const dash = { solid: "", dash: "7 4", dot: "2 3", dashdot: "8 3 2 3", longdash: "11 4", longdashdot: "11 3 2 3" }[DASHES[number % DASHES.length]];
  const line = drawing("line", { x1: 1, y1: 6, x2: 27, y2: 6, stroke: `var(--series-${number % DASHES.length})`, "stroke-width": 2.5, "stroke-dasharray": dash });
  return drawing("svg", { width: 28, height: 12, "aria-hidden": "true" }, line);
}

/**
 * One chart over steps. `lines`: {name, points: [[step, value], ...], faint (beside others)}; `bands`: {from, to, name} behind them.
 * `stacked`: shares that fill each other up; `fromZero`: with the axis down to 0; `si`: with k, M, G at it; `isNamed`: with the names of the bands. Lines may be replaced and drawn anew as often as wanted.
 */
export class Chart {
  constructor(title, { format = String, logarithmic = false, stacked = false, fromZero = false, si = false, isNamed = true } = {}) {
    this.options = { format, logarithmic, stacked, fromZero, si, isNamed };
    this.title = title;
    this.lines = [];
    this.bands = [];
    this.plot = element("div", { class: "plot", role: "img" });
    this.legend = element("ul", { class: "legend" });
    this.last = element("p", { class: "last muted small" });
    this.place = element("figure", { class: "card chart", hidden: true }, element("figcaption", {}, title), this.legend, this.plot, this.last);
    this.watcher = new ResizeObserver(() => this.isDrawn && Plotly.Plots.resize(this.plot));
  }

  show(lines, bands = []) {
    this.lines = lines.filter((line) => line.points.length > 0);
    this.bands = bands;
    shown.add(this);
    this.draw();
  }

  draw() {
    this.place.hidden = this.lines.length === 0;
    if (this.place.hidden || !this.place.isConnected) return;
    Plotly.react(this.plot, this.traces(), this.layout(), { displaylogo: false, displayModeBar: false, responsive: false });
    if (!this.isDrawn) this.watcher.observe(this.plot);
    this.isDrawn = true;
    this.describe();
  }

  remove() {
    this.watcher.disconnect();
    shown.delete(this);
    if (this.isDrawn) Plotly.purge(this.plot);
  }

  traces() {
    const isFaint = (line) => line.faint && this.lines.length > 1; // the only line is to be seen
    return this.lines.map((line, number) => ({
      x: line.points.map(([step]) => step),
      y: line.points.map(([, value]) => value),
      name: withoutTags(line.name),
      mode: line.points.length > 1 ? "lines" : "markers",
      line: { color: seriesColour(number), width: isFaint(line) ? 1 : 2, dash: DASHES[number % DASHES.length] },
      opacity: isFaint(line) ? 0.45 : 1,
      stackgroup: this.options.stacked ? "shares" : undefined,
      hovertemplate: "%{y}",
    }));
  }

  layout() {
    const { logarithmic, stacked, fromZero, si } = this.options;
    const axis = { gridcolor: colour("rule"), zerolinecolor: colour("rule"), linecolor: colour("control"), automargin: true, fixedrange: false };
    return {
      autosize: true,
      margin: { l: 48, r: 12, t: 8, b: 36 },
      showlegend: false,
      hovermode: "x unified",
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("rule"), font: { color: colour("ink") } },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("muted") },
      xaxis: { ...axis, title: { text: "step", standoff: 4 }, rangemode: "tozero" },
      yaxis: { ...axis, type: logarithmic ? "log" : "linear", rangemode: fromZero ? "tozero" : "normal", tickformat: stacked ? ".0%" : si ? "~s" : undefined, range: stacked ? [0, 1] : undefined },
      shapes: this.bands.map((band, number) => ({
        type: "rect", xref: "x", yref: "paper", x0: band.from, x1: band.to, y0: 0, y1: 1, layer: "below", line: { width: 0 },
        fillcolor: number % 2 ? colour("sunken") : colour("accent-soft"), opacity: 0.55,
      })),
      annotations: (this.options.isNamed ? this.bands : []).map((band) => ({
        xref: "x", yref: "paper", x: (band.from + band.to) / 2, y: 1, yanchor: "top", showarrow: false, text: withoutTags(band.name), font: { size: 11 },
      })),
    };
  }

  /** The same in words: a legend, and the last values. */
  describe() {
    fill(this.legend, this.lines.length > 1 ? this.lines.map((line, number) => element("li", {}, sample(number), line.name)) : []);
    const ends = this.lines.map((line) => {
      const [step, value] = line.points.at(-1);
      return `${this.lines.length > 1 ? `${line.name} ` : ""}${this.options.format(value)} at step ${step.toLocaleString("en")}`;
    });
    this.last.textContent = ends.join(", ");
    this.plot.setAttribute("aria-label", `${this.title}: ${ends.join(", ")}`);
  }
}
