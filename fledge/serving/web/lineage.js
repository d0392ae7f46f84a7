// What was made from what, as a drawing: each result in the column behind everything that it was made from.

import { drawing, element, fill } from "./common.js";

const WIDTH = 176;
const HEIGHT = 46;
const GAP_X = 56;
const GAP_Y = 16;

export function showLineage(place, { nodes, edges }) {
  if (nodes.length === 0) return fill(place);
  const placed = layOut(nodes, edges);
  const columns = Math.max(...placed.map((node) => node.column)) + 1;
  const rows = Math.max(...placed.map((node) => node.row)) + 1;
  const size = { width: columns * (WIDTH + GAP_X) - GAP_X + 4, height: rows * (HEIGHT + GAP_Y) - GAP_Y + 4 };
  const at = new Map(placed.map((node) => [node.place, node]));
  const picture = drawing(
    "svg",
    { viewBox: `-2 -2 ${size.width} ${size.height}`, width: size.width, height: size.height, role: "img", "aria-labelledby": "lineage-title" },
    drawing("title", { id: "lineage-title" }, "Lineage: what was made from what"),
    edges.map((edge) => arrow(at.get(edge.from), at.get(edge.to), edge.roles)),
    placed.map(box),
  );
  const made = nodes.filter((node) => edges.some((edge) => edge.to === node.place));
  const words = element(
    "details",
    {},
    element("summary", {}, "In words"),
    element("ul", {}, made.map((node) => element("li", {}, `${node.place} was made from ${edges.filter((edge) => edge.to === node.place).map((edge) => `${edge.from} (${edge.roles})`).join(", ")}`))),
  );
  return fill(place, element("h2", {}, "Lineage"), element("div", { class: "card" }, element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Drawing of the lineage" }, picture), words));
}

/** Columns by the longest way from what was made from nothing; rows in the order of columns, near to what they were made from. */
function layOut(nodes, edges) {
  const column = new Map(nodes.map((node) => [node.place, 0]));
  for (let round = 0; round < nodes.length; round += 1) {
    let moved = false;
    for (const { from, to } of edges) {
      if (column.get(to) <= column.get(from)) {
        column.set(to, column.get(from) + 1);
        moved = true;
      }
    }
    if (!moved) break;
  }
  const rows = new Map();
  const taken = [];
  const ordered = nodes.toSorted((one, other) => column.get(one.place) - column.get(other.place));
  for (const node of ordered) {
    const here = column.get(node.place);
    const sources = edges.filter((edge) => edge.to === node.place).map((edge) => rows.get(edge.from)).filter((row) => row !== undefined);
    const wanted = sources.length ? Math.round(sources.reduce((sum, row) => sum + row, 0) / sources.length) : 0;
    taken[here] ??= new Set();
    let row = wanted;
    while (taken[here].has(row)) row += 1;
    taken[here].add(row);
    rows.set(node.place, row);
  }
  return ordered.map((node) => ({ ...node, column: column.get(node.place), row: rows.get(node.place) }));
}

function corner(node) {
  return { x: node.column * (WIDTH + GAP_X), y: node.row * (HEIGHT + GAP_Y) };
}

function arrow(from, to, roles) {
  const [start, end] = [corner(from), corner(to)];
  const [x1, y1, x2, y2] = [start.x + WIDTH, start.y + HEIGHT / 2, end.x, end.y + HEIGHT / 2];
  const bend = Math.max(24, (x2 - x1) / 2);
  return drawing("path", { class: "edge", d: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}` }, drawing("title", {}, roles));
}

function box(node) {
  const { x, y } = corner(node);
  const kind = node.is_finished ? (node.is_own ? "own" : "other") : "begun";
  const note = node.is_finished ? `${node.kind} ${node.id.slice(0, 8)}` : `${node.kind}, not finished`;
  return drawing(
    "g",
    { class: `node ${kind}` },
    drawing("title", {}, `${node.place}: ${node.kind} ${node.id}`),
    drawing("rect", { x, y, width: WIDTH, height: HEIGHT, rx: 9 }),
    drawing("text", { x: x + 12, y: y + 20, class: "place" }, shortened(node.place)),
    drawing("text", { x: x + 12, y: y + 36, class: "kind" }, note),
  );
}

function shortened(text) {
  return text.length > 22 ? `${text.slice(0, 21)}\u2026` : text;
}
