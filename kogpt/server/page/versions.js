// A text as it grows token by token, and its other versions: every branch keeps the one that it left.
//
// A token is {id, bytes, logprob, top_logprobs}. A group is a run of tokens whose bytes make whole characters
// (a Hangul syllable may span tokens): {text, places}, where places are indices of tokens.

export function newVersion(tokens = [], chosen = []) {
  const version = { tokens: [], groups: [], bytes: [], places: [], chosen, finish: null, started: 0, speed: 0 };
  append(version, tokens);
  return version;
}

export function append(version, tokens) {
  for (const token of tokens) {
    version.places.push(version.tokens.length);
    version.tokens.push(token);
    version.bytes.push(...token.bytes);
    const text = decoded(version.bytes);
    if (text === null) continue;
    version.groups.push({ text, places: version.places });
    version.bytes = [];
    version.places = [];
  }
}

// A piece of text of which no token is named, as `append` takes it.
export const unnamed = (text) => (text ? [{ bytes: [...new TextEncoder().encode(text)] }] : []);

// A version that keeps the tokens before `place` and has another one there.
export function branched(version, place, token) {
  const kept = version.chosen.filter((earlier) => earlier < place);
  return newVersion([...version.tokens.slice(0, place), token], [...kept, place]);
}

export const textOf = (version) => version.groups.map((group) => group.text).join("");

export const likelihood = (version, group) =>
  Math.exp(group.places.reduce((sum, place) => sum + version.tokens[place].logprob, 0));

// The text of bytes; null where they end within a character. Bytes that no text has become U+FFFD.
export function decoded(bytes) {
  for (let cut = 0; cut <= Math.min(3, bytes.length); cut++) {
    const text = strictly(bytes.slice(0, bytes.length - cut));
    if (text === null) continue;
    if (cut === 0) return text;
    return beginsCharacter(bytes.slice(bytes.length - cut)) ? null : loosely(bytes);
  }
  return loosely(bytes);
}

function strictly(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes));
  } catch {
    return null;
  }
}

const loosely = (bytes) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(bytes));

function beginsCharacter([lead, ...rest]) {
  const length = lead >= 0xf0 && lead < 0xf5 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc2 ? 2 : 0;
  return lead < 0xf5 && rest.length + 1 < length && rest.every((byte) => byte >= 0x80 && byte < 0xc0);
}
