// Conversations and settings, kept in this browser: plain data, and what of it a model is told.
//
//     conversation = { id, turns: [{ question, answers: [{ model, attempt, text, finish, error }] }] }

const CONVERSATIONS = "fledge.conversations";
const SETTINGS = "fledge.settings";
const KEPT = 50;
const TITLE_CHARACTERS = 60;

export function newConversation() {
  // Not randomUUID, which pages have on localhost and over https only.
  return { id: `${Date.now()}-${Math.random().toString(36).slice(2)}`, turns: [] };
}

export function newAnswer(model, attempt) {
  return { model, attempt, text: "", finish: "", error: "" };
}

export function titleOf(conversation) {
  const title = (conversation.turns[0]?.question ?? "").replace(/\s+/g, " ").trim();
  return title.length > TITLE_CHARACTERS ? `${title.slice(0, TITLE_CHARACTERS)}…` : title || "Nothing said yet";
}

/** All that were kept, the latest first; what is not of the form above is none. */
export function keptConversations() {
  const kept = read(CONVERSATIONS, []);
  return Array.isArray(kept) ? kept.filter((one) => typeof one?.id === "string" && isListOf(one.turns, isTurn)) : [];
}

function isTurn(turn) {
  return typeof turn?.question === "string" && isListOf(turn.answers, isAnswer);
}

function isAnswer(answer) {
  return ["model", "text", "finish", "error"].every((name) => typeof answer?.[name] === "string");
}

function isListOf(value, isOne) {
  return Array.isArray(value) && value.every(isOne);
}

/** Keep a conversation as the latest one. Whether the browser had room for it. */
export function keep(conversation) {
  if (!conversation.turns.length) return true;
  const others = keptConversations().filter((one) => one.id !== conversation.id);
  return write(CONVERSATIONS, [conversation, ...others].slice(0, KEPT));
}

export function drop(id) {
  write(CONVERSATIONS, keptConversations().filter((one) => one.id !== id));
}

export function dropAll() {
  localStorage.removeItem(CONVERSATIONS);
}

export function keptSettings() {
  const kept = read(SETTINGS, {});
  return kept && typeof kept === "object" ? kept : {};
}

export function keepSettings(settings) {
  write(SETTINGS, settings);
}

/** What a model is told before it answers the last turn: its own earlier answers, or another's where it was not asked. */
export function messagesFor(model, turns, system) {
  const opening = system.trim() ? [{ role: "system", content: system }] : [];
  const said = turns.flatMap((turn, place) => {
    const question = { role: "user", content: turn.question };
    if (place === turns.length - 1) return [question];
    const own = turn.answers.find((answer) => answer.model === model && answer.text) ?? turn.answers.find((answer) => answer.text);
    return own ? [question, { role: "assistant", content: own.text }] : [];
  });
  return [...opening, ...said];
}

function read(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false; // No room, or none allowed.
  }
}
