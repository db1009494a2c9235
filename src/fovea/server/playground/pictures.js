// Pictures as the page holds them: bytes from a file, the clipboard or a video frame, or an address that only the
// server ever opens. What the server reports about a picture is kept with it, and whoever shows it is told.

// What the server reads. Anything else that the browser can show (SVG, AVIF, BMP) is drawn and sent as PNG.
const SENT_AS_IT_IS = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const MAX_DRAWN_PX = 2048;

export const DETAILS = ["auto", "low", "high"];

export class Picture extends EventTarget {
  /** `url` is what is sent; `preview` is a blob: address, or null for a picture of the web. */
  constructor({ name, url, preview = null, type = "", numBytes = 0, width = 0, height = 0, made = false }) {
    super();
    Object.assign(this, { name, url, preview, type, numBytes, width, height, made });
    this.detail = "auto";
    this.report = null; // as in the server's `fovea.media`
    this.error = null; // why the server does not take it
  }

  get isRemote() {
    return this.preview === null;
  }

  change(values) {
    Object.assign(this, values);
    this.dispatchEvent(new Event("change"));
  }

  /** The size it is shown in: the server's word for a picture the page never sees. */
  get shownSize() {
    if (this.width) return [this.width, this.height];
    return this.report?.original ?? [4, 3];
  }
}

/** Raises Error with words for the user if the browser cannot read the file as a picture. */
export async function pictureFromBlob(blob, name, { made = false } = {}) {
  let converted = made;
  if (!SENT_AS_IT_IS.includes(blob.type)) {
    blob = await drawn(blob, name);
    name = `${name.replace(/\.[^.]*$/, "")}.png`;
    converted = true;
  }
  const preview = URL.createObjectURL(blob);
  // A picture that the browser cannot show is sent all the same: the server says what is wrong with it.
  const { naturalWidth: width, naturalHeight: height } = await loadImage(preview).catch(() => ({}));
  const url = await readAsDataUrl(blob);
  return new Picture({ name, url, preview, type: blob.type, numBytes: blob.size, width, height, made: converted });
}

/** Raises Error with words for the user if it is not an http(s) address. */
export function pictureFromAddress(text) {
  const address = URL.canParse(text.trim()) ? new URL(text.trim()) : null;
  if (!address || !["http:", "https:"].includes(address.protocol)) {
    throw new Error("The address of a picture starts with http:// or https://.");
  }
  const name = decodeURIComponentSafely(address.pathname.split("/").pop()) || address.hostname;
  return new Picture({ name, url: address.href });
}

/** Pictures, videos and addresses in what was dropped or pasted. */
export function readTransfer(transfer) {
  const files = [...transfer.files];
  const videos = files.filter((file) => file.type.startsWith("video/"));
  const images = files.filter((file) => !file.type.startsWith("video/"));
  const list = files.length ? "" : transfer.getData("text/uri-list");
  const addresses = list.split(/\r?\n/).filter((line) => /^https?:/i.test(line));
  return { images, videos, addresses };
}

export function loadImage(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("not a picture"));
    image.src = url;
  });
}

export function toBlob(canvas, type, quality) {
  return new Promise((resolve, reject) => {
    const take = (blob) => (blob ? resolve(blob) : reject(new Error("The browser could not draw it.")));
    canvas.toBlob(take, type, quality);
  });
}

/** A canvas with the source drawn on it, not larger than `most` pixels on a side. */
export function drawOn(source, width, height, most) {
  const scale = Math.min(1, most / Math.max(width, height, 1));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

async function drawn(blob, name) {
  const url = URL.createObjectURL(blob);
  try {
    const image = await loadImage(url);
    return await toBlob(drawOn(image, image.naturalWidth, image.naturalHeight, MAX_DRAWN_PX), "image/png");
  } catch {
    throw new Error(`${name || "That"} is not a picture that this browser can read.`);
  } finally {
    URL.revokeObjectURL(url);
  }
}

function readAsDataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The file could not be read."));
    reader.readAsDataURL(blob);
  });
}

function decodeURIComponentSafely(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
