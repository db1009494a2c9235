// The other modules that think without a browser: where a grid lies, when a stage ran, what a copied request says.

import assert from "node:assert/strict";
import { test } from "node:test";

const load = (name) => import(`${process.env.PLAYGROUND}/${name}`);
const { placement } = await load("grid.js");
const { stages } = await load("waterfall.js");
const { toBody, toCurl, toPython } = await load("snippets.js");
const { Picture, pictureFromAddress } = await load("pictures.js");
const { bytes, seconds } = await load("dom.js");

const whole = { x: 0, y: 0, width: 1, height: 1 };

test("a grid covers the whole picture when only rounding differs", () => {
  assert.deepEqual(placement({ original: [420, 300], used: [308, 224], tokens: 88, token_grid: [8, 11] }), whole);
  assert.deepEqual(placement({ original: [2000, 30], used: [1876, 28], tokens: 67, token_grid: [1, 67] }), whole);
});

test("a grid covers the middle when the model cuts it out", () => {
  const place = placement({ original: [600, 300], used: [336, 336], tokens: 576, token_grid: [24, 24] });
  assert.deepEqual(place, { x: 0.25, y: 0, width: 0.5, height: 1 });
});

test("a grid reaches beyond the picture when the model pads it", () => {
  const place = placement({ original: [640, 320], used: [672, 672], tokens: 757, token_grid: [24, 24] });
  assert.deepEqual(place, { x: 0, y: -0.5, width: 1, height: 2 });
});

const timings = {
  prompt_s: 0.001, media_s: 0.02, queue_s: 0.003, encode_s: 0.04, prefill_s: 0.05, decode_s: 0.2, ttft_s: 0.2, total_s: 0.4,
};
const media = [
  { fetch_s: 0.05, decode_s: 0.03, resize_s: 0.01 },
  { fetch_s: 0.08, decode_s: 0.03, resize_s: 0.01 },
];

test("stages follow one another, end at the first token, and decode comes after it", () => {
  const { rows, total } = stages({ media, timings });
  assert.equal(total, 0.4);
  assert.deepEqual(rows.map((row) => row.name), [
    "fetch", "prompt", "unpack", "resize", "queue", "encode", "prefill", "decode",
  ]);
  for (const [index, row] of rows.slice(1).entries()) {
    assert.ok(row.start >= rows[index].start + rows[index].length - 1e-9, row.name);
  }
  const [prefill, decode] = rows.slice(-2);
  assert.ok(Math.abs(prefill.start + prefill.length - 0.2) < 1e-9);
  assert.equal(decode.start, 0.2);
});

test("pictures are fetched at once, and share the time that preparing them took", () => {
  const { rows } = stages({ media, timings });
  const by = Object.fromEntries(rows.map((row) => [row.name, row.length]));
  assert.equal(by.fetch, 0.08);
  assert.ok(Math.abs(by.unpack + by.resize - 0.02) < 1e-9);
});

const picture = (name, more = {}) =>
  new Picture({ name, url: "data:image/png;base64,AAAA", preview: "blob:x", type: "image/png", ...more });
const ask = (...pictures) => ({
  model: "m",
  messages: [
    { role: "system", content: "Be `brief` $HOME" },
    {
      role: "user",
      content: [...pictures.map((p) => ({ type: "picture", picture: p, detail: "low" })), { type: "text", text: 'a "b"\\n\n$(c)' }],
    },
  ],
  temperature: 0,
});

test("a body has every picture where it stood", () => {
  const body = toBody(ask(picture("a.png"), pictureFromAddress("https://x.example/y.png")));
  assert.deepEqual(body.messages[1].content[0], {
    type: "image_url", image_url: { url: "data:image/png;base64,AAAA", detail: "low" },
  });
  assert.equal(body.messages[1].content[1].image_url.url, "https://x.example/y.png");
});

test("copied requests hold neither bytes nor keys", () => {
  const request = ask(picture("it's $(x).png"), pictureFromAddress("https://x.example/y.png"));
  const curl = toCurl(request, "http://h:1", true);
  assert.ok(!curl.includes("base64,AAAA"));
  assert.ok(curl.includes("$OPENAI_API_KEY"));
  assert.ok(curl.includes(`'it'\\''s $(x).png'`));
  assert.ok(curl.includes("https://x.example/y.png"));
  assert.ok(curl.includes("\\$(c)") && curl.includes("\\`brief\\`"));
  assert.ok(!toCurl(request, "http://h:1", false).includes("Authorization"));
  const python = toPython(request, "http://h:1");
  assert.ok(!python.includes("AAAA"));
  assert.ok(python.includes(`data_url("it's $(x).png", "image/png")`));
});

test("a request without pictures from files needs no file to be read", () => {
  assert.ok(!toPython(ask(), "http://h:1").includes("base64"));
  assert.ok(!toCurl(ask(), "http://h:1", false).includes("IMAGE"));
});

test("addresses are http or https", () => {
  for (const text of ["", "x.png", "file:///x", "javascript:x", "data:image/png;base64,AA"]) {
    assert.throws(() => pictureFromAddress(text), /http/);
  }
  assert.equal(pictureFromAddress(" https://x.example/a%20b.png?c=d ").name, "a b.png");
});

test("numbers are short", () => {
  assert.deepEqual([0, 0.0004, 0.0123, 0.9996, 1.234, 12.34].map(seconds), [
    "0 ms", "0.4 ms", "12 ms", "1.00 s", "1.23 s", "12.3 s",
  ]);
  assert.deepEqual([12, 3780, 1_234_567].map(bytes), ["12 B", "3.78 kB", "1.23 MB"]);
});
