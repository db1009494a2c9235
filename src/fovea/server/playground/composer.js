// Where a question is made: the text, the tray of pictures, and what both would cost, asked of the server while typing.

import { postJson } from "./api.js";
import { blame, picturesOf, report } from "./conversation.js";
import { announce, byId, h, number, plural } from "./dom.js";
import { pictureCard } from "./grid.js";
import { Picture, pictureFromAddress, pictureFromBlob, readTransfer } from "./pictures.js";
import { toBody } from "./snippets.js";
import { openVideo } from "./video.js";

const COUNT_AFTER_MS = 350;
const COUNT_AFTER_MS_PER_MB = 250; // large pictures are not sent again at every pause in typing

export class Composer {
  /** `makeRequest(question)` builds what would be sent; `limits()` gives max_images and max_model_len. */
  constructor({ makeRequest, limits, onSend, onStop, onEscape, onEditLast, isBusy }) {
    Object.assign(this, { makeRequest, limits, onSend, onStop, onEscape, onEditLast, isBusy });
    this.text = byId("text");
    this.tray = byId("tray");
    this.count = byId("count");
    this.pictures = [];
    this.names = new Set();
    this.numPasted = 0;
    this.#wireText();
    this.#wireSources();
    this.#wireDrop();
  }

  get question() {
    return { text: this.text.value.trim(), pictures: [...this.pictures] };
  }

  get isEmpty() {
    return this.text.value.trim() === "" && this.pictures.length === 0;
  }

  /** Shows a question to be edited, or an empty one. */
  load({ text = "", pictures = [] } = {}) {
    this.text.value = text;
    this.pictures = [...pictures];
    this.#drawTray();
    this.#grow();
    this.recount();
  }

  async addBlobs(blobs, { isPasted = false } = {}) {
    for (const blob of blobs) {
      if (!this.#hasRoom()) return;
      try {
        const name = isPasted ? `pasted-${(this.numPasted += 1)}.${blob.type.split("/")[1] ?? "png"}` : blob.name;
        this.add(await pictureFromBlob(blob, this.#unique(name), { made: isPasted }));
      } catch (error) {
        announce(error.message);
      }
    }
  }

  add(...pictures) {
    for (const picture of pictures) {
      if (!(picture instanceof Picture) || !this.#hasRoom()) continue;
      this.pictures.push(picture);
      this.tray.append(this.#card(picture));
    }
    this.tray.hidden = this.pictures.length === 0;
    this.recount();
  }

  /** Asks the server what the question would cost, a little after the last change. */
  recount() {
    clearTimeout(this.timer);
    this.counting?.abort();
    this.#state();
    if (this.isEmpty) {
      this.count.textContent = "";
      return;
    }
    const question = this.question;
    const sent = picturesOf(this.makeRequest(question)).reduce((total, picture) => total + picture.numBytes, 0);
    this.timer = setTimeout(() => this.#countNow(question), COUNT_AFTER_MS + (COUNT_AFTER_MS_PER_MB * sent) / 1e6);
  }

  /** The send button and the rest follow whether an answer is running. */
  #state() {
    const busy = this.isBusy();
    const send = byId("send");
    send.dataset.state = busy ? "stop" : "send";
    send.setAttribute("aria-label", busy ? "Stop the answer" : "Send");
    send.title = busy ? "Stop (Esc)" : "Send (Enter)";
    send.disabled = !busy && this.isEmpty;
  }

  refresh() {
    this.#state();
  }

  async #countNow(question) {
    const stopper = new AbortController();
    this.counting = stopper;
    const request = this.makeRequest(question);
    const { model, messages } = toBody(request);
    try {
      const counted = await postJson("/tokenize", { model, messages }, stopper.signal);
      report(request, counted.media);
      const most = counted.max_model_len ?? this.limits().max_model_len;
      const images = counted.image_tokens ? h("span", {}, `${number(counted.image_tokens)} in pictures`) : "";
      const all = most ? `${number(counted.count)} of ${number(most)} tokens` : plural(counted.count, "token");
      this.count.replaceChildren(h("span", {}, all), images);
      this.count.classList.toggle("over", Boolean(most) && counted.count >= most);
    } catch (error) {
      if (stopper.signal.aborted) return;
      const words = error.code ? `${error.message} (${error.code})` : error.message;
      this.count.textContent = blame(request, error) ? "A picture is refused" : words;
      this.count.classList.add("over");
    }
  }

  #wireText() {
    this.text.addEventListener("input", () => {
      this.#grow();
      this.recount();
    });
    this.text.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        if (this.isBusy()) announce("An answer is running. Esc stops it.");
        else this.#send();
      } else if (event.key === "ArrowUp" && this.isEmpty && !this.isBusy()) {
        event.preventDefault();
        this.onEditLast();
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
      if (!this.#closeAddress()) this.onEscape();
    });
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.isBusy()) this.onStop();
      else this.#send();
    });
  }

  #send() {
    if (this.isEmpty) return;
    const question = this.question;
    this.load();
    this.onSend(question);
    this.text.focus();
  }

  #wireSources() {
    const choose = (buttonId, inputId, take) => {
      byId(buttonId).addEventListener("click", () => byId(inputId).click());
      byId(inputId).addEventListener("change", (event) => {
        take([...event.target.files]);
        event.target.value = "";
      });
    };
    choose("add-file", "file-input", (files) => this.addBlobs(files));
    choose("add-video", "video-input", (files) => this.#video(files[0]));
    byId("add-url").addEventListener("click", () => {
      const form = byId("url-form");
      form.hidden = !form.hidden;
      byId("add-url").setAttribute("aria-expanded", String(!form.hidden));
      if (!form.hidden) byId("url").focus();
    });
    byId("url-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.#address(byId("url").value)) return;
      byId("url").value = "";
      this.#closeAddress();
    });
  }

  #closeAddress() {
    if (byId("url-form").hidden) return false;
    byId("url-form").hidden = true;
    byId("add-url").setAttribute("aria-expanded", "false");
    this.text.focus();
    return true;
  }

  #address(text) {
    try {
      const picture = pictureFromAddress(text);
      picture.name = this.#unique(picture.name);
      this.add(picture);
      return true;
    } catch (error) {
      announce(error.message);
      return false;
    }
  }

  #video(file) {
    const room = (this.limits().max_images ?? 16) - this.pictures.length;
    if (room < 1) this.#hasRoom();
    else openVideo(file, room, (pictures) => this.add(...pictures));
  }

  #wireDrop() {
    const take = (transfer, isPasted) => {
      const { images, videos, addresses } = readTransfer(transfer);
      this.addBlobs(images, { isPasted });
      if (videos.length) this.#video(videos[0]);
      if (!isPasted) addresses.forEach((address) => this.#address(address));
      return images.length + videos.length > 0;
    };
    document.addEventListener("paste", (event) => {
      if (take(event.clipboardData, true)) event.preventDefault();
    });
    const over = (event, isOver) => {
      if (!event.dataTransfer?.types.some((type) => type === "Files" || type === "text/uri-list")) return;
      event.preventDefault();
      byId("drop").hidden = !isOver;
    };
    document.addEventListener("dragover", (event) => over(event, true));
    document.addEventListener("dragleave", (event) => event.relatedTarget === null && over(event, false));
    document.addEventListener("drop", (event) => {
      over(event, false);
      take(event.dataTransfer, false);
      this.text.focus();
    });
  }

  #hasRoom() {
    const most = this.limits().max_images;
    const hasRoom = !most || this.pictures.length < most;
    if (!hasRoom) announce(`This server takes at most ${plural(most, "picture")} in a request.`);
    return hasRoom;
  }

  /** Two files of one name would be one file in a copied command. */
  #unique(name) {
    const [, stem, end] = /^(.*?)(\.[^.]*)?$/s.exec(name || "picture");
    let unique = name || "picture";
    for (let count = 2; this.names.has(unique); count += 1) unique = `${stem}-${count}${end ?? ""}`;
    this.names.add(unique);
    return unique;
  }

  #card(picture) {
    return pictureCard(picture, {
      onRemove: () => {
        this.pictures = this.pictures.filter((other) => other !== picture);
        this.#drawTray();
        this.recount();
        this.text.focus();
      },
      onDetail: () => this.recount(),
    });
  }

  #drawTray() {
    this.tray.replaceChildren(...this.pictures.map((picture) => this.#card(picture)));
    this.tray.hidden = this.pictures.length === 0;
  }

  #grow() {
    this.text.style.height = "auto";
    this.text.style.height = `${Math.min(this.text.scrollHeight, innerHeight * 0.4)}px`;
  }
}
