// The page of `kogpt serve`: write text with the model, see how likely each token was, and go on from another.
// It speaks /v1/completions as any client does; nothing is fetched from outside.

import { EXAMPLES, TEXTS } from "./texts.js";

const TOP = 5; // likeliest tokens shown for each token
const byId = (id) => document.getElementById(id);
const form = byId("form");
const choices = byId("choices");

let language = localStorage.getItem("kogpt-language") ?? (navigator.language.startsWith("ko") ? "ko" : "en");
let running = null; // AbortController of the request in flight
let answers = []; // {card, promptIds, given, tokens, past, finish, started}

// --- language and theme

function say(key, values = {}) {
  return TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function showLanguage() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
  byId("language").textContent = language === "ko" ? "English" : "한국어";
  byId("language").lang = language === "ko" ? "en" : "ko";
  byId("examples").replaceChildren(...EXAMPLES.map(exampleButton));
  for (const answer of answers) showAnswer(answer);
}

function exampleButton(example) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = example.name[language];
  button.addEventListener("click", () => {
    byId("prompt").value = example.prompt;
    byId("length").value = example.length;
    byId("temperature").value = example.temperature ?? 0.8;
    byId("top-p").value = example.topP ?? 1;
    byId("prompt").focus();
  });
  return button;
}

byId("language").addEventListener("click", () => {
  language = language === "ko" ? "en" : "ko";
  localStorage.setItem("kogpt-language", language);
  showLanguage();
});

byId("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const shown = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  setTheme(shown === "dark" ? "light" : "dark");
});

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("kogpt-theme", theme);
}

// --- the server

class Refused extends Error {}

async function call(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const response = await fetch(path, {
    method: body ? "POST" : "GET",
    headers,
    body: body && JSON.stringify(body),
    signal,
  });
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    throw new Refused(answer?.error?.message ?? say("refused", { status: response.status }));
  }
  return response;
}

// The JSON objects of a stream of server-sent events. A stream that ends without [DONE] has failed.
async function* events(response) {
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
      if (event.error) throw new Refused(event.error.message);
      yield event;
    }
  }
}

async function listModels() {
  try {
    const { data } = await (await call("v1/models")).json();
    byId("model").replaceChildren(...data.map((model) => new Option(model.id, model.id)));
    byId("length").max = data[0]?.max_model_len ?? 2048;
  } catch (error) {
    showMessage(error.message);
  }
}

function number(id) {
  const value = byId(id).value;
  return value === "" ? undefined : Number(value);
}

function settings() {
  return {
    model: byId("model").value || undefined,
    temperature: number("temperature"),
    top_p: number("top-p"),
    repetition_penalty: number("penalty"),
    seed: number("seed"),
    stream: true,
    logprobs: TOP,
  };
}

// --- writing

async function write() {
  const prompt = byId("prompt").value;
  const n = number("texts") ?? 1;
  const limit = number("length") ?? 64;
  closeChoices();
  answers = Array.from({ length: n }, (_, index) => newAnswer(index, n, limit));
  byId("answers").replaceChildren(...answers.map((answer) => answer.card));
  byId("empty").hidden = true;
  await run(async (signal) => {
    const { tokens } = await (await call("tokenize", { model: byId("model").value || undefined, prompt }, signal)).json();
    for (const answer of answers) answer.promptIds = tokens;
    await stream({ ...settings(), prompt, n, max_tokens: limit }, answers, signal);
  }, answers);
}

// Go on from an alternative: the tokens before it stay, it takes the place of the one that was written.
async function branch(answer, place, alternative) {
  if (running) return;
  closeChoices();
  const old = answer.tokens[place];
  answer.past.push({ tokens: answer.tokens, finish: answer.finish });
  answer.tokens = [...answer.tokens.slice(0, place), { ...old, ...alternative }];
  const prompt = [...answer.promptIds, ...answer.tokens.map((token) => token.id)];
  const left = answer.limit - answer.tokens.length;
  answer.finish = left > 0 ? null : "length";
  if (left <= 0) return showAnswer(answer);
  await run((signal) => stream({ ...settings(), prompt, n: 1, max_tokens: left }, [answer], signal), [answer]);
}

async function run(work, shown) {
  running = new AbortController();
  showRunning(true);
  showMessage("");
  for (const answer of shown) answer.started = { time: performance.now(), tokens: answer.tokens.length };
  try {
    await work(running.signal);
  } catch (error) {
    const stopped = error.name === "AbortError";
    for (const answer of shown) answer.finish ??= stopped ? "stopped" : "failed";
    if (!stopped) showMessage(error instanceof Refused ? error.message : say("unreachable"));
  } finally {
    running = null;
    showRunning(false);
    shown.forEach(showAnswer);
    byId("status").textContent = say("finished");
  }
}

async function stream(request, shown, signal) {
  const response = await call("v1/completions", request, signal);
  for await (const event of events(response)) {
    for (const choice of event.choices) {
      const answer = shown[choice.index];
      answer.tokens.push(...(choice.logprobs?.content ?? []));
      answer.finish = choice.finish_reason ?? answer.finish;
      showAnswer(answer);
    }
  }
}

function newAnswer(index, n, limit) {
  const card = byId("answer").content.firstElementChild.cloneNode(true);
  const answer = { card, index, n, limit, promptIds: [], tokens: [], past: [], finish: null, started: null };
  card.querySelector(".undo").addEventListener("click", () => {
    if (running || !answer.past.length) return;
    Object.assign(answer, answer.past.pop());
    showAnswer(answer);
  });
  card.querySelector(".copy").addEventListener("click", () => {
    navigator.clipboard.writeText(textOf(answer));
    byId("status").textContent = say("copied");
  });
  for (const element of card.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
  showAnswer(answer);
  return answer;
}

// --- showing

// Runs of tokens whose bytes make whole characters: a Hangul syllable may span tokens. [{text, places}]
function groups(tokens) {
  const found = [];
  let bytes = [];
  let places = [];
  tokens.forEach((token, place) => {
    bytes.push(...token.bytes);
    places.push(place);
    const text = decoded(bytes);
    if (text === null) return;
    found.push({ text, places });
    bytes = [];
    places = [];
  });
  return found;
}

function decoded(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes));
  } catch {
    return null;
  }
}

function textOf(answer) {
  return groups(answer.tokens).map((group) => group.text).join("");
}

function showAnswer(answer) {
  const { card, tokens } = answer;
  card.querySelector("h3").textContent = answer.n > 1 ? say("answerNumber", { number: answer.index + 1 }) : say("answer");
  card.querySelector(".facts").textContent = facts(answer);
  card.querySelector(".undo").hidden = !answer.past.length;
  const spans = groups(tokens).map((group) => tokenSpan(answer, group));
  const shown = card.querySelector(".text");
  // Spans that did not change stay, so that a stream of n tokens costs n changes.
  while (shown.childElementCount > spans.length) shown.lastElementChild.remove();
  spans.forEach((span, i) => {
    const old = shown.children[i];
    if (!old) shown.append(span);
    else if (old.dataset.mark !== span.dataset.mark) old.replaceWith(span);
  });
}

function tokenSpan(answer, group) {
  const span = document.createElement("span");
  const likelihood = Math.exp(group.places.reduce((sum, place) => sum + answer.tokens[place].logprob, 0));
  span.className = "token";
  span.textContent = group.text;
  span.dataset.mark = `${group.places.join()}:${group.places.map((place) => answer.tokens[place].id).join()}`;
  span.tabIndex = 0;
  span.role = "button";
  span.ariaHasPopup = "dialog";
  span.ariaExpanded = "false";
  span.style.setProperty("--surprise", Math.round(60 * (1 - likelihood)));
  span.addEventListener("mouseenter", () => openChoices(answer, group, span, false));
  span.addEventListener("click", () => openChoices(answer, group, span, true));
  span.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    openChoices(answer, group, span, true);
  });
  return span;
}

function facts(answer) {
  const { tokens, started, finish } = answer;
  if (!started) return "";
  const seconds = (performance.now() - started.time) / 1000;
  if (!finish) answer.speed = (tokens.length - started.tokens) / Math.max(seconds, 1e-3);
  const parts = [say("tokens", { count: tokens.length })];
  if (answer.speed) parts.push(say("speed", { rate: answer.speed.toFixed(answer.speed < 10 ? 1 : 0) }));
  if (finish) parts.push(say(`finish_${finish}`));
  return parts.join(" · ");
}

function showRunning(on) {
  byId("write").disabled = on;
  byId("stop").disabled = !on;
  if (on) byId("status").textContent = say("writing");
}

function showMessage(text) {
  byId("message").textContent = text;
  byId("message").hidden = !text;
}

// --- what else could have stood there

function openChoices(answer, group, span, held) {
  if (choices.dataset.held === "yes" && !held) return;
  closeChoices();
  choices.replaceChildren(...group.places.flatMap((place) => choicesAt(answer, place)));
  choices.ariaLabel = say("choices");
  choices.dataset.held = held ? "yes" : "no";
  span.ariaExpanded = "true";
  choices.hidden = false;
  const box = span.getBoundingClientRect();
  const left = Math.min(box.left, document.documentElement.clientWidth - choices.offsetWidth - 8);
  choices.style.left = `${Math.max(8, left) + scrollX}px`;
  choices.style.top = `${box.bottom + scrollY + 4}px`;
  choices.origin = span;
  if (held) choices.querySelector("button")?.focus();
}

function choicesAt(answer, place) {
  const token = answer.tokens[place];
  const title = document.createElement("p");
  title.textContent = say("chosen", { token: visible(token), percent: percent(token.logprob) });
  const rest = token.top_logprobs.map((other) => {
    const button = document.createElement("button");
    button.type = "button";
    button.style.setProperty("--share", Math.exp(other.logprob));
    button.ariaCurrent = other.id === token.id ? "true" : "false";
    button.disabled = running !== null;
    for (const text of [visible(other), percent(other.logprob)]) {
      const part = document.createElement("span");
      part.textContent = text;
      button.append(part);
    }
    button.addEventListener("click", () => branch(answer, place, other));
    return button;
  });
  return [title, ...rest];
}

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share < 0.1 ? "< 0.1 %" : `${share.toFixed(1)} %`;
}

// A token so that its spaces can be seen; the bytes of a part of a character.
function visible(token) {
  const text = decoded(token.bytes);
  if (text === null) return token.bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
}

function closeChoices() {
  if (choices.hidden) return;
  choices.hidden = true;
  choices.dataset.held = "no";
  if (choices.origin) choices.origin.ariaExpanded = "false";
}

// --- events

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running && byId("prompt").value) write();
});

// Enter writes, Shift+Enter begins a line. While a syllable is being composed Enter only finishes it.
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  form.requestSubmit();
});

byId("stop").addEventListener("click", () => running?.abort());
byId("shade").addEventListener("change", (event) => document.body.classList.toggle("shaded", event.target.checked));
choices.addEventListener("mouseleave", () => choices.dataset.held !== "yes" && closeChoices());
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const origin = choices.hidden ? null : choices.origin;
  if (origin) origin.focus();
  else running?.abort();
  closeChoices();
});
document.addEventListener("pointerdown", (event) => {
  if (!choices.contains(event.target) && !event.target.classList.contains("token")) closeChoices();
});

const theme = localStorage.getItem("kogpt-theme");
if (theme) document.documentElement.dataset.theme = theme;
showLanguage();
listModels();
