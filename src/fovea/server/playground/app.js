// Puts the page together: what the server is, how it feels, and the modules that do the work.

import { getJson, readKey } from "./api.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { announce, byId, number, plural } from "./dom.js";
import { mosaic } from "./hero.js";
import { panel, Settings } from "./settings.js";
import { copyRequest } from "./turn.js";

const HEALTH_EVERY_MS = 10_000;
const SAMPLE_QUESTION = "How many shapes are there?";

const models = new Map();
const settings = new Settings(() => refresh());
const side = panel();
let edited = null; // the turn whose question is in the composer

const conversation = new Conversation({
  settings,
  model: () => byId("model").value,
  onState: () => refreshState(),
  actions: { edit, openKey: () => side.open(byId("key")), hasKey: () => readKey() !== "" },
});

const composer = new Composer({
  makeRequest: (question) => conversation.request(question, edited),
  limits: () => ({ ...card()?.fovea, max_model_len: card()?.max_model_len }),
  isBusy: () => conversation.isBusy,
  onSend: (question) => {
    const instead = edited;
    endEdit();
    conversation.ask(question, instead);
  },
  onStop: () => conversation.stop(),
  onEscape: () => {
    if (conversation.isBusy) conversation.stop();
    else if (edited) cancelEdit();
  },
  onEditLast: () => conversation.last && edit(conversation.last),
});

/** What the server says about the chosen model. */
function card() {
  return models.get(byId("model").value);
}

function edit(turn) {
  edited = turn;
  byId("editing").hidden = false;
  composer.load(turn.question);
  byId("text").focus();
}

function endEdit() {
  edited = null;
  byId("editing").hidden = true;
}

function cancelEdit() {
  endEdit();
  composer.load();
  byId("text").focus();
}

/** The key or the system message changed: what the server said before may not hold. */
function refresh() {
  if (models.size === 0) loadModels();
  composer.recount();
}

function refreshState() {
  byId("hero").hidden = conversation.turns.length > 0;
  composer.refresh();
}

async function loadModels() {
  const choice = byId("model");
  try {
    const { data } = await getJson("/v1/models");
    models.clear();
    for (const item of data) models.set(item.id, item);
    choice.replaceChildren(...data.map(({ id }) => new Option(id)));
    choice.hidden = data.length < 2;
    byId("model-name").hidden = data.length > 1;
    showModel();
  } catch (error) {
    byId("model-name").textContent = error.status === 401 ? "API key needed" : "no model";
    if (error.status === 401) side.open(byId("key"));
  }
}

function showModel() {
  if (!card()) return;
  const { id, max_model_len: length, fovea } = card();
  const images = fovea?.max_images;
  byId("model-name").textContent = id;
  const facts = [length && `${number(length)} tokens`, images && `up to ${plural(images, "picture")}`];
  byId("model-facts").textContent = facts.filter(Boolean).join(" · ");
  document.title = `${id} · Fovea`;
}

async function watchHealth() {
  const dot = byId("status");
  const show = (state, words) => {
    dot.dataset.state = state;
    dot.querySelector("span").textContent = words;
    dot.title = words;
  };
  if (document.visibilityState === "visible") {
    try {
      await getJson("/health").catch((error) => {
        if (!error.status) throw error;
        show("busy", error.code?.replaceAll("_", " ") ?? `status ${error.status}`);
        return Promise.reject(new Error("shown"));
      });
      show("ready", "ready");
      if (models.size === 0 && !byId("model-name").textContent.startsWith("API")) loadModels();
    } catch (error) {
      if (error.message !== "shown") show("away", "not reachable");
    }
  }
  setTimeout(watchHealth, HEALTH_EVERY_MS);
}

async function addSample() {
  try {
    const blob = await (await fetch("/playground/sample.svg")).blob();
    await composer.addBlobs([new File([blob], "sample.svg", { type: "image/svg+xml" })]);
    byId("text").value = SAMPLE_QUESTION;
    composer.recount();
    byId("text").focus();
  } catch {
    announce("The sample picture could not be loaded.");
  }
}

byId("mosaic").append(mosaic());
byId("model").addEventListener("change", () => {
  showModel();
  refresh();
});
byId("theme").addEventListener("click", () => document.documentElement.dispatchEvent(new Event("fovea:theme")));
byId("new").addEventListener("click", () => {
  endEdit();
  conversation.clear();
  composer.load();
  byId("text").focus();
});
byId("grid-toggle").addEventListener("change", (event) => {
  document.documentElement.dataset.grid = event.target.checked ? "on" : "off";
});
byId("sample").addEventListener("click", addSample);
byId("cancel-edit").addEventListener("click", cancelEdit);
for (const kind of ["curl", "python"]) {
  byId(`draft-${kind}`).addEventListener("click", () => {
    if (composer.isEmpty) announce("Write a question first.");
    else copyRequest(conversation.request(composer.question, edited), kind, readKey() !== "");
  });
}
refreshState();
loadModels();
watchHealth();
