// The side panel: how answers are sampled, the system message, the API key. What is set is remembered by the browser,
// except the key, which goes with the tab.

import { readKey, writeKey } from "./api.js";
import { byId, h } from "./dom.js";

const STORE = "fovea.settings";

// An empty field is left out of the request. Limits are hints: the server judges.
const FIELDS = [
  { name: "temperature", label: "Temperature", value: "0", min: 0, max: 2, step: 0.1, hint: "0: the likeliest token" },
  { name: "top_p", label: "Top p", value: "", min: 0.05, max: 1, step: 0.05, hint: "share to draw from" },
  { name: "max_tokens", label: "Max tokens", value: "512", min: 1, step: 1, hint: "longest answer" },
  { name: "seed", label: "Seed", value: "", step: 1, hint: "repeats a draw" },
];

export class Settings {
  constructor(onChange) {
    this.stored = read();
    this.system = byId("system");
    this.system.value = this.stored.system ?? "";
    this.stop = byId("stop-strings");
    this.stop.value = this.stored.stop ?? "";
    this.inputs = FIELDS.map((field) => this.#field(field));
    byId("sampling").prepend(...this.inputs.map((input) => input.closest("label")));
    byId("settings-form").addEventListener("input", (event) => {
      if (event.target.id === "key") return writeKey(event.target.value.trim());
      this.#store();
      if (event.target === this.system) onChange();
    });
    byId("settings-form").addEventListener("submit", (event) => event.preventDefault());
    byId("key").value = readKey();
    byId("key").addEventListener("change", onChange);
    byId("reset").addEventListener("click", () => this.#reset(onChange));
  }

  /** The sampling part of a request. */
  sampling() {
    const set = this.inputs.filter((input) => input.value !== "");
    const values = Object.fromEntries(set.map((input) => [input.name, Number(input.value)]));
    const stop = this.stop.value.split("\n").filter(Boolean);
    return stop.length ? { ...values, stop } : values;
  }

  systemMessages() {
    const text = this.system.value.trim();
    return text ? [{ role: "system", content: text }] : [];
  }

  #field({ name, label, value, hint, ...limits }) {
    const input = h("input", { type: "number", name, inputmode: "decimal", placeholder: "default", ...limits });
    input.value = this.stored[name] ?? value;
    h("label", { class: "field" }, h("span", {}, label), input, h("small", {}, hint));
    return input;
  }

  #store() {
    const values = Object.fromEntries(this.inputs.map((input) => [input.name, input.value]));
    try {
      localStorage.setItem(STORE, JSON.stringify({ ...values, system: this.system.value, stop: this.stop.value }));
    } catch {
      // Storage is full or closed: the settings then last as long as the page.
    }
  }

  #reset(onChange) {
    for (const [index, { value }] of FIELDS.entries()) this.inputs[index].value = value;
    this.system.value = "";
    this.stop.value = "";
    this.#store();
    onChange();
  }
}

function read() {
  try {
    return JSON.parse(localStorage.getItem(STORE)) ?? {};
  } catch {
    return {};
  }
}

/** Opens and closes the panel; where it covers the page, the focus goes in and comes back. */
export function panel() {
  const [aside, toggle] = [byId("settings"), byId("settings-toggle")];
  const isWide = matchMedia("(min-width: 1080px)");
  const show = (open, { focus = null } = {}) => {
    aside.hidden = !open;
    toggle.setAttribute("aria-expanded", String(open));
    if (focus) focus.focus();
  };
  show(isWide.matches);
  isWide.addEventListener("change", () => show(isWide.matches));
  toggle.addEventListener("click", () => {
    const open = aside.hidden;
    show(open, { focus: open && !isWide.matches ? byId("settings-close") : null });
  });
  byId("settings-close").addEventListener("click", () => show(false, { focus: toggle }));
  aside.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || isWide.matches) return;
    event.stopPropagation();
    show(false, { focus: toggle });
  });
  return { open: (focus) => show(true, { focus }) };
}
