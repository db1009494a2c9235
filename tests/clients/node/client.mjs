// The unmodified openai package for Node against a running server; what it saw goes to stdout as JSON.
// stdin: {baseURL, apiKey, model, asks: [{pictures: [data URL], question}], pictureURL}

import { readFileSync } from "node:fs";
import OpenAI, { APIError, AuthenticationError, BadRequestError, NotFoundError } from "openai";

const given = JSON.parse(readFileSync(0, "utf8"));
const options = { baseURL: given.baseURL, apiKey: given.apiKey, maxRetries: 0, timeout: 120_000 };
const client = new OpenAI(options);
const model = given.model;

const messagesOf = ({ pictures, question }) => [
  {
    role: "user",
    content: [
      ...pictures.map((url) => ({ type: "image_url", image_url: { url } })),
      { type: "text", text: question },
    ],
  },
];

async function ask(one) {
  const answer = await client.chat.completions.create({ model, messages: messagesOf(one), temperature: 0 });
  return { text: answer.choices[0].message.content, finish: answer.choices[0].finish_reason, usage: answer.usage };
}

async function stream(one) {
  const chunks = await client.chat.completions.create({
    model,
    messages: messagesOf(one),
    temperature: 0,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let usage = null;
  for await (const chunk of chunks) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  return { text, usage };
}

async function helper(one) {
  const runner = client.chat.completions.stream({ model, messages: messagesOf(one), temperature: 0 });
  return { text: await runner.finalContent() };
}

async function abort() {
  const chunks = await client.chat.completions.create({
    model,
    messages: [{ role: "user", content: "Hello" }],
    max_completion_tokens: 3000,
    ignore_eos: true,
    stream: true,
  });
  for await (const _ of chunks) break; // leaving the loop closes the connection
  return ask(given.asks[0]);
}

async function failure(call) {
  try {
    await call();
    return null;
  } catch (error) {
    return {
      kinds: [APIError, AuthenticationError, BadRequestError, NotFoundError]
        .filter((kind) => error instanceof kind)
        .map((kind) => kind.name),
      status: error.status,
      code: error.code,
      param: error.param,
      type: error.type,
      requestID: error.requestID,
    };
  }
}

const first = given.asks[0];
const chat = (more, key) =>
  new OpenAI({ ...options, apiKey: key ?? given.apiKey }).chat.completions.create({
    model,
    messages: messagesOf(first),
    ...more,
  });

const seen = {
  answers: [],
  streams: [],
  helper: await helper(first),
  byURL: await ask({ ...first, pictures: [given.pictureURL] }),
  afterAbort: await abort(),
  models: (await client.models.list()).data.map((one) => one.id),
  retrieved: (await client.models.retrieve(model)).id,
  raw: (await client.chat.completions.create({ model, messages: messagesOf(first) }).withResponse()).request_id,
  errors: {
    key: await failure(() => chat({}, "sk-wrong")),
    temperature: await failure(() => chat({ temperature: 3 })),
    stream: await failure(() => chat({ temperature: 3, stream: true })),
    model: await failure(() => chat({ model: "gpt-9" })),
    path: await failure(() => client.post("/nothing", { body: {} })),
    picture: await failure(() => ask({ ...first, pictures: ["data:image/png;base64,AAAA"] })),
  },
};
for (const one of given.asks) {
  seen.answers.push(await ask(one));
  seen.streams.push(await stream(one));
}
console.log(JSON.stringify(seen));
