// A strip of frames from a video on this computer. The browser plays it; only the frames chosen here are ever sent.

import { announce, button, byId, h, plural } from "./dom.js";
import { drawOn, pictureFromBlob, toBlob } from "./pictures.js";

const MAX_FRAME_PX = 1024;
const JPEG_QUALITY = 0.92;
const SEEK_TIMEOUT_MS = 8000;

/** Opens the dialog for a file; `onPictures` gets the frames as pictures. `room` is how many more can be taken. */
export async function openVideo(file, room, onPictures) {
  const dialog = byId("video");
  const video = h("video", { muted: true, playsinline: true, preload: "auto", controls: true });
  video.muted = true;
  const url = URL.createObjectURL(file);
  const note = h("p", { class: "where", role: "status" }, "Reading the video …");
  dialog.replaceChildren(
    h("header", {}, h("h2", {}, file.name), button("Close", "close", () => dialog.close(), { quiet: true })),
    h("div", { class: "viewer" }, video),
    note,
  );
  dialog.onclose = () => {
    video.removeAttribute("src");
    video.load();
    URL.revokeObjectURL(url);
  };
  dialog.showModal();
  video.src = url;
  try {
    await once(video, "loadeddata");
    if (!Number.isFinite(video.duration)) await findEnd(video);
  } catch {
    note.textContent = "This browser cannot play that video. Try MP4 (H.264) or WebM.";
    return;
  }
  note.textContent = "";
  const most = Math.max(1, room);
  const form = choices(video.duration, most);
  form.node.addEventListener("submit", async (event) => {
    event.preventDefault();
    form.add.disabled = true;
    try {
      const pictures = await grab(video, file.name, form.times(), (done, all) => {
        note.textContent = `Frame ${done} of ${all} …`;
      });
      onPictures(pictures);
      dialog.close();
      announce(`${plural(pictures.length, "frame")} added`);
    } catch {
      note.textContent = "The browser stopped giving frames of that video.";
      form.add.disabled = false;
    }
  });
  dialog.append(form.node);
  form.count.focus();
}

function choices(duration, most) {
  const clock = (value) => value.toFixed(2);
  const input = (name, value, min, max, step) =>
    h("input", { type: "number", name, value, min, max, step, required: true });
  const count = input("frames", Math.min(8, most), 1, most, 1);
  const from = input("from", "0", 0, clock(duration), "any");
  const to = input("to", clock(duration), 0, clock(duration), "any");
  const add = h("button", { type: "submit", class: "primary" }, "Add frames");
  const preview = h("p", { class: "times" });
  // The middle of each of `count` equal stretches: never the black first frame, never past the end.
  const times = () => {
    const [start, end] = [Number(from.value), Math.max(Number(from.value), Number(to.value))];
    const number = Math.min(most, Math.max(1, Math.round(Number(count.value))));
    return Array.from({ length: number }, (_, index) => start + ((index + 0.5) * (end - start)) / number);
  };
  const write = () => {
    preview.textContent = `At ${times().map(clock).join(", ")} s`;
  };
  const label = (text, field) => h("label", { class: "field" }, h("span", {}, text), field);
  const fields = [label(`Frames (at most ${most})`, count), label("From (s)", from), label("To (s)", to)];
  const node = h("form", { class: "frames", oninput: write }, h("div", { class: "row" }, fields), preview, add);
  write();
  return { node, count, add, times };
}

async function grab(video, name, times, onProgress) {
  const stem = name.replace(/\.[^.]*$/, "") || "video";
  const pictures = [];
  video.pause();
  for (const [index, time] of times.entries()) {
    onProgress(index + 1, times.length);
    if (Math.abs(video.currentTime - time) > 1e-4) {
      const sought = once(video, "seeked");
      video.currentTime = time;
      await sought;
    }
    const canvas = drawOn(video, video.videoWidth, video.videoHeight, MAX_FRAME_PX);
    const blob = await toBlob(canvas, "image/jpeg", JPEG_QUALITY);
    pictures.push(await pictureFromBlob(blob, `${stem}-${time.toFixed(2)}s.jpg`, { made: true }));
  }
  return pictures;
}

/** Recordings of browsers do not say how long they are; seeking far past the end makes the player find out. */
async function findEnd(video) {
  const known = once(video, "durationchange", () => Number.isFinite(video.duration));
  video.currentTime = 1e9;
  await known;
  const sought = once(video, "seeked");
  video.currentTime = 0;
  await sought;
}

function once(target, name, condition = () => true) {
  return new Promise((resolve, reject) => {
    const stop = new AbortController();
    const timer = setTimeout(() => finish(reject), SEEK_TIMEOUT_MS);
    const finish = (settle) => {
      clearTimeout(timer);
      stop.abort();
      settle(name);
    };
    target.addEventListener(name, () => condition() && finish(resolve), { signal: stop.signal });
    target.addEventListener("error", () => finish(reject), { signal: stop.signal });
  });
}
