// The Runs page: which part of it is shown follows from what stands behind the # of the address.
//
//   #/                list of runs          #/run/NAME          one run
//   #/compare/A/B     runs side by side     #/start             a new run     #/started/NAME   one that was just started

import { element, fill, showBar, showError, takeKeyFromAddress } from "./common.js";
import { showComparison } from "./compare.js";
import { showRun } from "./run.js";
import { showList } from "./runs_list.js";
import { showStart } from "./start.js";
import { showBeginning } from "./started.js";

const VIEWS = { run: showRun, compare: showComparison, start: showStart, started: showBeginning };
let leave = () => {};

async function show() {
  leave();
  const main = document.getElementById("main");
  const [name, ...given] = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  const place = element("div");
  fill(main, place);
  const ended = new AbortController();
  leave = () => ended.abort();
  try {
    await (VIEWS[name] ?? showList)(place, given, ended.signal);
  } catch (error) {
    if (ended.signal.aborted) return;
    document.title = "Runs - Fledge";
    showError(place, error);
    place.append(element("p", {}, element("a", { href: "#/" }, "All runs")));
  }
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

takeKeyFromAddress();
showBar("runs").catch(() => {});
window.addEventListener("hashchange", () => {
  show();
  document.getElementById("main").focus();
});
show();
