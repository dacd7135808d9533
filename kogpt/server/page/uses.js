// The uses beside writing: classify, search, summarise, ask and filter. One form, whose fields each use picks.
// A text that comes back is shown as text: nothing in it becomes a part of the page.

import { reason } from "./server.js";

const byId = (id) => document.getElementById(id);
const value = (id) => byId(`use-${id}`).value.trim();
const parts = (text, separator) => text.split(separator).map((part) => part.trim()).filter(Boolean);
const percent = (share) => `${(100 * share).toFixed(1)}%`;

// What each use asks its route; undefined where a field is empty that it needs.
const BODIES = {
  classify: () => {
    const input = parts(value("text"), "\n");
    const labels = parts(value("labels"), ",");
    return input.length ? { input, labels: labels.length ? labels : undefined } : undefined;
  },
  search: () => (value("question") ? { query: value("question") } : undefined),
  summarize: () => (value("text") ? { input: value("text"), sentences: Number(value("sentences") || 3) } : undefined),
  ask: () => (value("question") ? { question: value("question"), input: value("text") || undefined } : undefined),
  filter: () => (value("text") ? { input: value("text") } : undefined),
};

// The answer of each route as entries of a list: {head, text, facts}.
const ENTRIES = {
  classify: ({ data }, { input }) =>
    data.map(({ label, probabilities }, index) => ({
      head: `${label} ${percent(probabilities[label])}`,
      text: input[index],
      facts: Object.entries(probabilities).map(([name, share]) => `${name} ${percent(share)}`),
    })),
  search: ({ data }) =>
    data.map(({ passage, source, position, score }) => ({
      text: passage,
      facts: [`${source}:${position}`, score.toFixed(2)],
    })),
  summarize: ({ title, sentences }) => [{ head: title }, ...sentences.map((text) => ({ text }))],
  ask: ({ evidence, answer, model }, _, say) => [
    ...evidence.map(({ sentence, source }) => ({ text: sentence, facts: source ? [source] : [] })),
    ...(answer === null ? [] : [{ head: say("saidBy", { model }), text: answer || say("saidNothing") }]),
  ],
  filter: ({ text, found, profanity }, _, say) => [
    { text, facts: [...found.map(({ kind }) => say(`kind_${kind}`)), say("profane", { share: percent(profanity) })] },
  ],
};

// ask(path, body, signal): the answer of a route as JSON. say(key, values): a text in the reader's language.
export class Uses {
  constructor({ ask, say }) {
    Object.assign(this, { ask, say, use: "write", sent: null, answer: null, sending: null });
    byId("uses").addEventListener("click", ({ target }) => target.dataset.use && this.choose(target.dataset.use));
    byId("use-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.sending) this.send();
    });
  }

  // Only the uses whose routes the server has; without a list it has all of them.
  offer(names) {
    const buttons = [...byId("uses").children];
    for (const button of buttons) {
      button.hidden = names !== undefined && !["write", ...names].includes(button.dataset.use);
      if (button.hidden && button.dataset.use === this.use) this.choose("write");
    }
    byId("uses").hidden = buttons.filter((button) => !button.hidden).length < 2;
  }

  choose(use) {
    this.sending?.abort(); // nobody waits for it
    this.setSending(null);
    this.use = use;
    this.answer = null;
    this.showMessage("");
    for (const button of byId("uses").children) {
      if (button.dataset.use === use) button.setAttribute("aria-current", "page");
      else button.removeAttribute("aria-current");
    }
    byId("use").hidden = use === "write";
    for (const part of document.querySelectorAll("[data-writing]")) part.hidden = use !== "write";
    for (const field of document.querySelectorAll("[data-for]")) {
      field.hidden = !field.dataset.for.split(" ").includes(use);
      for (const input of field.querySelectorAll("input, textarea")) input.disabled = field.hidden; // not checked
    }
    this.show();
  }

  // Everything that depends on the language, the use or the answer.
  show() {
    byId("uses").ariaLabel = this.say("uses");
    if (this.use === "write") return;
    byId("use-title").textContent = byId("use-go").textContent = this.say(`do_${this.use}`);
    byId("use-about").textContent = this.say(`about_${this.use}`);
    byId("use-text-name").textContent = this.say(this.use === "classify" ? "textsToLabel" : "text");
    const entries = this.answer ? ENTRIES[this.use](this.answer, this.sent, this.say) : [];
    byId("found").replaceChildren(...(entries.length || !this.answer ? entries : [{ text: this.say("foundNothing") }]).map(entry));
  }

  async send() {
    const { use } = this;
    const body = BODIES[use]();
    if (!body) return this.fail(this.say("useEmpty"));
    const sending = new AbortController();
    this.setSending(sending);
    this.showMessage("");
    try {
      const answer = await this.ask(`v1/${use}`, body, sending.signal);
      if (this.sending !== sending) return; // another use was chosen meanwhile
      Object.assign(this, { sent: body, answer });
      this.show();
    } catch (error) {
      if (this.sending === sending) this.fail(reason(error, this.say));
    } finally {
      if (this.sending === sending) this.setSending(null);
    }
  }

  // An earlier answer goes: below the message it would look like the answer.
  fail(text) {
    this.answer = null;
    this.show();
    this.showMessage(text);
  }

  setSending(sending) {
    this.sending = sending; // AbortController of the request in flight, or null
    byId("use-go").disabled = sending !== null;
    byId("found").ariaBusy = String(sending !== null);
  }

  showMessage(text) {
    byId("use-message").textContent = text;
    byId("use-message").hidden = !text;
  }
}

function entry({ head, text, facts }) {
  const item = document.createElement("li");
  for (const [name, shown] of [["head", head], ["text", text], ["facts", facts?.join(" · ")]]) {
    if (!shown) continue;
    const part = document.createElement("p");
    part.className = name;
    part.textContent = shown;
    item.append(part);
  }
  return item;
}
