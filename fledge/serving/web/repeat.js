// Looking again and again, while the page is to be seen and until it shows something else.

import { element } from "./common.js";

/** Call `look` now and every so many seconds until the signal; the first failure is raised, later ones are told in a line until it works again. */
export async function repeat(signal, seconds, look) {
  await look();
  let line = null;
  let isLooking = false;
  const timer = setInterval(async () => {
    if (document.hidden || isLooking) return;
    isLooking = true;
    try {
      await look();
      line?.remove();
      line = null;
    } catch (error) {
      if (signal.aborted) return;
      line ??= element("p", { class: "warning afloat", role: "status" });
      line.textContent = error.message;
      document.body.append(line);
    } finally {
      isLooking = false;
    }
  }, seconds * 1000);
  signal.addEventListener("abort", () => {
    clearInterval(timer);
    line?.remove();
  });
}
