// A question and its answers as elements. What a model says is shown as the text it is: never markup, links or pictures.

import { announce, element, fill } from "./common.js";

const ENDS = {
  context: "Cut off: the model's context is full.",
  length: "Cut off: the most tokens were reached. Settings allow more.",
  stopped: "Stopped.",
};
const COPIED_MILLISECONDS = 1500;

/** A turn; `actions` has edit(turn, question) and regenerate(turn, answer). Returns { node, views }, a view for each answer. */
export function showTurn(turn, actions) {
  const question = element("div", { class: "question" });
  showQuestion(question, turn, actions);
  const views = turn.answers.map((answer) => new AnswerView(answer, () => actions.regenerate(turn, answer)));
  const answers = element("div", { class: "answers" }, views.map((view) => view.node));
  return { node: element("article", { class: "turn" }, question, answers), views };
}

function showQuestion(place, turn, actions) {
  const edit = element("button", { type: "button", class: "plain small", click: () => editQuestion(place, turn, actions) }, "Edit");
  const text = element("p", { class: "text", dir: "auto" }, turn.question);
  fill(place, element("h2", { class: "unseen" }, "You"), text, element("div", { class: "tools" }, edit));
  return edit;
}

function editQuestion(place, turn, actions) {
  const close = () => showQuestion(place, turn, actions).focus();
  const resend = (event) => {
    event?.preventDefault();
    if (input.value.trim()) actions.edit(turn, input.value.trim());
  };
  const onKey = (event) => {
    if (event.key === "Escape") close();
    else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) resend(event);
  };
  const rows = Math.min(10, turn.question.split("\n").length + 1);
  const input = element("textarea", { rows, "aria-label": "Your question", keydown: onKey });
  input.value = turn.question;
  const buttons = [element("button", { class: "primary" }, "Send again"), element("button", { type: "button", click: close }, "Cancel")];
  const warning = element("p", { class: "small muted" }, "What was said after it is forgotten.");
  fill(place, element("form", { submit: resend }, input, warning, element("div", { class: "actions" }, buttons)));
  input.focus();
}

/** One answer, which grows. */
export class AnswerView {
  constructor(answer, regenerate) {
    this.answer = answer;
    this._text = document.createTextNode(answer.text);
    this._body = element("div", { class: "text", dir: "auto" }, this._text);
    this._end = element("div", { class: "end small" });
    this._regenerate = element("button", { type: "button", class: "plain small regenerate", click: regenerate }, "Regenerate");
    this._copy = element("button", { type: "button", class: "plain small", click: () => this._copyText() }, "Copy");
    const tools = element("div", { class: "tools" }, this._copy, this._regenerate);
    this.node = element("section", { class: "answer card", "aria-label": `Answer of ${answer.model}` }, element("h2", {}, answer.model), this._body, this._end, tools);
    if (answer.finish || answer.error) this.showEnd();
  }

  begin() {
    this.node.setAttribute("aria-busy", "true");
    this.node.classList.add("growing");
  }

  add(text) {
    // A template may leave a space or a line end in front of an answer.
    const shown = this.answer.text ? text : text.trimStart();
    this.answer.text += shown;
    this._text.appendData(shown);
  }

  /** Say how it ended; `aloud` to a screen reader too. */
  end(aloud) {
    this.node.removeAttribute("aria-busy");
    this.node.classList.remove("growing");
    this.showEnd();
    if (aloud) announce(`${this.answer.model}: ${this.answer.error || this.answer.text || "no answer"}`);
  }

  showEnd() {
    const { finish, error, text } = this.answer;
    if (error) fill(this._end, element("p", { class: "error", role: "alert" }, error));
    else fill(this._end, element("p", { class: "muted" }, ENDS[finish] ?? (text ? "" : "The model ended without a word.")));
  }

  note(text) {
    this._end.before(element("p", { class: "muted small" }, text));
  }

  async _copyText() {
    let told = "Copied";
    try {
      await navigator.clipboard.writeText(this.answer.text);
    } catch {
      told = select(this._body) ? "Selected: press Ctrl+C" : "Cannot copy";
    }
    this._copy.textContent = told;
    announce(told);
    setTimeout(() => (this._copy.textContent = "Copy"), COPIED_MILLISECONDS);
  }
}

/** Where pages may not write to the clipboard, such as over plain http, the reader's own keys still can. */
function select(node) {
  const selection = getSelection();
  selection.selectAllChildren(node);
  return !selection.isCollapsed;
}
