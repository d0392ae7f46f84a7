// A new run: a recipe, its values in a form made from the typed config, the plan, the command line that does the same, and the start.

import { announce, element, fill, load, showError } from "./common.js";
import { FieldList } from "./form.js";
import { showPlan } from "./plan.js";
import { address } from "./runs_list.js";

const WAIT_MILLISECONDS = 350;

export async function showStart(place, given, signal) {
  document.title = "New run - Fledge";
  const { recipes } = await load("/board/recipes", { signal });
  const view = new StartView(place, recipes, signal);
  await view.open();
}

class StartView {
  constructor(place, recipes, signal) {
    this.signal = signal;
    this.checks = 0;
    this.isChecked = this.isPlanning = this.isStarting = false;
    this.recipes = recipes;
    this.about = element("p", { class: "help" });
    this.recipe = element("select", { id: "recipe", change: () => this.open() }, [...Map.groupBy(recipes, (one) => one.origin)].map(([origin, members]) => element("optgroup", { label: origin }, members.map((one) => element("option", { value: one.name }, one.name)))));
    this.recipe.value = recipes.some((one) => one.name === "quickstart") ? "quickstart" : (recipes[0]?.name ?? "");
    this.name = element("input", { id: "name", autocomplete: "off", spellcheck: "false", input: () => this.checkSoon() });
    this.last = element("select", { id: "last", change: () => this.check() });
    this.smoke = element("input", { id: "smoke", type: "checkbox", change: () => this.check() });
    this.told = element("div", { "aria-live": "polite" });
    this.command = element("pre", { id: "command", tabindex: "0", "aria-label": "Command line" });
    this.planPlace = element("div");
    this.fields = new FieldList((isOther) => (isOther ? this.check(true) : this.checkSoon()));
    this.planButton = element("button", { type: "button", click: () => this.plan() }, "Show plan");
    this.startButton = element("button", { class: "primary" }, "Start");
    const field = (label, input, help) => element("div", { class: "field" }, element("label", { for: input.id }, label), input, help);
    const form = element(
      "form",
      { class: "start", novalidate: true },
      element(
        "div",
        { class: "card essentials" },
        field("Recipe", this.recipe, this.about),
        field("Name of the run", this.name, element("p", { class: "help" }, "Where its results lie in the folder of runs. A name that exists continues that run.")),
        field("Up to stage", this.last, element("p", { class: "help" }, "Later stages can be run afterwards under the same name.")),
        element("div", { class: "field" }, element("label", { class: "check", for: "smoke" }, this.smoke, "Shrink everything to about a minute (--smoke)")),
      ),
      this.fields.place,
      element(
        "div",
        { class: "card launch" },
        this.told,
        element("div", { class: "row" }, element("div", { class: "line" }, element("h2", {}, "The command line that does the same"), this.command), element("div", { class: "actions" }, this.planButton, this.startButton)),
      ),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.start();
    });
    fill(place, element("div", { class: "head" }, element("div", {}, element("p", { class: "small" }, element("a", { href: "#/" }, "Runs")), element("h1", {}, "New run"))), form, this.planPlace);
    signal.addEventListener("abort", () => clearTimeout(this.timer));
  }

  asked() {
    return { recipe: this.recipe.value, changes: this.fields.changes(), name: this.name.value.trim() || null, smoke: this.smoke.checked, last_stage: this.last.value || null };
  }

  /** The form of the chosen recipe, unchanged. */
  async open() {
    this.fields.forget();
    this.fields.wait();
    this.name.value = "";
    this.last.replaceChildren();
    this.about.textContent = this.recipes.find((one) => one.name === this.recipe.value)?.about ?? "";
    await this.check(true);
  }

  /** The values are others than those that were checked, and what was said of those is void. Gives the number of the next check. */
  change() {
    clearTimeout(this.timer);
    this.isChecked = false;
    this.planPlace.replaceChildren();
    this.allow();
    return ++this.checks;
  }

  checkSoon() {
    this.change();
    this.timer = setTimeout(() => this.check(), WAIT_MILLISECONDS);
  }

  /** Have the values checked; `anew`: other fields may have appeared. */
  async check(anew = false) {
    const number = this.change();
    this.isAnew ||= anew; // kept until an answer is shown, which a later question may have to do for this one
    try {
      const found = await load("/board/form", { method: "POST", body: this.asked(), signal: this.signal });
      if (number !== this.checks) return;
      if (this.isAnew) this.fields.show(found.fields);
      this.isAnew = false;
      this.fields.tellShrunk(found.shrunk);
      this.fields.tellError("");
      if (this.last.children.length === 0) fill(this.last, element("option", { value: "" }, "the last one"), found.stages.map((stage) => element("option", { value: stage }, stage)));
      this.name.placeholder = found.name;
      this.command.textContent = found.command;
      fill(this.told, found.exists ? element("p", { class: "note" }, `There is a run ${found.name}: what is finished of it is kept, what was made from other values is refused.`) : null);
      this.isChecked = true;
      this.allow();
    } catch (error) {
      if (this.signal.aborted || number !== this.checks) return;
      showError(this.told, error);
      this.fields.tellError(error.message);
      this.command.textContent = "";
    }
  }

  /** Only what has been checked is planned or started, and one thing at a time. */
  allow() {
    this.planButton.disabled = this.startButton.disabled = !this.isChecked || this.isPlanning || this.isStarting;
  }

  async plan() {
    const number = this.checks;
    this.isPlanning = true;
    this.allow();
    fill(this.planPlace, element("div", { class: "card", role: "status" }, "Measuring the speed of this machine ..."));
    try {
      const plan = await load("/board/plan", { method: "POST", body: this.asked(), signal: this.signal });
      if (number === this.checks) {
        showPlan(this.planPlace, plan);
        announce("The plan is there");
        this.planPlace.scrollIntoView({ block: "start" });
      }
    } catch (error) {
      if (!this.signal.aborted && number === this.checks) showError(this.planPlace, error);
    }
    this.isPlanning = false;
    this.allow();
  }

  async start() {
    this.isStarting = true;
    this.allow();
    try {
      const { run } = await load("/board/start", { method: "POST", body: { ...this.asked(), name: this.name.value.trim() || this.name.placeholder }, signal: this.signal });
      location.hash = address("started", run);
    } catch (error) {
      if (!this.signal.aborted) showError(this.told, error);
      this.isStarting = false;
      this.allow();
    }
  }
}
