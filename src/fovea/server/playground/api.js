// The server's HTTP interface: JSON calls, the event stream of an answer, and one kind of error for all that goes
// wrong. The key lives in sessionStorage, so it is gone with the tab.

const KEY = "fovea.key";

export class ServerError extends Error {
  /** `status` 0 means that no answer came at all. */
  constructor(message, { status = 0, code = null, param = null, requestId = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, requestId, retryAfter });
  }
}

export const readKey = () => sessionStorage.getItem(KEY) ?? "";

export function writeKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export async function getJson(path, signal) {
  return (await call(path, { signal })).json();
}

export async function postJson(path, body, signal) {
  return (await call(path, { method: "POST", body: JSON.stringify(body), signal })).json();
}

/** The chunks of a chat completion as they come. Ends after [DONE]; everything else throws ServerError. */
export async function* streamChat(body, signal) {
  const response = await call("/v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  const requestId = response.headers.get("X-Request-Id");
  for await (const data of events(response.body, requestId)) {
    if (data === "[DONE]") return;
    let chunk;
    try {
      chunk = JSON.parse(data);
    } catch {
      throw new ServerError("The server sent an event that is not JSON.", { code: "bad_stream", requestId });
    }
    if (chunk.error) throw fromBody(chunk, 200, requestId, null);
    yield chunk;
  }
  throw new ServerError("The connection ended before the answer did.", { code: "stream_cut", requestId });
}

async function call(path, options) {
  const key = readKey();
  const headers = { ...(options.body ? { "Content-Type": "application/json" } : {}) };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", redirect: "error" });
  } catch (error) {
    throw unlessAborted(error, "The server could not be reached.", "unreachable");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw fromBody(body, response.status, response.headers.get("X-Request-Id"), response.headers.get("Retry-After"));
}

function fromBody(body, status, requestId, retryAfter) {
  const { message, code = null, param = null } = body?.error ?? {};
  const words = message || `The server answered ${status} without an explanation.`;
  return new ServerError(words, { status, code, param, requestId, retryAfter });
}

function unlessAborted(error, message, code, requestId = null) {
  return error.name === "AbortError" ? error : new ServerError(message, { code, requestId });
}

/** The data of each server-sent event. */
async function* events(stream, requestId) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.map((text) => text.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } catch (error) {
    throw unlessAborted(error, "The connection broke in the middle of the answer.", "stream_cut", requestId);
  } finally {
    reader.cancel().catch(() => {});
  }
}
