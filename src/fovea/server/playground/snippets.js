// A request as something to run elsewhere: a shell command or a Python program. Pictures from files are read from files
// of the same name, never pasted in; a key is taken from the environment, never written down.

/** A request as it is sent: pictures become what their `url` says. */
export function toBody(request) {
  return mapPictures(request, (picture) => picture.url);
}

/** A shell command for sh, bash and zsh. */
export function toCurl(request, origin, hasKey) {
  const files = new Map(); // picture -> name of a shell variable
  const nonce = Math.random().toString(36).slice(2); // so that nothing a user types looks like a placeholder
  const placeholder = (variable) => `@${nonce}@${variable}@`;
  const body = mapPictures(request, (picture) => {
    if (picture.isRemote) return picture.url;
    if (!files.has(picture)) files.set(picture, `IMAGE_${files.size + 1}`);
    return placeholder(files.get(picture));
  });
  // In an unquoted here-document only these mean something to the shell.
  let json = JSON.stringify(body, null, 2).replace(/[\\$`]/g, "\\$&");
  for (const variable of files.values()) json = json.replaceAll(placeholder(variable), `$${variable}`);
  const lines = [...savedNote(files.keys())];
  for (const [picture, variable] of files) {
    lines.push(`${variable}="data:${picture.type};base64,$(base64 < ${quoted(picture.name)} | tr -d '\\n')"`);
  }
  const key = hasKey ? [`  -H "Authorization: Bearer $OPENAI_API_KEY" \\`] : [];
  lines.push(`curl ${quoted(`${origin}/v1/chat/completions`)} \\`, ...key, "  -H 'Content-Type: application/json' \\");
  lines.push("  --data-binary @- <<END_OF_REQUEST", json, "END_OF_REQUEST", "");
  return lines.join("\n");
}

/** A Python program for the openai package. */
export function toPython(request, origin) {
  const pictures = new Set();
  const body = mapPictures(request, (picture) => {
    if (picture.isRemote) return picture.url;
    pictures.add(picture);
    return new FileCall(picture);
  });
  const values = Object.entries(body).map(([name, value]) => `    ${name}=${literal(value, 1)},`);
  const reading = pictures.size
    ? [
        "",
        "",
        "def data_url(path: str, media_type: str) -> str:",
        "    data = base64.b64encode(Path(path).read_bytes()).decode()",
        '    return f"data:{media_type};base64,{data}"',
        "",
      ]
    : [];
  return [
    "# pip install openai",
    ...savedNote(pictures),
    ...(pictures.size ? ["import base64"] : []),
    "import os",
    ...(pictures.size ? ["from pathlib import Path"] : []),
    "",
    "from openai import OpenAI",
    ...reading,
    "",
    `client = OpenAI(base_url=${JSON.stringify(`${origin}/v1`)}, api_key=os.environ.get("OPENAI_API_KEY", "none"))`,
    "answer = client.chat.completions.create(",
    ...values,
    ")",
    "print(answer.choices[0].message.content)",
    "",
  ].join("\n");
}

function mapPictures(request, replace) {
  const messages = request.messages.map(({ role, content }) => {
    if (typeof content === "string") return { role, content };
    const parts = content.map((part) => {
      if (part.type !== "picture") return part;
      const { picture, detail } = part;
      return { type: "image_url", image_url: { url: replace(picture), detail } };
    });
    return { role, content: parts };
  });
  return { ...request, messages };
}

/** Stands for `data_url("name", "type")` among the values of a request. */
class FileCall {
  constructor({ name, type }) {
    this.source = `data_url(${JSON.stringify(name)}, ${JSON.stringify(type)})`;
  }
}

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function savedNote(pictures) {
  const names = [...pictures].filter((picture) => picture.made).map((picture) => picture.name);
  const list = names.join(", ").replace(/[\r\n]/g, " ");
  return list ? [`# First save from the playground (open the picture there): ${list}`] : [];
}

/** A Python literal. JSON's strings and numbers are Python's too. */
function literal(value, depth) {
  const pad = "    ".repeat(depth);
  if (value instanceof FileCall) return value.source;
  if (Array.isArray(value)) {
    return `[\n${value.map((item) => `${pad}    ${literal(item, depth + 1)},\n`).join("")}${pad}]`;
  }
  if (value !== null && typeof value === "object") {
    const items = Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${literal(item, depth)}`);
    return `{${items.join(", ")}}`;
  }
  return JSON.stringify(value);
}
