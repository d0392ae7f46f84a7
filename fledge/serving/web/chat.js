// The Chat page: a conversation with one model or two side by side, kept in this browser.

import { announce, element, fill, load, showBar, showError, takeKeyFromAddress } from "./common.js";
import { markWrong, sampling, showSettings, systemPrompt } from "./chat_settings.js";
import { drop, dropAll, keep, keptConversations, messagesFor, newAnswer, newConversation, titleOf } from "./chat_store.js";
import { streamAnswer } from "./chat_stream.js";
import { showTurn } from "./chat_turns.js";

const WIDE = "(min-width: 60rem)";
const NOBODY = "";
const ANSWER_SHARE = 4; // As in the terminal: one part in so many of the context is kept free for an answer.
const NEAR_THE_END_PIXELS = 120;

const at = (id) => document.getElementById(id);
let conversation = newConversation();
let contexts = {}; // How many tokens each model reads, by its name.
let stopping = null; // The AbortController of answers that are being drawn.

// ---- models

function showModels(models) {
  contexts = Object.fromEntries(models.map((model) => [model.id, model.max_model_len]));
  const names = Object.keys(contexts);
  const first = element("select", { id: "model" }, names.map((name) => element("option", { value: name }, name)));
  const others = [element("option", { value: NOBODY }, "no other"), ...names.map((name) => element("option", { value: name }, name))];
  const second = element("select", { id: "other" }, others);
  const field = (label, select, hidden) => element("div", { class: "field", hidden }, element("label", { for: select.id }, label), select);
  fill(at("models"), field("Model", first, false), field("Compare with", second, names.length < 2));
}

function chosenModels() {
  const chosen = [at("model").value, at("other").value].filter((name) => name !== NOBODY);
  return [...new Set(chosen)];
}

// ---- answers

/** Whether a question may be asked now; a setting that is out of its range is shown. */
function isReady() {
  if (stopping || at("send").disabled) return false;
  const wrong = markWrong();
  if (!wrong) return true;
  at("settings").open = true;
  wrong.focus();
  return false;
}

async function ask(question) {
  const turn = newTurn(question);
  conversation.turns.push(turn);
  keepConversation(); // a page that is left before the answer has come still has the question
  await answerLast(turn.answers);
}

function newTurn(question) {
  return { question, answers: chosenModels().map((model) => newAnswer(model, 0)) };
}

function keepConversation() {
  if (!keep(conversation)) showError(at("problem"), new Error("The browser has no room to keep this conversation."));
}

/** Draw these answers to the last question, all at once; `putBack`: brings back what they stand in place of, if none of them comes. */
async function answerLast(answers, putBack = null) {
  fill(at("problem"));
  showTurns();
  const views = shownTurns.at(-1).views.filter((view) => answers.includes(view.answer));
  stopping = new AbortController();
  showBusy(true);
  at("turns").scrollTop = at("turns").scrollHeight;
  await Promise.all(views.map((view) => draw(view, stopping.signal)));
  stopping = null;
  showBusy(false);
  if (putBack && answers.every((answer) => answer.error)) {
    putBack();
    showTurns();
    showError(at("problem"), new Error(answers[0].error));
  } else keepConversation();
  showList();
}

/** Draw one answer; what does not fit into the model's context is left out from the oldest turn on. */
async function draw(view, signal) {
  const { answer } = view;
  let turns = conversation.turns;
  view.begin();
  for (;;) {
    try {
      const messages = messagesFor(answer.model, turns, systemPrompt());
      const room = turns.length > 1 ? { least_room_tokens: Math.floor(contexts[answer.model] / ANSWER_SHARE) } : {};
      const settings = { ...room, ...sampling(answer.attempt) };
      const { finish, tokens } = await streamAnswer({ model: answer.model, messages, settings, signal, onText: (text) => grow(view, text) });
      answer.finish = finish === "length" && tokens >= contexts[answer.model] ? "context" : finish;
    } catch (error) {
      if (error.code === "context_length_exceeded" && error.param === "messages" && turns.length > 1) {
        if (turns === conversation.turns) view.note("The model's context is full: the oldest turns were left out.");
        turns = turns.slice(1);
        continue;
      }
      if (error.name === "AbortError") answer.finish = "stopped";
      else answer.error = error.message;
    }
    break;
  }
  view.end(true);
}

function grow(view, text) {
  const place = at("turns");
  const follows = place.scrollHeight - place.scrollTop - place.clientHeight < NEAR_THE_END_PIXELS;
  view.add(text);
  if (follows) place.scrollTop = place.scrollHeight;
}

function stop() {
  stopping?.abort();
}

function showBusy(busy) {
  at("send").hidden = busy;
  at("stop").hidden = !busy;
  document.body.classList.toggle("busy", busy);
  for (const control of at("main").querySelectorAll("aside button, .models select, .tools button")) control.disabled = busy;
}

// ---- what was said

let shownTurns = [];

const actions = {
  async edit(turn, question) {
    const place = conversation.turns.indexOf(turn);
    if (place < 0 || !isReady()) return;
    const former = conversation.turns;
    const changed = newTurn(question);
    conversation.turns = [...former.slice(0, place), changed];
    at("message").focus();
    await answerLast(changed.answers, () => {
      conversation.turns = former;
      at("message").value ||= question;
      fitHeight();
    });
  },
  async regenerate(turn, answer) {
    if (!isReady()) return;
    const another = newAnswer(answer.model, answer.attempt + 1);
    const place = turn.answers.indexOf(answer);
    turn.answers[place] = another;
    at("message").focus();
    await answerLast([another], () => (turn.answers[place] = answer));
  },
};

function showTurns() {
  shownTurns = conversation.turns.map((turn) => showTurn(turn, actions));
  const invitation = element("p", { class: "empty" }, "Ask the model something. It knows what it was trained on, and makes up the rest.");
  fill(at("turns"), shownTurns.length ? shownTurns.map(({ node }) => node) : invitation);
  at("turns").scrollTop = at("turns").scrollHeight;
}

function showList() {
  const kept = keptConversations();
  const lines = kept.map((one) => {
    const open = element("button", { type: "button", class: "plain open", "aria-current": one.id === conversation.id ? "true" : null, click: () => openConversation(one) }, titleOf(one));
    const remove = element("button", { type: "button", class: "plain small", "aria-label": `Delete: ${titleOf(one)}`, click: () => removeConversation(one) }, "×");
    return element("li", {}, open, remove);
  });
  fill(at("list"), lines.length ? lines : element("li", { class: "muted small" }, "None yet."));
  at("clear").hidden = !lines.length;
}

function openConversation(chosen) {
  conversation = structuredClone(chosen);
  fill(at("problem"));
  showTurns();
  showList();
  at("message").focus();
}

function removeConversation(chosen) {
  drop(chosen.id);
  announce("Deleted");
  if (chosen.id === conversation.id) openConversation(newConversation());
  else showList();
}

function askWhetherToDeleteAll() {
  const dialog = element(
    "dialog",
    { class: "card", "aria-labelledby": "delete-title" },
    element("h2", { id: "delete-title" }, "Delete all conversations?"),
    element("p", {}, "They are kept nowhere else."),
    element("form", { method: "dialog", class: "actions" }, element("button", { class: "danger", value: "delete" }, "Delete all"), element("button", { value: "cancel" }, "Cancel")),
  );
  dialog.addEventListener("close", () => {
    if (dialog.returnValue === "delete") {
      dropAll();
      openConversation(newConversation());
    }
    dialog.remove();
  });
  document.body.append(dialog);
  dialog.showModal();
}

// ---- the page

async function submit(event) {
  event.preventDefault();
  const question = at("message").value.trim();
  if (!question || !isReady()) return;
  at("message").value = "";
  fitHeight();
  await ask(question);
}

function fitHeight() {
  const input = at("message");
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
}

function onMessageKey(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("composer").requestSubmit();
}

function openSides() {
  for (const id of ["conversations", "settings"]) at(id).open = matchMedia(WIDE).matches;
}

async function begin() {
  takeKeyFromAddress();
  showSettings(at("fields"));
  openSides();
  showList();
  showTurns();
  at("composer").addEventListener("submit", submit);
  at("message").addEventListener("keydown", onMessageKey);
  at("message").addEventListener("input", fitHeight);
  at("stop").addEventListener("click", stop);
  at("new").addEventListener("click", () => openConversation(newConversation()));
  at("clear").addEventListener("click", askWhetherToDeleteAll);
  addEventListener("keydown", (event) => event.key === "Escape" && stop());
  at("message").focus();
  try {
    await showBar("chat");
    const listed = await load("/v1/models");
    showModels(listed.data);
    at("send").disabled = false;
  } catch (error) {
    showError(at("problem"), error);
  }
}

begin();
