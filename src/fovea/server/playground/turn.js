// How one question and its answer look: the question with its pictures, the answer as it grows, and under it the
// waterfall, the tools and, if it went wrong, the server's own words.

import { announce, button, copyText, h, seconds } from "./dom.js";
import { pictureCard } from "./grid.js";
import { Markdown } from "./markdown.js";
import { toCurl, toPython } from "./snippets.js";
import { waterfall } from "./waterfall.js";

const TITLES = {
  0: "No answer from the server",
  200: "The answer broke off",
  401: "This server asks for an API key",
  403: "The server does not allow this",
  413: "That is too large for this server",
  429: "Too many requests",
  503: "The server cannot take it just now",
  504: "It took too long",
};

/** `actions`: {retry, edit, openKey, hasKey}; what `turn` holds is described in conversation.js. */
export function turnView(turn, actions) {
  const body = h("div", { class: "text" });
  const markdown = new Markdown(body, (code) => [
    button("Copy code", "copy", () => copyText(code, "Code"), { quiet: true }),
  ]);
  const under = h("div", { class: "under" });
  const waiting = h("div", { class: "waiting", "aria-hidden": "true" }, h("i"), h("i"), h("i"));
  const answer = h("section", { class: "answer", "aria-label": "Answer" }, waiting, body, under);
  const node = h("article", { class: "turn" }, question(turn.question), answer);
  return {
    node,
    /** The text has grown. */
    grow() {
      waiting.hidden = turn.text !== "";
      markdown.update(turn.text);
    },
    /** The answer has started, ended or stopped being the last one. */
    settle({ isLast }) {
      node.dataset.state = turn.state;
      answer.setAttribute("aria-busy", String(turn.state === "running"));
      waiting.hidden = turn.state !== "running" || turn.text !== "";
      markdown.update(turn.text);
      const parts = turn.state === "running" ? [] : [...outcome(turn, isLast), tools(turn, isLast, actions)];
      under.replaceChildren(...parts.filter(Boolean));
      if (turn.error) under.prepend(errorBox(turn.error, isLast ? actions : null, turn));
    },
  };
}

function question({ text, pictures }) {
  return h(
    "section",
    { class: "question", "aria-label": "You" },
    pictures.length ? h("div", { class: "cards" }, pictures.map((picture) => pictureCard(picture))) : null,
    text ? h("p", {}, text) : null,
  );
}

function outcome(turn, isLast) {
  if (turn.state === "stopped") return [h("p", { class: "remark" }, `Stopped after ${seconds(turn.seconds)}.`)];
  const isCut = turn.finishReason === "length";
  return [
    isCut ? h("p", { class: "remark" }, "The answer was cut off: it reached the most tokens it may have.") : null,
    turn.state === "done" && turn.text === "" ? h("p", { class: "remark" }, "The model answered with nothing.") : null,
    turn.fovea?.timings ? waterfall(turn.fovea, turn.usage, { open: isLast }) : null,
  ];
}

function tools(turn, isLast, actions) {
  const copy = (kind) => copyRequest(turn.request, kind, actions.hasKey());
  const again = { "aria-label": "Answer again" };
  return h(
    "div",
    { class: "tools", role: "group", "aria-label": "This answer" },
    turn.text ? button("Copy", "copy", () => copyText(turn.text, "Answer")) : null,
    button("curl", "terminal", () => copy("curl"), { "aria-label": "Copy as curl" }),
    button("Python", "code", () => copy("python"), { "aria-label": "Copy as Python" }),
    isLast && !turn.error ? button("Again", "again", () => actions.retry(turn), again) : null,
    isLast ? button("Edit", "edit", () => actions.edit(turn), { "aria-label": "Edit the question" }) : null,
  );
}

export function copyRequest(request, kind, hasKey) {
  const text = kind === "curl" ? toCurl(request, location.origin, hasKey) : toPython(request, location.origin);
  return copyText(text, kind === "curl" ? "Shell command" : "Python program");
}

/** The server's message and code, and what can be done about it. */
export function errorBox(error, actions, turn) {
  const title = TITLES[error.status] ?? (error.status >= 500 ? "The server failed" : "The server refused this");
  const facts = [
    ["code", error.code],
    ["at", error.param],
    ["status", error.status > 200 ? error.status : null],
    ["request", error.requestId],
  ].filter(([, value]) => value);
  return h(
    "div",
    { class: "error", role: "alert" },
    h("strong", {}, title),
    h("p", {}, error.message),
    error.retryAfter ? h("p", {}, `It asks to wait ${error.retryAfter} s.`) : null,
    h("p", { class: "codes" }, facts.map(([name, value]) => h("span", {}, `${name} `, h("code", {}, String(value))))),
    actions &&
      h(
        "div",
        { class: "tools" },
        error.status === 401 ? button("Enter a key", "key", actions.openKey, { class: "primary" }) : null,
        button("Try again", "again", () => actions.retry(turn)),
      ),
  );
}

export function speakEnd(turn) {
  const words = { done: "Answer: ", stopped: "Stopped. ", failed: "Failed. " }[turn.state];
  announce(words + (turn.error?.message ?? turn.text).slice(0, 500), { shown: false });
}
