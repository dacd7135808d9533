// What the page asks of its server: the routes that any client of OpenAI's API uses.

import { inTab } from "./kept.js";

class Refused extends Error {} // its message is for the reader

const STORED = "kogpt-key";

export const hasKey = () => inTab.getItem(STORED) !== null;
export const setKey = (key) => inTab.setItem(STORED, key);

// Why there is no answer. Anything but a refusal comes of an answer that is not as the page takes it.
export const reason = (error, say) => (error instanceof Refused ? error.message : say("unread"));

// The network fails with a TypeError, as reading a strange answer does: it is told where only the network can fail.
const failing = (text) => (error) => {
  throw error.name === "AbortError" ? error : new Refused(text);
};

// As HTTP's Basic scheme, whose base64 carries any character; a Bearer value could hold ASCII alone.
function credentials() {
  const bytes = new TextEncoder().encode(`:${inTab.getItem(STORED)}`);
  return `Basic ${btoa(String.fromCharCode(...bytes))}`;
}

// A response that is fine. `ask` gets a key from the user where the server wants one (true: try again).
// Throws Refused, also where there is no server; AbortError when aborted.
export async function call(path, { body, signal, ask, say }) {
  for (;;) {
    const headers = { "Content-Type": "application/json" };
    if (hasKey()) headers.Authorization = credentials();
    const response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
    }).catch(failing(say("unreachable")));
    if (response.ok) return response;
    if (response.status === 401 && (await ask(hasKey()))) continue;
    const answer = await response.json().catch(() => null);
    throw refusal(answer?.error ?? { message: `HTTP ${response.status}` }, say);
  }
}

// What people meet often is said in their language, the rest in the server's.
const TOLD = { no_index: "noIndex", queue_full: "queueFull" }; // code of the server -> text
const refusal = ({ code, message }, say) =>
  new Refused(code in TOLD ? say(TOLD[code]) : say("refused", { reason: message }));

// The JSON objects of a stream of server-sent events. A stream that ends without [DONE] has failed.
export async function* events(response, say) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(failing(say("cut")));
    if (done) throw new Refused(say("cut"));
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      const data = line.slice(6).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw refusal(event.error, say);
      yield event;
    }
  }
}
