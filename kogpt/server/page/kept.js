// What the browser keeps for the page. A browser can refuse its stores (by its settings, or in a frame): touching
// one throws then, and what was to be kept lasts as long as the page.

function store(name) {
  try {
    window[name].getItem("");
    return window[name];
  } catch {
    const kept = new Map();
    return { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value) };
  }
}

export const always = store("localStorage");
export const inTab = store("sessionStorage"); // gone with the tab
