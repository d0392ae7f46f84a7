// One answer of one model, piece by piece: a request with `stream: true`, and the server-sent events that come back.

import { RequestError, send } from "./common.js";

/**
 * Ask a model and call `onText` with each piece of its answer. Resolves to { finish, tokens }: the reason of the end, as OpenAI names them,
 * and how long prompt and answer are. Raises RequestError; an AbortError if `signal` ends it, which the server notices.
 */
export async function streamAnswer({ model, messages, settings, signal, onText }) {
  const body = { model, messages, stream: true, stream_options: { include_usage: true }, ...settings };
  const answer = await send("/v1/chat/completions", { method: "POST", signal, body });
  let finish = "";
  let tokens = 0;
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") return { finish, tokens };
    const event = JSON.parse(data);
    if (event.error) throw new RequestError(event.error.message ?? "The answer broke off.", answer.status, event.error);
    const choice = event.choices?.[0];
    if (choice?.delta?.content) onText(choice.delta.content);
    tokens = event.usage?.total_tokens ?? tokens;
    finish = choice?.finish_reason ?? finish;
  }
  throw new RequestError("The answer broke off: the server closed the connection.");
}

/** The data of each event; an event is one line here, for the data are JSON. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (held + value).split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ")) yield line.slice(6).trimEnd();
    }
  }
}
