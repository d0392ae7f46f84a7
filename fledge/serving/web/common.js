// What every page shares: elements made without ever parsing markup, requests with the key, errors in words, the bar at the top.
//
// Texts of models, names of runs and messages come from anywhere, so the only way from a string into a page is `textContent`.

const KEY = "fledge.key";

/** One element. `attributes`: plain attributes; `class` too; functions become listeners of that event; false and null leave one out. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  setAttributes(made, attributes);
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** The same for a drawing. */
export function drawing(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  setAttributes(made, attributes);
  made.append(...children.flat(Infinity));
  return made;
}

function setAttributes(made, attributes) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(key, value);
    else made.setAttribute(key, value === true ? "" : String(value));
  }
}

/** Put these in place of everything an element holds. */
export function fill(place, ...children) {
  place.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
}

/** An error of the server or of the way to it, in words for a person. */
export class RequestError extends Error {
  constructor(message, status = 0, { remedy = "", code = "", param = "" } = {}) {
    super(message);
    this.status = status;
    this.remedy = remedy;
    this.code = code;
    this.param = param;
  }
}

/** A key that stands behind the # of the address moves into this tab's memory, and out of the address. */
export function takeKeyFromAddress() {
  const given = new URLSearchParams(location.hash.replace(/^#/, "")).get("key");
  if (!given) return;
  sessionStorage.setItem(KEY, given);
  history.replaceState(null, "", location.pathname + location.search);
}

/** `fetch` with the key; asks for one where it is missing, once for all requests that wait. Raises RequestError unless the answer is good. */
export async function send(path, { method = "GET", body = undefined, signal = undefined } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { Accept: "application/json, text/event-stream" };
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(path, { method, headers, signal, cache: "no-store", body: body === undefined ? undefined : JSON.stringify(body) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new RequestError("The server cannot be reached. Is it still running?");
    }
    if (answer.status === 401 && (await askForKey(key))) continue;
    if (!answer.ok) throw await errorOf(answer);
    return answer;
  }
}

/** The JSON that a path answers with. */
export async function load(path, options = {}) {
  return (await send(path, options)).json();
}

async function errorOf(answer) {
  let told = {};
  try {
    told = (await answer.json()).error ?? {};
  } catch {
    // Not every error is told in JSON, such as one of a proxy.
  }
  const wait = answer.headers.get("Retry-After");
  const later = wait ? ` Try again in ${wait} s.` : "";
  return new RequestError((told.message ?? `The server answered ${answer.status}.`) + later, answer.status, told);
}

let asking = null;
let isDeclined = false;

/** Ask for the key in a dialog, until that is cancelled once. `refused`: the key that was not taken. Whether there is now another one to try. */
function askForKey(refused) {
  if (sessionStorage.getItem(KEY) !== refused) return Promise.resolve(true);
  if (isDeclined) return Promise.resolve(false);
  asking ??= new Promise((resolve) => {
    const input = element("input", { id: "key", name: "key", type: "password", autocomplete: "off", required: true });
    const dialog = element(
      "dialog",
      { class: "card", "aria-labelledby": "key-title" },
      element(
        "form",
        { method: "dialog" },
        element("h2", { id: "key-title" }, "Key"),
        element("p", {}, refused ? "That key was not accepted." : "This server asks for a key. It is printed where the server was started."),
        element("label", { for: "key" }, "Key"),
        input,
        element("div", { class: "actions" }, element("button", { class: "primary", value: "use" }, "Use it"), element("button", { value: "cancel", formnovalidate: true }, "Cancel")),
      ),
    );
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "use" ? input.value.trim() : "";
      if (given) sessionStorage.setItem(KEY, given);
      isDeclined = !given;
      dialog.remove();
      asking = null;
      resolve(Boolean(given));
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}

/** Say in a place what went wrong, so that a screen reader hears it too. */
export function showError(place, error) {
  const remedy = error.remedy ? element("p", { class: "muted" }, error.remedy) : null;
  fill(place, element("div", { class: "error", role: "alert" }, element("p", {}, error.message || String(error)), remedy));
}

/** A word for those who cannot see that something changed. */
export function announce(text) {
  let region = document.getElementById("announcement");
  if (!region) {
    region = element("div", { id: "announcement", class: "unseen", role: "status", "aria-live": "polite" });
    document.body.append(region);
  }
  region.textContent = text;
}

const TITLES = { chat: "Chat", runs: "Runs" };

/** The bar at the top: which pages there are, and which one this is. */
export async function showBar(current) {
  const bar = document.getElementById("bar");
  const links = element("nav", { "aria-label": "Pages" });
  fill(bar, element("a", { class: "skip", href: "#main", click: skipToMain }, "To the content"), element("span", { class: "name" }, "Fledge"), links);
  const site = await load("/static/site.json");
  fill(links, site.pages.map((page) => element("a", { href: `/${page}`, "aria-current": page === current ? "page" : null }, TITLES[page])));
}

/** Without an entry in the address, which pages use for what they show. */
function skipToMain(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

// ---- numbers in words

const COUNTS = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];

export function formatCount(value) {
  const [size, unit] = COUNTS.find(([least]) => Math.abs(value) >= least) ?? [1, ""];
  return `${(value / size).toLocaleString("en", { maximumSignificantDigits: 3 })}${unit}`;
}

export function formatSeconds(value) {
  const seconds = Math.round(value);
  const minutes = Math.round(seconds / 60);
  const hours = Math.round(minutes / 60);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function formatBytes(value) {
  const [size, unit] = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([least]) => value >= least) ?? [1, "B"];
  return `${(value / size).toLocaleString("en", { maximumSignificantDigits: 3 })} ${unit}`;
}
