// Small helpers to build DOM nodes and to write numbers. Text is only ever set as text: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element: h("button", {class: "x", onclick: f, "aria-label": "…"}, "text", node, [nodes], null). */
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** One of the drawings in icons.svg. */
export function icon(name) {
  return svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: `/playground/icons.svg#${name}` }));
}

/** A button with an icon and a name that is shown, or only spoken if `quiet`. */
export function button(name, iconName, onclick, { quiet = false, ...props } = {}) {
  const words = quiet ? { "aria-label": name, title: name } : {};
  const all = { type: "button", class: "plain", onclick, ...words, ...props };
  return h("button", all, icon(iconName), quiet ? null : name);
}

export const byId = (id) => document.getElementById(id);

export const number = (value) => Number(value).toLocaleString("en-US");

export const size = ([width, height]) => `${number(width)} × ${number(height)}`;

export const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

export function seconds(value) {
  if (value >= 9.995) return `${value.toFixed(1)} s`;
  if (value >= 0.9995) return `${value.toFixed(2)} s`;
  const ms = value * 1000;
  return ms >= 9.95 || ms === 0 ? `${Math.round(ms)} ms` : `${ms.toFixed(1)} ms`;
}

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  return count < 999_500 ? `${(count / 1000).toPrecision(3)} kB` : `${(count / 1e6).toPrecision(3)} MB`;
}

/** A line that screen readers speak and that is shown for a moment. */
export function announce(text, { shown = true } = {}) {
  byId("spoken").textContent = text;
  if (!shown) return;
  const toast = byId("toast");
  toast.textContent = text;
  toast.classList.add("shown");
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => toast.classList.remove("shown"), 2600);
}

/** To the clipboard; also on plain http, where browsers offer only the old way. */
export async function copyText(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { class: "offscreen", "aria-hidden": "true" });
    const before = document.activeElement;
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before?.focus();
    if (!done) return announce("The browser did not allow copying");
  }
  announce(`${what} copied`);
}
