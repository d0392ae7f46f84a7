// How answers are drawn, as a form: an empty field leaves it to the model, whose recipe says how.

import { element, fill } from "./common.js";
import { keepSettings, keptSettings } from "./chat_store.js";

const SEEDS_APART = 0x9e3779b97f4b; // Neighbouring seeds share no answer.
const NUMBERS = [
  { name: "temperature", label: "Temperature", least: 0, most: 2, step: "any", help: "0 always takes the likeliest token." },
  { name: "top_k", label: "Top-k", least: 0, most: 1000000, step: 1, help: "Draw from so many likeliest tokens; 0 from all." },
  { name: "top_p", label: "Top-p", least: 0.0001, most: 1, step: "any", help: "Draw from the likeliest that hold this probability." },
  { name: "min_p", label: "Min-p", least: 0, most: 1, step: "any", help: "Leave out what is less likely than this share of the likeliest." },
  { name: "max_tokens", label: "Most tokens", least: 1, most: 1000000, step: 1, help: "An answer is cut off after so many." },
  { name: "seed", label: "Seed", least: 0, most: Number.MAX_SAFE_INTEGER, step: 1, help: "Makes answers repeatable." },
];

/** Fill a place with the fields; what is typed is kept at once. */
export function showSettings(place) {
  const kept = keptSettings();
  const system = element("textarea", { id: "setting-system", rows: 3, input: keepAll });
  system.value = typeof kept.system === "string" ? kept.system : "";
  const fields = NUMBERS.map(({ name, label, least, most, step, help }) => {
    const id = `setting-${name}`;
    const input = element("input", { id, type: "number", min: least, max: most, step, placeholder: "the model's own", "aria-describedby": `${id}-help`, input: keepAll });
    input.value = kept[name] ?? "";
    return element("div", { class: "field" }, element("label", { for: id }, label), input, element("p", { class: "help", id: `${id}-help` }, help));
  });
  fill(place, element("div", { class: "field" }, element("label", { for: "setting-system" }, "System prompt"), system), fields);
}

function keepAll() {
  const typed = NUMBERS.map(({ name }) => [name, document.getElementById(`setting-${name}`).value]);
  keepSettings({ ...Object.fromEntries(typed.filter(([, value]) => value !== "")), system: systemPrompt() });
  markWrong();
}

export function systemPrompt() {
  return document.getElementById("setting-system").value;
}

/** The first field whose value is out of its range, or null; all such are marked. */
export function markWrong() {
  const inputs = NUMBERS.map(({ name }) => document.getElementById(`setting-${name}`));
  for (const input of inputs) input.setAttribute("aria-invalid", String(!input.checkValidity()));
  return inputs.find((input) => !input.checkValidity()) ?? null;
}

/** The numbers that are given, by the names that the server knows. `attempt`: the same question asked again is another draw. */
export function sampling(attempt) {
  const given = NUMBERS.map(({ name }) => [name, document.getElementById(`setting-${name}`).value]).filter(([, value]) => value !== "");
  return Object.fromEntries(given.map(([name, value]) => [name, name === "seed" ? seedOf(Number(value), attempt) : Number(value)]));
}

function seedOf(seed, attempt) {
  return (seed + attempt * SEEDS_APART) % Number.MAX_SAFE_INTEGER;
}
