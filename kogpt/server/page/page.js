// The page of `kogpt serve`: write text with the model, see how likely each token was, and go on from another.
// It speaks /v1/completions as any client does; nothing is fetched from outside.

import { always } from "./kept.js";
import { call, events, hasKey, reason, setKey } from "./server.js";
import { TEXTS } from "./texts.js";
import { Uses } from "./uses.js";
import { append, branched, decoded, likelihood, newVersion, textOf, unnamed } from "./versions.js";

const TOP = 5; // likeliest tokens shown for each token
const REST = 120; // milliseconds that the pointer rests on a token before its candidates show
const LINGER = 200; // milliseconds in which it may travel from the token to them
const WIDE = matchMedia("(min-width: 36rem)"); // narrower, candidates are a sheet that a press opens: page.css
const GIVEN = 60; // characters of the prompt shown before a text
const byId = (id) => document.getElementById(id);
const form = byId("form");
const choices = byId("choices");

let language = always.getItem("kogpt-language") ?? (navigator.language.startsWith("ko") ? "ko" : "en");
let running = null; // AbortController of the request in flight
let examples = []; // {name_ko, name_en, prompt, max_tokens, temperature, top_p}
let answers = []; // {card, index, n, prompt, promptIds, versions, shown, drawn}
let namesTokens = true; // not under the server's filter, nor before vLLM: then only the text is shown

// --- language, theme, settings

function say(key, values = {}) {
  return TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function showLanguage() {
  document.documentElement.lang = language;
  showTexts(document);
  for (const element of document.querySelectorAll("[data-placeholder]")) {
    element.placeholder = say(element.dataset.placeholder);
  }
  byId("language").textContent = language === "ko" ? "English" : "한국어";
  byId("language").lang = language === "ko" ? "en" : "ko";
  byId("examples").replaceChildren(...examples.map(exampleButton));
  for (const answer of answers) {
    showTexts(answer.card);
    showAnswer(answer);
  }
  showSummary();
  uses.show();
}

function showTexts(root) {
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
}

function exampleButton(example) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = example[`name_${language}`];
  button.addEventListener("click", () => {
    byId("prompt").value = example.prompt;
    set("length", example.max_tokens);
    set("temperature", example.temperature);
    set("top-p", example.top_p);
    byId("prompt").focus();
  });
  return button;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  always.setItem("kogpt-theme", theme);
}

const sliderOf = (id) => document.querySelector(`[data-of="${id}"]`);
const texts = () => Number(document.querySelector("[name=texts]:checked").value);

function set(id, value) {
  byId(id).value = value;
  const slider = sliderOf(id);
  if (slider) {
    slider.value = value;
    slider.style.setProperty("--filled", (slider.value - slider.min) / (slider.max - slider.min));
  }
  showSummary();
}

function showSummary() {
  const values = { temperature: byId("temperature").value, length: byId("length").value, texts: texts() };
  byId("summary").textContent = say("summary", values);
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
    max_tokens: number("length"),
    seed: number("seed"),
    stream: true,
    logprobs: namesTokens ? TOP : undefined,
  };
}

// --- the server

const ask = (path, body, signal) => call(path, { body, signal, ask: askKey, say });

async function listExamples() {
  examples = await (await fetch("examples.json")).json();
  byId("examples").replaceChildren(...examples.map(exampleButton));
}

async function listModels() {
  try {
    const { data } = await (await ask("v1/models")).json();
    byId("model").replaceChildren(...data.map((model) => new Option(model.id, model.id)));
    byId("model").disabled = data.length < 2;
    byId("length").max = data[0]?.max_model_len ?? 2048;
    namesTokens = data[0]?.logprobs ?? true;
    uses.offer(data[0]?.uses);
    document.body.classList.toggle("covered", !namesTokens);
    if (!namesTokens) byId("empty").firstElementChild.dataset.text = "emptyCovered";
    showTexts(byId("empty"));
  } catch (error) {
    showMessage(reason(error, say));
  }
}

// Whether the user gave a key. `again`: there was one, and it did not fit.
function askKey(again) {
  const dialog = byId("key-dialog");
  byId("key-wrong").hidden = !again;
  byId("key").value = "";
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "given"), { once: true });
  });
}

// --- writing

async function write() {
  const prompt = byId("prompt").value;
  const n = texts();
  closeChoices();
  answers = Array.from({ length: n }, (_, index) => newAnswer(index, n, prompt));
  byId("answers").replaceChildren(...answers.map((answer) => answer.card));
  byId("answers").dataset.count = n;
  byId("empty").hidden = true;
  await run(answers, async (signal) => {
    const model = byId("model").value || undefined;
    const { tokens } = await (await ask("tokenize", { model, prompt }, signal)).json();
    for (const answer of answers) answer.promptIds = tokens;
    await stream({ ...settings(), prompt, n }, answers, signal);
  });
}

// Write on after the tokens of the version that is shown.
async function goOn(answer) {
  const version = shownOf(answer);
  version.finish = null;
  const ids = [...answer.promptIds, ...version.tokens.map((token) => token.id)];
  const prompt = namesTokens ? ids : answer.prompt + textOf(version);
  await run([answer], (signal) => stream({ ...settings(), prompt, n: 1 }, [answer], signal));
}

// Go on from an alternative: the tokens before it stay, and the version that is left can be called back.
async function branch(answer, place, alternative) {
  if (running) return;
  answer.versions.push(branched(shownOf(answer), place, { ...shownOf(answer).tokens[place], ...alternative }));
  answer.shown = answer.versions.length - 1;
  const written = goOn(answer);
  if (choices.contains(document.activeElement)) focusPlace(answer, place); // the candidate that has the focus goes
  closeChoices();
  await written;
}

async function run(shown, work) {
  running = new AbortController();
  showRunning(true);
  showMessage("");
  for (const answer of shown) {
    const version = shownOf(answer);
    Object.assign(version, { started: performance.now(), before: version.tokens.length, speed: 0 });
    showAnswer(answer);
  }
  try {
    await work(running.signal);
  } catch (error) {
    const stopped = error.name === "AbortError";
    for (const answer of shown) shownOf(answer).finish ??= stopped ? "stopped" : "failed";
    if (!stopped) showMessage(reason(error, say));
  } finally {
    running = null;
    showRunning(false);
    shown.forEach(showAnswer);
  }
}

async function stream(request, shown, signal) {
  const response = await ask("v1/completions", request, signal);
  for await (const event of events(response, say)) {
    for (const choice of event.choices) {
      const answer = shown[choice.index];
      const version = shownOf(answer);
      append(version, choice.logprobs ? choice.logprobs.content : unnamed(choice.text));
      version.finish = choice.finish_reason ?? version.finish;
      version.speed = (1000 * (version.tokens.length - version.before)) / (performance.now() - version.started);
      showAnswer(answer);
    }
  }
}

// --- the texts

const shownOf = (answer) => answer.versions[answer.shown];

function newAnswer(index, n, prompt) {
  const card = byId("answer").content.firstElementChild.cloneNode(true);
  const answer = { card, index, n, prompt, promptIds: [], versions: [newVersion()], shown: 0, drawn: null };
  const on = (selector, action) => card.querySelector(selector).addEventListener("click", action);
  on(".older", () => showVersion(answer, answer.shown - 1));
  on(".newer", () => showVersion(answer, answer.shown + 1));
  on(".more", () => running ?? goOn(answer));
  on(".copy", () => copy(answer));
  card.querySelector(".tokens").addEventListener("keydown", (event) => walk(event));
  card.querySelector(".given").textContent = tail(prompt);
  showTexts(card);
  return answer;
}

// The end of a prompt, for the eye to come from.
function tail(prompt) {
  const line = prompt.slice(prompt.lastIndexOf("\n") + 1);
  return line.length > GIVEN ? `…${line.slice(-GIVEN)}` : line;
}

function showVersion(answer, index) {
  if (running || !answer.versions[index]) return;
  closeChoices();
  answer.shown = index;
  showAnswer(answer);
}

async function copy(answer) {
  try {
    await navigator.clipboard.writeText(answer.prompt + textOf(shownOf(answer)));
    announce(say("copied"));
  } catch {
    showMessage(say("notCopied"));
  }
}

function showAnswer(answer) {
  const { card, n, index } = answer;
  const version = shownOf(answer);
  const title = n > 1 ? say("answerNumber", { number: index + 1 }) : say("answer");
  const part = (selector) => card.querySelector(selector);
  part("h3").textContent = title;
  part(".facts").textContent = facts(version);
  part(".versions").hidden = answer.versions.length < 2;
  part(".which").textContent = say("which", { shown: answer.shown + 1, count: answer.versions.length });
  part(".older").disabled = running !== null || answer.shown === 0;
  part(".newer").disabled = running !== null || answer.shown === answer.versions.length - 1;
  part(".more").disabled = running !== null || !version.tokens.length;
  part(".copy").disabled = !version.tokens.length;
  part(".caret").hidden = running === null || version.finish !== null;
  part(".tokens").ariaLabel = say("tokensOf", { title });
  drawTokens(answer, part(".tokens"));
}

// Tokens only ever join a version: what was drawn of it stays.
function drawTokens(answer, shown) {
  const version = shownOf(answer);
  if (answer.drawn !== version) shown.replaceChildren();
  answer.drawn = version;
  for (const group of version.groups.slice(shown.childElementCount)) {
    const span = namesTokens ? tokenSpan(answer, group) : document.createElement("span");
    if (!namesTokens) span.textContent = group.text;
    else span.tabIndex = shown.childElementCount ? -1 : 0; // one stop for Tab; the arrow keys walk on
    shown.append(span);
  }
}

function facts(version) {
  const parts = [];
  if (namesTokens && version.tokens.length) parts.push(say("tokens", { count: version.tokens.length }));
  if (namesTokens && version.speed) parts.push(say("speed", { rate: version.speed.toFixed(version.speed < 10 ? 1 : 0) }));
  if (version.finish) parts.push(ending(version.finish));
  return parts.join(" · ");
}

// A server behind this one may have reasons of its own: they are shown as they are.
const ending = (finish) => (`finish_${finish}` in TEXTS[language] ? say(`finish_${finish}`) : finish);

function tokenSpan(answer, group) {
  const version = shownOf(answer);
  const span = document.createElement("span");
  span.className = "token";
  span.textContent = group.text;
  span.role = "button";
  span.ariaHasPopup = "dialog";
  span.ariaExpanded = "false";
  span.classList.toggle("chosen", group.places.some((place) => version.chosen.includes(place)));
  span.style.setProperty("--surprise", surprise(likelihood(version, group)).toFixed(2));
  span.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && peek(answer, group, span));
  span.addEventListener("pointerleave", leave);
  span.addEventListener("focus", () => span.matches(":focus-visible") && peek(answer, group, span));
  span.addEventListener("click", () => openChoices(answer, group, span, true));
  return span;
}

// 0 for what was certain, 1 for one in ten thousand and rarer.
const surprise = (share) => Math.min(1, Math.max(0, -Math.log10(share) / 4));

// Arrow keys walk from token to token; Enter, Space or Down opens the candidates.
function walk(event) {
  const token = event.target.closest(".token");
  const all = [...event.currentTarget.children];
  const to = {
    ArrowLeft: token.previousElementSibling,
    ArrowRight: token.nextElementSibling,
    Home: all[0],
    End: all.at(-1),
  }[event.key];
  if (["Enter", " ", "ArrowDown"].includes(event.key)) token.click();
  else if (to === undefined) return;
  event.preventDefault();
  if (to) focusToken(to);
}

function focusToken(token) {
  for (const other of token.parentElement.children) other.tabIndex = -1;
  token.tabIndex = 0;
  token.focus();
}

// The token in a place, or the last one where it is a part of a character that is not whole yet.
function focusPlace(answer, place) {
  const drawn = answer.card.querySelector(".tokens").children;
  const index = shownOf(answer).groups.findIndex((group) => group.places.includes(place));
  const token = drawn[index < 0 ? drawn.length - 1 : index];
  if (token) focusToken(token);
}

function showRunning(on) {
  const focused = document.activeElement;
  byId("write").hidden = on;
  byId("stop").hidden = !on;
  if (focused === byId("write") || focused === byId("stop")) byId(on ? "stop" : "write").focus();
  byId("answers").ariaBusy = String(on);
  announce(say(on ? "writing" : "finished"));
}

function announce(text) {
  byId("status").textContent = text;
}

function showMessage(text) {
  byId("message").textContent = text;
  byId("message").hidden = !text;
}

// --- what else could have stood there

let timer = 0;

function unlessHeld(action, delay) {
  clearTimeout(timer);
  timer = setTimeout(() => choices.dataset.held !== "yes" && action(), delay);
}

const peek = (answer, group, span) => WIDE.matches && unlessHeld(() => openChoices(answer, group, span, false), REST);
const leave = () => unlessHeld(closeChoices, LINGER);

function openChoices(answer, group, span, held) {
  closeChoices();
  const note = document.createElement("p");
  note.className = "note";
  note.textContent = say(running ? "busy" : "pick");
  choices.replaceChildren(...group.places.map((place) => choicesAt(answer, place)), note);
  choices.ariaLabel = say("choices");
  choices.dataset.held = held ? "yes" : "no";
  choices.origin = span;
  span.ariaExpanded = "true";
  choices.hidden = false;
  if (WIDE.matches) settle(span);
  else span.scrollIntoView({ block: "center" });
  if (held) choices.querySelector("button:not(:disabled)")?.focus({ preventScroll: true });
}

// Below the token, or above it where there is no room.
function settle(span) {
  const box = span.getClientRects()[0];
  const width = document.documentElement.clientWidth;
  const left = Math.max(8, Math.min(box.left, width - choices.offsetWidth - 8));
  const below = box.bottom + 6 + choices.offsetHeight < innerHeight || box.top < choices.offsetHeight;
  choices.style.left = `${left + scrollX}px`;
  choices.style.top = `${(below ? box.bottom + 6 : box.top - 6 - choices.offsetHeight) + scrollY}px`;
}

// The likeliest tokens in a place, and the one that was written if it is none of them.
function choicesAt(answer, place) {
  const token = shownOf(answer).tokens[place];
  const known = token.top_logprobs.some((other) => other.id === token.id);
  const all = known ? token.top_logprobs : [...token.top_logprobs, token];
  const list = document.createElement("div");
  list.append(...all.map((other) => choice(answer, place, token, other)));
  return list;
}

function choice(answer, place, token, other) {
  const button = document.createElement("button");
  button.type = "button";
  button.style.setProperty("--share", Math.exp(other.logprob).toFixed(4));
  if (other.id === token.id) button.ariaCurrent = "true";
  button.disabled = running !== null;
  button.append(cell(visible(other), "glyph"), cell(percent(other.logprob), "share"));
  button.addEventListener("click", () => branch(answer, place, other));
  return button;
}

function cell(text, name) {
  const part = document.createElement("span");
  part.className = name;
  part.textContent = text;
  return part;
}

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share < 0.1 ? "< 0.1%" : `${share.toFixed(1)}%`;
}

// A token so that its spaces can be seen; the bytes of a part of a character.
function visible(token) {
  const text = decoded(token.bytes);
  if (text === null) return token.bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
}

function closeChoices() {
  clearTimeout(timer);
  if (choices.hidden) return;
  choices.hidden = true;
  choices.dataset.held = "no";
  choices.origin.ariaExpanded = "false";
}

// Up and Down walk from candidate to candidate.
choices.addEventListener("keydown", (event) => {
  const all = [...choices.querySelectorAll("button:not(:disabled)")];
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || !all.length) return;
  event.preventDefault();
  all.at((all.indexOf(document.activeElement) + step) % all.length).focus();
});

// --- the other uses

const uses = new Uses({
  say,
  ask: async (path, body, signal) =>
    (await ask(path, { model: byId("model").value || undefined, ...body }, signal)).json(),
});

// --- events

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return;
  if (byId("prompt").value) return write();
  showMessage(say("noPrompt"));
  byId("prompt").focus();
});

// Enter writes, Shift+Enter begins a line; on a touch keyboard, which has no Shift+Enter, the button writes.
// While a syllable is being composed Enter only finishes it.
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  if (matchMedia("(pointer: coarse)").matches) return;
  event.preventDefault();
  form.requestSubmit();
});

// Folded settings are opened: the browser sends nothing and can point only at a field that is seen.
form.addEventListener("invalid", () => (byId("settings").open = true), { capture: true });

form.addEventListener("input", (event) => {
  const { of } = event.target.dataset;
  if (of) set(of, event.target.value);
  else if (sliderOf(event.target.id)) set(event.target.id, event.target.value);
  else showSummary();
});

// Arrow keys step as the slider does: a field that takes any number would step by 1.
form.addEventListener("keydown", (event) => {
  const field = event.target;
  const way = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  if (field.step !== "any" || !way) return;
  event.preventDefault();
  const stepped = Number(field.value) + way * sliderOf(field.id).step;
  set(field.id, Math.min(field.max, Math.max(field.min, stepped.toFixed(2))));
});

byId("stop").addEventListener("click", () => running?.abort());

byId("language").addEventListener("click", () => {
  language = language === "ko" ? "en" : "ko";
  always.setItem("kogpt-language", language);
  closeChoices();
  showLanguage();
});

byId("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const shown = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  setTheme(shown === "dark" ? "light" : "dark");
});

byId("shade").addEventListener("change", showShade);

function showShade() {
  document.body.classList.toggle("shaded", byId("shade").checked);
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value);
  byId("change-key").hidden = false;
  byId("key-dialog").close("given");
});
byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
byId("change-key").addEventListener("click", async () => (await askKey(false)) && listModels());

choices.addEventListener("pointerenter", () => clearTimeout(timer));
choices.addEventListener("pointerleave", leave);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || byId("key-dialog").open) return;
  if (choices.hidden) running?.abort();
  else if (choices.contains(document.activeElement)) choices.origin.focus();
  closeChoices();
});
document.addEventListener("pointerdown", (event) => {
  if (!choices.contains(event.target) && !event.target.closest(".token")) closeChoices();
});

const theme = always.getItem("kogpt-theme");
if (theme) document.documentElement.dataset.theme = theme;
byId("settings").open = matchMedia("(min-width: 56rem)").matches;
byId("change-key").hidden = !hasKey();
for (const id of ["temperature", "length", "top-p", "penalty"]) set(id, byId(id).value);
showShade();
showLanguage();
listExamples();
listModels();
