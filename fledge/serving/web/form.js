// The values of a recipe as fields: grouped by section, found by a word, with what the config says of each.

import { element, fill } from "./common.js";

const SECTIONS = { corpus: "Text", tokenizer: "Tokenizer", pack: "Packing", model: "Model", pretrain: "Pretraining", sft: "Chat training (sft)", dpo: "Preferences (dpo)", evaluate: "Evaluation", generation: "Samples", question: "Question" };

export class FieldList {
  /** `onChange(isOther)`: a value was changed; `isOther`: so that other fields may have to be shown. */
  constructor(onChange) {
    this.onChange = onChange;
    this.changed = new Map();
    this.body = element("div");
    this.search = element("input", { id: "search", type: "search", placeholder: "such as learning_rate", input: () => this.filter() });
    this.place = element(
      "fieldset",
      { class: "fields" },
      element("legend", { class: "unseen" }, "Values"),
      element("div", { class: "head" }, element("h2", {}, "Values"), element("div", { class: "find" }, element("label", { for: "search" }, "Find a value"), this.search)),
      this.body,
    );
  }

  changes() {
    return Object.fromEntries(this.changed);
  }

  forget() {
    this.changed.clear();
  }

  /** Until there is something to show. */
  wait() {
    this.rows = [];
    fill(this.body, element("div", { class: "card empty", role: "status" }, "Reading the recipe ..."));
  }

  show(fields) {
    const open = new Set([...this.body.querySelectorAll("details[open]")].map((one) => one.dataset.section));
    const focused = document.activeElement?.id;
    const sections = Map.groupBy(fields, (field) => field.name.split(".")[0]);
    this.rows = fields.map((field) => new Field(field, this.changed.has(field.name), (value) => this.change(field, value)));
    const byName = new Map(this.rows.map((row) => [row.field.name, row]));
    fill(
      this.body,
      [...sections].map(([name, members]) =>
        element(
          "details",
          { class: "card section", "data-section": name, open: open.has(name) },
          element("summary", {}, element("strong", {}, SECTIONS[name] ?? name), ` ${members.length} ${members.length === 1 ? "value" : "values"}`),
          element("div", { class: "grid" }, members.map((field) => byName.get(field.name).place)),
        ),
      ),
    );
    this.filter();
    if (focused) document.getElementById(focused)?.focus();
  }

  /** What --smoke makes of the values. */
  tellShrunk(shrunk) {
    for (const row of this.rows ?? []) row.tellShrunk(shrunk[row.field.name]);
  }

  /** Beside the value that a message begins with, too; an empty one: all are right. */
  tellError(message) {
    for (const row of this.rows ?? []) row.tellError(message.startsWith(`${row.field.name} `) || message.startsWith(`${row.field.name}:`) ? message : "");
  }

  change(field, value) {
    const isKind = field.name.endsWith(".kind");
    if (isKind) {
      const prefix = field.name.slice(0, -"kind".length);
      for (const name of this.changed.keys()) if (name.startsWith(prefix)) this.changed.delete(name);
    }
    if (value === field.value && !this.changed.has(field.name)) return;
    this.changed.set(field.name, value);
    this.rows.find((row) => row.field === field).place.classList.add("changed");
    this.onChange(isKind);
  }

  filter() {
    const wanted = this.search.value.trim().toLowerCase();
    for (const row of this.rows ?? []) row.place.hidden = Boolean(wanted) && !`${row.field.name} ${row.field.help}`.toLowerCase().includes(wanted);
    for (const section of this.rows?.length ? this.body.children : []) {
      const some = [...section.querySelectorAll(".field")].some((one) => !one.hidden);
      section.hidden = !some;
      if (wanted) section.open = some;
    }
  }
}

class Field {
  constructor(field, isChanged, onChange) {
    this.field = field;
    const id = `field-${field.name}`;
    const [section, ...rest] = field.name.split(".");
    const label = rest.join(".") || section;
    const origin = isChanged ? "changed here" : field.origin === "default" ? "default" : `from ${field.origin.split("/").at(-1)}`;
    const help = element("p", { class: "help", id: `${id}-help` }, field.help, field.help ? " " : "", element("span", { class: "origin" }, `(${origin})`));
    this.shrunk = element("p", { class: "help shrunk", hidden: true });
    const given = { id, name: field.name, "aria-describedby": `${id}-help` };
    const input = control(field, given, onChange);
    this.input = input;
    this.wrong = element("p", { class: "help wrong", hidden: true });
    this.place = element(
      "div",
      { class: `field ${isChanged ? "changed" : ""}` },
      field.kind === "switch" && !field.optional ? element("label", { class: "check", for: id }, input, label) : [element("label", { for: id }, label), input],
      this.wrong,
      help,
      this.shrunk,
    );
  }

  tellError(message) {
    this.wrong.hidden = !message;
    this.wrong.textContent = message;
    if (message) this.input.setAttribute("aria-invalid", "true");
    else this.input.removeAttribute("aria-invalid");
  }

  tellShrunk(value) {
    this.shrunk.hidden = value === undefined || value === this.field.value;
    this.shrunk.textContent = this.shrunk.hidden ? "" : `--smoke makes it ${value}`;
  }
}

function control(field, given, onChange) {
  if (field.kind === "switch" && !field.optional) {
    return element("input", { ...given, type: "checkbox", checked: field.value === "true", change: (event) => onChange(String(event.target.checked)) });
  }
  const choices = field.kind === "switch" ? ["true", "false"] : field.choices;
  if (field.kind === "choice" || field.kind === "switch") {
    const options = [...(field.optional ? ["null"] : []), ...choices];
    const select = element("select", { ...given, change: (event) => onChange(event.target.value) }, options.map((value) => element("option", { value }, value === "null" ? "unset" : value)));
    select.value = field.value;
    return select;
  }
  const typed = (event) => onChange(event.target.value === "" && field.optional ? "null" : event.target.value);
  const value = field.optional && field.value === "null" ? "" : field.value;
  if (field.kind === "data" && value.length > 60) return element("textarea", { ...given, rows: 3, spellcheck: "false", input: typed }, value);
  const mode = { integer: "numeric", number: "decimal" }[field.kind] ?? "text";
  return element("input", { ...given, type: "text", inputmode: mode, value, placeholder: field.optional ? "unset" : null, autocomplete: "off", spellcheck: "false", input: typed });
}
