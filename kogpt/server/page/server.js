// What the page asks of its server: the routes that any client of OpenAI's API uses.

export class Refused extends Error {}

const STORED = "kogpt-key"; // in sessionStorage: gone with the tab

export const hasKey = () => sessionStorage.getItem(STORED) !== null;
export const setKey = (key) => sessionStorage.setItem(STORED, key);

// As HTTP's Basic scheme, whose base64 carries any character; a Bearer value could hold ASCII alone.
function credentials() {
  const bytes = new TextEncoder().encode(`:${sessionStorage.getItem(STORED)}`);
  return `Basic ${btoa(String.fromCharCode(...bytes))}`;
}

// A response that is fine. `ask` gets a key from the user where the server wants one (true: try again).
// Throws Refused, TypeError where there is no server, AbortError when aborted.
export async function call(path, { body, signal, ask, say }) {
  for (;;) {
    const headers = { "Content-Type": "application/json" };
    if (hasKey()) headers.Authorization = credentials();
    const response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
    });
    if (response.ok) return response;
    if (response.status === 401 && (await ask(hasKey()))) continue;
    const answer = await response.json().catch(() => null);
    throw refusal(answer?.error ?? { message: `HTTP ${response.status}` }, say);
  }
}

// What people meet often is said in their language, the rest in the server's.
const TOLD = { no_index: "noIndex", queue_full: "busy" }; // code of the server -> text
const refusal = ({ code, message }, say) =>
  new Refused(code in TOLD ? say(TOLD[code]) : say("refused", { reason: message }));

// The JSON objects of a stream of server-sent events. A stream that ends without [DONE] has failed.
export async function* events(response, say) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
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
