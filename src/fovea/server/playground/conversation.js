// The turns of a conversation, and running one of them. Every request holds the whole conversation: the server keeps
// none.
//
// A turn: question {text, pictures}; text, the answer so far; state "running" | "done" | "stopped" | "failed"; error;
// usage and fovea, the server's figures; request, what was sent, with pictures as Picture objects.

import { ServerError, streamChat } from "./api.js";
import { byId } from "./dom.js";
import { toBody } from "./snippets.js";
import { speakEnd, turnView } from "./turn.js";

const NEAR_END_PX = 120;

export class Conversation {
  /** `settings` samples; `model()` names the model; `onState` is told when an answer begins or ends. */
  constructor({ settings, model, onState, actions }) {
    Object.assign(this, { settings, model, onState });
    this.actions = { ...actions, retry: (turn) => this.#run(turn) };
    this.box = byId("turns");
    this.turns = [];
    this.stopper = null;
    this.#followEnd();
  }

  get isBusy() {
    return this.stopper !== null;
  }

  get last() {
    return this.turns.at(-1) ?? null;
  }

  /** The request that a question would make now; `instead` is the turn whose place it takes. */
  request(question, instead = null) {
    const before = instead ? this.turns.slice(0, this.turns.indexOf(instead)) : this.turns;
    const kept = before.filter((turn) => turn.text && turn.state !== "failed");
    const history = kept.flatMap((turn) => [userMessage(turn.question), { role: "assistant", content: turn.text }]);
    return {
      model: this.model(),
      messages: [...this.settings.systemMessages(), ...history, userMessage(question)],
      ...this.settings.sampling(),
    };
  }

  ask(question, instead = null) {
    if (instead) this.#drop(instead);
    const turn = { question, text: "", state: "running" };
    turn.view = turnView(turn, this.actions);
    this.last?.view.settle({ isLast: false });
    this.turns.push(turn);
    this.box.append(turn.view.node);
    return this.#run(turn);
  }

  stop() {
    this.stopper?.abort();
  }

  clear() {
    this.stop();
    for (const { preview } of this.turns.flatMap((turn) => turn.question.pictures)) {
      if (preview) URL.revokeObjectURL(preview);
    }
    this.turns = [];
    this.box.replaceChildren();
    this.onState();
  }

  #drop(turn) {
    for (const gone of this.turns.splice(this.turns.indexOf(turn))) gone.view.node.remove();
  }

  async #run(turn) {
    this.stop();
    if (turn.view.node.contains(document.activeElement)) byId("text").focus(); // its buttons are about to go
    const stopper = new AbortController();
    this.stopper = stopper;
    const began = performance.now();
    Object.assign(turn, { text: "", state: "running", error: null, fovea: null, usage: null, finishReason: null });
    turn.request = this.request(turn.question, turn);
    turn.view.settle({ isLast: true });
    this.onState();
    this.#toEnd();
    try {
      await this.#stream(turn, stopper.signal);
      turn.state = "done";
    } catch (error) {
      if (stopper.signal.aborted) turn.state = "stopped";
      else {
        turn.state = "failed";
        turn.error = error instanceof ServerError ? error : new ServerError("The page failed.", { code: error.name });
        if (!(error instanceof ServerError)) console.error(error);
        blame(turn.request, turn.error);
      }
    }
    turn.seconds = (performance.now() - began) / 1000;
    if (this.stopper === stopper) this.stopper = null;
    turn.view.settle({ isLast: turn === this.last });
    this.onState();
    speakEnd(turn);
  }

  async #stream(turn, signal) {
    const extras = { stream: true, stream_options: { include_usage: true }, fovea: { media: true } };
    let isDrawing = false;
    const draw = () => {
      isDrawing = false;
      turn.view.grow();
    };
    for await (const chunk of streamChat({ ...toBody(turn.request), ...extras }, signal)) {
      const choice = chunk.choices?.[0];
      if (choice?.delta?.content) turn.text += choice.delta.content;
      if (choice?.finish_reason) turn.finishReason = choice.finish_reason;
      if (chunk.usage) turn.usage = chunk.usage;
      if (chunk.fovea) {
        turn.fovea = chunk.fovea;
        report(turn.request, chunk.fovea.media);
      }
      if (!isDrawing) {
        isDrawing = true;
        requestAnimationFrame(draw);
      }
    }
  }

  /** Keeps the end in view while answer or composer grow, unless the reader has scrolled away from it. */
  #followEnd() {
    const page = document.scrollingElement;
    let isAtEnd = true;
    addEventListener("scroll", () => {
      isAtEnd = page.scrollHeight - page.scrollTop - page.clientHeight < NEAR_END_PX;
    });
    const watch = new ResizeObserver(() => this.turns.length && isAtEnd && this.#toEnd());
    watch.observe(this.box);
    watch.observe(byId("composer"));
  }

  #toEnd() {
    document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
  }
}

/** The pictures of a request in the order of the server's reports. */
export function picturesOf(request) {
  return request.messages.flatMap(({ content }) =>
    typeof content === "string" ? [] : content.filter((part) => part.type === "picture").map((part) => part.picture),
  );
}

/** Hands each picture what the server says about it. */
export function report(request, media = []) {
  for (const [index, picture] of picturesOf(request).entries()) {
    const [known, news] = [picture.report, media[index]];
    if (!news) continue;
    // A count knows sizes only; what an answer said about times stays as long as the picture is taken in the same way.
    const isSame = String(known?.used) === String(news.used) && known.tokens === news.tokens;
    picture.change({ report: isSame ? { ...known, ...news } : news, error: null });
  }
}

/** Marks the picture that an error is about; returns whether there is one. */
export function blame(request, error) {
  const place = /^messages\.(\d+)\.content\.(\d+)/.exec(error.param ?? "");
  const picture = place && request.messages[place[1]]?.content[place[2]]?.picture;
  picture?.change({ error });
  return Boolean(picture);
}

function userMessage({ text, pictures }) {
  if (!pictures.length) return { role: "user", content: text };
  const parts = pictures.map((picture) => ({ type: "picture", picture, detail: picture.detail }));
  return { role: "user", content: text ? [...parts, { type: "text", text }] : parts };
}
