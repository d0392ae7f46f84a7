// What is known of a run that was started from this board: its command line, its last lines, and the button that stops it.

import { announce, element, fill, load, RequestError, send, showError } from "./common.js";
import { repeat } from "./repeat.js";
import { address } from "./runs_list.js";

export async function showStarted(place, run, signal) {
  const output = element("pre", { class: "output", tabindex: "0", "aria-label": "Last lines" });
  const told = element("div");
  const stop = element("button", { class: "danger" }, "Stop");
  const command = element("pre");
  const box = element(
    "section",
    { class: "card", hidden: true },
    element("div", { class: "head" }, element("h2", {}, "Started from here"), stop),
    told,
    element("p", { class: "muted small" }, "The command line that does the same"),
    command,
    element("details", {}, element("summary", {}, "Last lines"), output),
  );
  fill(place, box);
  stop.addEventListener("click", async () => {
    stop.disabled = true;
    stop.textContent = "Stopping: it saves first";
    try {
      await send("/board/stop", { method: "POST", body: { run } });
      announce(`${run} was asked to stop`);
    } catch (error) {
      showError(told, error);
      stop.disabled = false;
      stop.textContent = "Stop";
    }
  });
  const look = async () => {
    const { started } = await load("/board/started", { signal });
    const found = started.find((one) => one.run === run);
    box.hidden = found === undefined;
    if (found === undefined) return;
    stop.hidden = found.exit_code !== null;
    command.textContent = found.command;
    output.textContent = found.lines.join("\n");
    if (found.exit_code !== null && found.exit_code !== 0) fill(told, element("p", { class: "warning" }, `It ended with exit code ${found.exit_code}.`));
  };
  try {
    await repeat(signal, 2, look);
  } catch (error) {
    // A board that cannot start runs has none that were started from it.
    if (error.status !== 404 && !signal.aborted) showError(place, error);
  }
}

/** A run that was started a moment ago and may have no folder yet, or never will: its last lines until there is a run to look at. */
export async function showBeginning(place, [name], signal) {
  document.title = `${name} - Fledge`;
  const lines = element("pre", { class: "output", tabindex: "0", "aria-label": "Last lines" }, "Starting ...");
  const told = element("div");
  const command = element("pre");
  fill(
    place,
    element("div", { class: "head" }, element("div", {}, element("p", { class: "small" }, element("a", { href: "#/" }, "Runs")), element("h1", {}, name))),
    told,
    element("section", { class: "card" }, command, lines),
  );
  await repeat(signal, 1, async () => {
    const [{ started }, { runs }] = await Promise.all([load("/board/started", { signal }), load("/board/runs", { signal })]);
    const found = started.find((one) => one.run === name);
    if (found === undefined) throw new RequestError("That run was not started from here.", 404);
    command.textContent = found.command;
    lines.textContent = found.lines.join("\n") || "Starting ...";
    const hasFailed = found.exit_code !== null && found.exit_code !== 0;
    if (hasFailed) fill(told, element("p", { class: "error", role: "alert" }, `It ended with exit code ${found.exit_code}.`));
    const isThere = runs.some((run) => run.name === name);
    if (isThere && !hasFailed) location.replace(address("run", name));
  });
}
