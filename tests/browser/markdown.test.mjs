// markdown.js without a browser: what becomes what, what stays text, and that no input takes long.

import assert from "node:assert/strict";
import { test } from "node:test";

const { parse, parseInline, safeLink } = await import(`${process.env.PLAYGROUND}/markdown.js`);

const types = (text) => parse(text).map((block) => block.type);
const flat = (item) => (typeof item === "string" ? item : (item.children ?? [item.text ?? ""]).map(flat).join(""));
const plain = (text) => parseInline(text).map(flat).join("");
const links = (text) => parseInline(text).filter((item) => item.type === "link").map((item) => item.href);

test("blocks are told apart", () => {
  assert.deepEqual(types("# a\n\ntext\n\n---\n\n> q\n\n- x\n\n1. y\n\n```py\nz\n```"), [
    "heading", "paragraph", "rule", "quote", "list", "list", "code",
  ]);
  assert.deepEqual(types("|a|b|\n|-|-|\n|1|2|"), ["table"]);
  assert.deepEqual(types(""), []);
});

test("emphasis nests, and marks that are not emphasis stay", () => {
  assert.deepEqual(parseInline("**a _b_** `c*d*`"), [
    { type: "strong", children: ["a ", { type: "em", children: ["b"] }] }, " ", { type: "code", text: "c*d*" },
  ]);
  for (const text of ["2 * 3 * 4", "snake_case_name", "**open", "a ** b", "*"]) assert.equal(plain(text), text);
  assert.deepEqual(parseInline("2 * 3 * 4"), ["2 * 3 * 4"]);
  assert.deepEqual(parseInline("snake_case_name"), ["snake_case_name"]);
  assert.equal(plain("\\*not\\* \\<b\\>"), "*not* <b>");
  assert.deepEqual(parseInline("**see http://x.y**").map((item) => item.type), ["strong"]);
});

test("lists nest and keep their numbers", () => {
  const [list] = parse("3. a\n   - b\n     more\n   - c\n4. d");
  assert.equal(list.start, 3);
  assert.equal(list.items.length, 2);
  assert.equal(list.items[0][1].items.length, 2);
  assert.deepEqual(types("in\n2024. Then"), ["paragraph"]);
});

test("a table's rows have as many cells as its head", () => {
  const [table] = parse("| a | b |\n|:-:|--:|\n| 1 | 2 \\| 3 | 4 |\n| x |");
  assert.deepEqual(table.aligns, ["center", "right"]);
  assert.deepEqual(table.rows, [[["a"], ["b"]], [["1"], ["2 | 3"]], [["x"], []]]);
});

test("code keeps every character, closed or not", () => {
  assert.deepEqual(parse("```js\n<b> & **x**\n\n# y\n```")[0], { type: "code", language: "js", text: "<b> & **x**\n\n# y" });
  assert.equal(parse("~~~\nopen\n```")[0].text, "open\n```");
});

test("links go to http and https only", () => {
  assert.deepEqual(links("[a](https://x.y/z_(1)) and http://b.c/d."), ["https://x.y/z_(1)", "http://b.c/d"]);
  const hostile = [
    "javascript:alert(1)", "JaVaScRiPt:alert(1)", "java\u0000script:alert(1)", "\u0001javascript:alert(1)", "data:text/html,x",
    "vbscript:x", "file:///etc/passwd", "blob:http://x/y", "//evil.example", "/metrics", "&#106;avascript:x", "http:", "https://",
    "http://[", "javascript://http://x/%0aalert(1)", " javascript:x", "ftp://x/y",
  ];
  for (const target of hostile) {
    assert.equal(safeLink(target), false, target);
    assert.deepEqual(links(`[click](${target})`).filter((href) => !/^https?:\/\//.test(href)), [], target);
  }
});

test("a picture becomes a link that says so", () => {
  assert.deepEqual(parseInline("![cat](https://e.example/c.png)"), [
    { type: "link", href: "https://e.example/c.png", children: ["cat (picture, not loaded)"] },
  ]);
  assert.deepEqual(parseInline("![x](data:image/png;base64,AA)"), ["![x](data:image/png;base64,AA)"]);
});

test("HTML is text", () => {
  const html = '<script>x</script> <img src=x onerror="y"> <a href="javascript:x">z</a> &lt;b&gt;';
  assert.deepEqual(parse(html), [{ type: "paragraph", inlines: [html] }]);
});

test("no text is lost", () => {
  for (const text of ["a [b](c", "![", "](", "``` a`", "x\n===", "a|b", "- ", "1.", "> ", "*_*_~~", "``a`"]) {
    const words = JSON.stringify(parse(text));
    for (const letter of text.match(/[a-z]/g) ?? []) assert.ok(words.includes(letter), text);
  }
});

test("every prefix of an answer can be shown", () => {
  const text = "# A\n\n1. b **c\n   - d** `e\n\n|f|g|\n|-|-|\n|[h](https://i.j)|k|\n\n```\nl\n```\n> m\n> - n";
  for (let end = 0; end <= text.length; end += 1) parse(text.slice(0, end));
});

test("hostile text is read in linear time", { timeout: 20_000 }, () => {
  const texts = [
    "`a ``b ".repeat(20_000), "*a **b ".repeat(20_000), "[".repeat(100_000), "![a](".repeat(20_000), ">".repeat(50_000),
    `${"#".repeat(50_000)}x`, `# ${" ".repeat(100_000)}x`, "- ".repeat(20_000), `${"|".repeat(50_000)}\n${"|-".repeat(25_000)}`,
    `${"```"}${"a".repeat(50_000)}\``, `${"* ".repeat(50_000)}x`, "https://".repeat(20_000), `- a\n${"\n".repeat(50_000)}x`,
    "_".repeat(100_000), "`".repeat(100_000), `a${" ".repeat(100_000)}b`, `[a](${" ".repeat(100_000)}x`,
    `[a](${" b".repeat(50_000)}`, `[a](x${" ".repeat(100_000)}"`, `https://${".".repeat(100_000)}x`, "|a".repeat(50_000),
    "~~a".repeat(30_000), "[a](http://a(".repeat(10_000), `${" ".repeat(100_000)}x`,
    Array.from({ length: 1500 }, (_, depth) => `${" ".repeat(depth)}- x`).join("\n"),
  ];
  for (const text of texts) {
    const began = performance.now();
    parse(text);
    assert.ok(performance.now() - began < 3000, text.slice(0, 20));
  }
});
