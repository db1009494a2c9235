// Markdown of a model's answer, which is untrusted text. `parse` makes plain data out of it and knows no DOM;
// `Markdown` shows it with text nodes and a fixed set of elements, so HTML in an answer is just text. Links go to
// http(s) only, and pictures become links: nothing in an answer makes the browser ask for anything.

const MAX_DEPTH = 8;
const FENCE = /^ {0,3}(`{3,}(?!.*`)|~{3,})(.*)$/;
const HEADING = /^ {0,3}(#{1,6})(?: +(.*)|)$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:[ \t]+(.*)|)$/;
const QUOTE = /^ {0,3}> ?/;
const TABLE_LINE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const BLANK = /^[ \t]*$/;

/** Text to blocks: {type, ...} with `inlines` (see parseInline), `blocks`, `items`, `rows` or `text`. */
export function parse(text, depth = 0) {
  const lines = text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n");
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (BLANK.test(lines[at])) at += 1;
    else at = block(lines, at, depth, blocks);
  }
  return blocks;
}

function block(lines, at, depth, blocks) {
  const line = lines[at];
  let match = FENCE.exec(line);
  if (match) return fence(lines, at, match, blocks);
  if ((match = HEADING.exec(line))) {
    const words = (match[2] ?? "").trim().replace(/ #{1,20}$/, "");
    blocks.push({ type: "heading", level: match[1].length, inlines: parseInline(words) });
    return at + 1;
  }
  if (RULE.test(line)) {
    blocks.push({ type: "rule" });
    return at + 1;
  }
  if (depth < MAX_DEPTH && QUOTE.test(line)) return quote(lines, at, depth, blocks);
  if (depth < MAX_DEPTH && ITEM.test(line)) return list(lines, at, depth, blocks);
  if (line.includes("|") && at + 1 < lines.length && TABLE_LINE.test(lines[at + 1])) {
    const end = table(lines, at, blocks);
    if (end > at) return end;
  }
  return paragraph(lines, at, depth, blocks);
}

function fence(lines, at, [, mark, info], blocks) {
  const closing = new RegExp(`^ {0,3}${mark[0]}{${mark.length},} *$`);
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  const language = info.trim().split(" ")[0].slice(0, 30);
  blocks.push({ type: "code", language, text: lines.slice(at + 1, end).join("\n") });
  return end + 1;
}

function quote(lines, at, depth, blocks) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  blocks.push({ type: "quote", blocks: parse(inner.join("\n"), depth + 1) });
  return end;
}

function list(lines, at, depth, blocks) {
  const first = ITEM.exec(lines[at])[2];
  const ordered = first.length > 1;
  const items = [];
  while (at < lines.length) {
    const match = ITEM.exec(lines[at]);
    if (!match || match[2].length > 1 !== ordered || RULE.test(lines[at])) break;
    const inner = [match[3] ?? ""];
    const indent = match[1].length + 2;
    at += 1;
    while (at < lines.length) {
      const rest = lines[at];
      if (BLANK.test(rest)) {
        const after = lines.slice(at, at + 3).find((line) => !BLANK.test(line));
        if (!after || after.length - after.trimStart().length < indent) break;
        inner.push("");
      } else if (rest.length - rest.trimStart().length >= indent) {
        inner.push(rest.slice(Math.min(indent + match[2].length - 1, rest.length - rest.trimStart().length)));
      } else if (startsBlock(rest)) break;
      else inner.push(rest.trimStart());
      at += 1;
    }
    items.push(parse(inner.join("\n"), depth + 1));
    while (at < lines.length && BLANK.test(lines[at]) && ITEM.test(lines[at + 1] ?? "")) at += 1;
  }
  blocks.push({ type: "list", ordered, start: ordered ? Number.parseInt(first, 10) : 1, items });
  return at;
}

function table(lines, at, blocks) {
  const head = cells(lines[at]);
  const aligns = cells(lines[at + 1]).map((cell) => {
    if (/^:-+:$/.test(cell)) return "center";
    return cell.endsWith(":") ? "right" : "left";
  });
  if (head.length !== aligns.length) return at;
  const rows = [head];
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && !BLANK.test(lines[end])) {
    const row = cells(lines[end]);
    rows.push(head.map((_, column) => row[column] ?? ""));
    end += 1;
  }
  blocks.push({ type: "table", aligns, rows: rows.map((row) => row.map((cell) => parseInline(cell))) });
  return end;
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.replace(/\\\|/g, "|").trim());
}

function paragraph(lines, at, depth, blocks) {
  let end = at + 1;
  // Only a list that starts with 1 may interrupt a paragraph: "in\n2024. Then" is no list.
  const interrupts = (line) => depth < MAX_DEPTH && startsBlock(line) && !/^ *(?!1[.)])\d/.test(line);
  while (end < lines.length && !BLANK.test(lines[end]) && !interrupts(lines[end])) end += 1;
  blocks.push({ type: "paragraph", inlines: parseInline(lines.slice(at, end).join("\n").trim()) });
  return end;
}

const startsBlock = (line) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line));

// One token of running text. All repetition is bounded, so that no text takes long.
const ESCAPE = /\\([!-/:-@[-`{-~])/;
const CODE = /(`{1,20})([^`]|[^`][^]{0,2000}?[^`])\2(?!`)/; // \2 is the ticks: their group is the second of INLINE
const TARGET = /<?([^\s()<>]{0,2000}(?:\([^\s()<>]{0,500}\)[^\s()<>]{0,500})?)>?/;
const LINK = new RegExp(String.raw`(!?)\[([^[\]\n]{0,500})\]\(\s{0,9}${TARGET.source}(?:\s{1,9}"[^"\n]{0,500}")?\s{0,9}\)`);
const ADDRESS = /(https?:\/\/[^\s<>"`*\])}]{1,2000})/;
const MARK = /(\*{1,3}|_{1,3}|~~)/;
const NEWLINE = /( {2,9}\n|\n)/;
const INLINE = new RegExp([ESCAPE, CODE, LINK, ADDRESS, MARK, NEWLINE].map((part) => part.source).join("|"), "g");

/** Running text to a list of strings and {type: "code" | "link" | "strong" | "em" | "del" | "break"}. */
export function parseInline(text) {
  const root = { children: [] };
  const stack = [root]; // open emphasis, innermost last
  const add = (child) => stack.at(-1).children.push(child);
  let last = 0;
  for (const match of text.slice(0, 200_000).matchAll(INLINE)) {
    if (match.index > last) add(text.slice(last, match.index));
    last = match.index + match[0].length;
    const [all, escaped, ticks, code, bang, label, target, bare, mark, newline] = match;
    if (escaped) add(escaped);
    else if (ticks) add({ type: "code", text: code.replace(/\n/g, " ").replace(/^ (.+) $/, "$1") });
    else if (target !== undefined) add(link(target, label, bang === "!", all));
    else if (bare) last -= addBare(bare, add);
    else if (mark) emphasis(mark, text[match.index - 1], text[last], stack);
    else if (newline) add(newline.length > 1 ? { type: "break" } : "\n");
  }
  if (last < text.length) add(text.slice(last));
  while (stack.length > 1) unwind(stack);
  return joined(root.children);
}

function link(target, label, isPicture, source) {
  if (!safeLink(target)) return source;
  const words = label.replace(/[*`]+/g, "");
  const shown = isPicture ? `${words || "picture"} (picture, not loaded)` : words || target;
  return { type: "link", href: target, children: [shown] };
}

/** http and https only, whatever control characters or case an address is dressed up with. */
export function safeLink(target) {
  return /^https?:\/\/[^\s]+$/i.test(target) && URL.canParse(target);
}

/** A bare address without the punctuation that ends a sentence; returns how many characters were left over. */
function addBare(address, add) {
  const kept = address.replace(/[.,;:!?'_~]+$/, "");
  add(safeLink(kept) ? { type: "link", href: kept, children: [kept] } : kept);
  return address.length - kept.length;
}

const NAMES = { 1: ["em"], 2: ["strong"], 3: ["strong", "em"] };

function emphasis(mark, before = " ", after = " ", stack) {
  const opens = !/\s/.test(after);
  const closes = !/\s/.test(before);
  const inWord = mark[0] === "_" && /\w/.test(before) && /\w/.test(after);
  const open = stack.findLastIndex((entry) => entry.mark === mark);
  if (closes && !inWord && open > 0) {
    while (stack.length > open + 1) unwind(stack);
    const { children } = stack.pop();
    const types = mark === "~~" ? ["del"] : NAMES[mark.length];
    stack.at(-1).children.push(types.reduceRight((inner, type) => [{ type, children: inner }], joined(children))[0]);
  } else if (opens && !inWord && stack.length <= MAX_DEPTH) stack.push({ mark, children: [] });
  else stack.at(-1).children.push(mark);
}

/** The innermost open mark was never closed: it is text. */
function unwind(stack) {
  const { mark, children } = stack.pop();
  const outer = stack.at(-1);
  outer.children = outer.children.concat([mark], children);
}

/** Neighbouring strings as one. */
function joined(children) {
  const out = [];
  for (const child of children) {
    if (typeof child === "string" && typeof out.at(-1) === "string") out[out.length - 1] += child;
    else out.push(child);
  }
  return out;
}

/** Shows a growing text in `box`. Blocks that did not change keep their nodes, so a selection survives streaming. */
export class Markdown {
  constructor(box, codeTools = () => []) {
    this.box = box;
    this.codeTools = codeTools; // text of a code block -> nodes to put beside it
    this.shown = [];
  }

  update(text) {
    const blocks = parse(text);
    const keys = blocks.map((item) => JSON.stringify(item));
    let same = 0;
    while (same < keys.length && keys[same] === this.shown[same]) same += 1;
    while (this.box.children.length > same) this.box.lastElementChild.remove();
    this.box.append(...blocks.slice(same).map((item) => this.#block(item)));
    this.shown = keys;
  }

  #block(item) {
    switch (item.type) {
      case "heading":
        return this.#element(`h${Math.min(6, item.level + 2)}`, this.#inlines(item.inlines));
      case "rule":
        return document.createElement("hr");
      case "code":
        return this.#code(item);
      case "quote":
        return this.#element("blockquote", item.blocks.map((inner) => this.#block(inner)));
      case "list":
        return this.#list(item);
      case "table":
        return this.#table(item);
      default:
        return this.#element("p", this.#inlines(item.inlines));
    }
  }

  #element(tag, children) {
    const node = document.createElement(tag);
    node.append(...children);
    return node;
  }

  #code({ language, text }) {
    const pre = this.#element("pre", [this.#element("code", [text])]);
    pre.tabIndex = 0; // it scrolls sideways: the keyboard has to reach it
    const label = this.#element("span", [language || "text"]);
    const bar = this.#element("div", [label, ...this.codeTools(text)]);
    bar.className = "code-bar";
    const box = this.#element("div", [bar, pre]);
    box.className = "code";
    return box;
  }

  #list({ ordered, start, items }) {
    const node = document.createElement(ordered ? "ol" : "ul");
    if (ordered && start !== 1) node.start = start;
    for (const blocks of items) {
      const tight = blocks.length > 0 && blocks[0].type === "paragraph";
      const head = tight ? this.#inlines(blocks[0].inlines) : [];
      node.append(this.#element("li", [...head, ...blocks.slice(tight ? 1 : 0).map((inner) => this.#block(inner))]));
    }
    return node;
  }

  #table({ aligns, rows }) {
    const made = rows.map((row, index) =>
      this.#element(
        "tr",
        row.map((cell, column) => {
          const node = this.#element(index === 0 ? "th" : "td", this.#inlines(cell));
          node.className = `align-${aligns[column]}`;
          return node;
        }),
      ),
    );
    const head = this.#element("thead", made.slice(0, 1));
    const box = this.#element("div", [this.#element("table", [head, this.#element("tbody", made.slice(1))])]);
    box.className = "table";
    box.tabIndex = 0;
    return box;
  }

  #inlines(inlines) {
    return inlines.map((item) => {
      if (typeof item === "string") return document.createTextNode(item);
      if (item.type === "break") return document.createElement("br");
      if (item.type === "code") return this.#element("code", [item.text]);
      if (item.type !== "link") return this.#element(item.type, this.#inlines(item.children));
      const node = this.#element("a", item.children);
      node.href = item.href;
      node.title = item.href;
      node.target = "_blank";
      node.rel = "noopener noreferrer nofollow";
      node.referrerPolicy = "no-referrer";
      return node;
    });
  }
}
