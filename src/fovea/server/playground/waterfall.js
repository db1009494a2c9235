// Where the time of an answer went: one bar for each stage, placed when it ran, in the server's own numbers.

import { h, number, plural, seconds } from "./dom.js";

const STAGES = ["fetch", "prompt", "unpack", "resize", "queue", "encode", "prefill", "decode"];
const NAMES = { unpack: "decode picture", decode: "decode tokens" };
const HINTS = {
  fetch: "downloading pictures, all at once",
  prompt: "chat template and tokeniser",
  unpack: "file formats to pixels",
  resize: "preprocessing to the size the model takes",
  queue: "waiting for a place in the batch",
  encode: "pictures through the vision tower",
  prefill: "the prompt through the decoder",
  decode: "from the first token to the last",
};

/** Stages as {name, start, length} in seconds, and the total.
 *
 * What is before the engine is laid out from the start, what is in the engine ends at the first token; a gap between
 * the two is time that no stage claims. Pictures are fetched at once, and decoded and resized in parallel: what they
 * share is `media_s`, which is split in proportion.
 */
export function stages({ media = [], timings }) {
  const sum = (key) => media.reduce((total, item) => total + (item[key] ?? 0), 0);
  const work = sum("decode_s") + sum("resize_s");
  const shared = work > 0 ? Math.min(1, timings.media_s / work) : 1;
  const lengths = {
    fetch: Math.max(0, ...media.map((item) => item.fetch_s ?? 0)),
    prompt: timings.prompt_s ?? 0,
    unpack: sum("decode_s") * shared,
    resize: sum("resize_s") * shared,
    queue: timings.queue_s ?? 0,
    encode: timings.encode_s ?? 0,
    prefill: timings.prefill_s ?? 0,
    decode: timings.decode_s ?? 0,
  };
  const total = Math.max(timings.total_s, timings.ttft_s + lengths.decode);
  const inEngine = lengths.queue + lengths.encode + lengths.prefill;
  let at = 0;
  const rows = STAGES.map((name) => {
    if (name === "queue") at = Math.max(at, timings.ttft_s - inEngine);
    if (name === "decode") at = timings.ttft_s;
    const start = Math.min(at, total);
    at += lengths[name];
    return { name, start, length: lengths[name] };
  });
  return { rows, total };
}

/** The waterfall as a <details>; its summary has the figures that matter most. */
export function waterfall(fovea, usage, { open }) {
  const { rows, total } = stages(fovea);
  const hasPictures = fovea.media?.length > 0;
  const isShown = { fetch: rows[0].length > 0, unpack: hasPictures, resize: hasPictures, encode: hasPictures };
  const shown = rows.filter(({ name }) => isShown[name] ?? true);
  const { at, first } = scale(fovea.timings.ttft_s, total);
  const bar = ({ name, start, length }) => {
    if (length <= 0) return null;
    const node = h("i", { class: `stage-${name}` });
    node.style.left = percent(at(start));
    node.style.width = percent(at(start + length) - at(start));
    return node;
  };
  const mark = h("b", { class: "first-token" });
  mark.style.left = percent(first);
  const tick = h("span", {}, `first token ${seconds(fovea.timings.ttft_s)}`);
  tick.style.left = percent(first);
  tick.className = first > 0.7 ? "before" : "";
  const strip = h("span", { class: "strip", "aria-hidden": "true" }, shown.map(bar));
  return h(
    "details",
    { class: "timing", open },
    h("summary", {}, strip, figures(fovea, usage, total)),
    h(
      "ol",
      { class: "waterfall", "aria-label": "Where the time went" },
      shown.map((row) =>
        h(
          "li",
          { title: HINTS[row.name], "data-stage": row.name, "data-seconds": row.length },
          h("span", { class: "stage" }, NAMES[row.name] ?? row.name),
          h("span", { class: "track", "aria-hidden": "true" }, mark.cloneNode(), bar(row)),
          h("span", { class: "time" }, seconds(row.length)),
        ),
      ),
      h(
        "li",
        { class: "axis", "aria-hidden": "true" },
        h("span"),
        h("span", { class: "ticks" }, tick),
        h("span", { class: "time" }, seconds(total)),
      ),
    ),
  );
}

const percent = (part) => `${(100 * part).toFixed(3)}%`;

/** Where a time is drawn, 0 to 1. Tokens usually take so long that all before them would be a sliver: the time up to
 * the first token then gets a third of the width, and the axis says where it ends. */
function scale(ttft, total) {
  const first = ttft < total ? Math.max(ttft / total, 1 / 3) : 1;
  const [before, after] = [Math.max(ttft, 1e-9), Math.max(total - ttft, 1e-9)];
  const at = (time) => (time <= ttft ? (first * time) / before : first + ((1 - first) * (time - ttft)) / after);
  return { at: (time) => Math.min(1, at(time)), first };
}

function figures({ timings, cached_tokens: cached = 0, media = [] }, usage, total) {
  const made = usage?.completion_tokens ?? 0;
  const hits = media.filter((item) => item.cache_hit).length;
  const words = [
    `first token ${seconds(timings.ttft_s)}`,
    `total ${seconds(total)}`,
    made > 1 && timings.decode_s > 0 ? `${number(Math.round((made - 1) / timings.decode_s))} tokens/s` : null,
    usage ? `${number(usage.prompt_tokens)} tokens in, ${number(made)} out` : null,
    cached ? `${number(cached)} of them cached` : null,
    hits ? `${plural(hits, "picture")} from the cache` : null,
  ];
  return h("span", { class: "figures" }, words.filter(Boolean).map((text) => h("span", {}, text)));
}
