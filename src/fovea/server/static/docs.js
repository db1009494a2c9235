// The API page: reads /openapi.json and shows routes, fields with their types and bounds, and a curl line for each.
// Text from the document is only ever set as text.

const content = document.getElementById("content");
const state = document.getElementById("state");

function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const last = (ref) => ref.split("/").pop();
const anchor = (method, path) => `${method}${path}`.replace(/[^a-z0-9]+/gi, "-");

// Bounds of 64 bits are beyond what a number here can hold exactly.
function grouped(number) {
  if (Number.isInteger(number) && !Number.isSafeInteger(number)) {
    return `${number < 0 ? "-" : ""}2^${Math.round(Math.log2(Math.abs(number)))}`;
  }
  return number.toLocaleString("en");
}

// Paragraphs with `code` in them.
function prose(text) {
  return text.trim().split(/\n\s*\n/).map((paragraph) => {
    const pieces = paragraph.split("`").map((piece, i) => (i % 2 ? h("code", {}, piece) : piece));
    return h("p", {}, ...pieces);
  });
}

// A type in words, with links to the objects it names.
function typeOf(schema) {
  if (schema.$ref) return [h("a", { href: `#${last(schema.$ref)}` }, last(schema.$ref))];
  if (schema.anyOf) {
    const shown = schema.anyOf.filter((one) => one.type !== "null").map(typeOf);
    return shown.flatMap((one, i) => (i ? [" or ", ...one] : one));
  }
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(", ")];
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.type === "array") return schema.items ? ["list of ", ...typeOf(schema.items)] : ["list"];
  if (schema.type === "object") {
    const values = schema.additionalProperties;
    return values && typeof values === "object" ? ["map to ", ...typeOf(values)] : ["object"];
  }
  return [schema.type ?? "any"];
}

function limitsOf(schema) {
  const found = [];
  const low = schema.minimum ?? schema.exclusiveMinimum;
  const high = schema.maximum ?? schema.exclusiveMaximum;
  const above = schema.exclusiveMinimum !== undefined ? "above " : "";
  if (low !== undefined && high !== undefined) found.push(`${above}${grouped(low)} to ${grouped(high)}`);
  else if (low !== undefined) found.push(`${above || "from "}${grouped(low)}`);
  else if (high !== undefined) found.push(`up to ${grouped(high)}`);
  for (const [low_, high_, unit] of [
    ["minLength", "maxLength", "characters"],
    ["minItems", "maxItems", "entries"],
    ["minProperties", "maxProperties", "entries"],
  ]) {
    if (schema[high_] !== undefined) found.push(`${schema[low_] ? `${schema[low_]} to ` : "up to "}${grouped(schema[high_])} ${unit}`);
  }
  for (const inner of [...(schema.anyOf ?? []), ...(schema.type === "array" && schema.items ? [schema.items] : [])]) {
    found.push(...limitsOf(inner));
  }
  return [...new Set(found)];
}

function fieldsOf(schema) {
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).sort(([a], [b]) => required.has(b) - required.has(a));
  if (!rows.length) return null;
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, ...["Field", "Type", ""].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, ...rows.map(([name, field]) => h("tr", {},
      h("td", {}, h("code", {}, name), required.has(name) ? h("span", { class: "required" }, "required") : null),
      h("td", {}, ...typeOf(field), ...limitsOf(field).map((text) => h("span", { class: "limits" }, text))),
      h("td", {}, field.description ?? ""),
    ))),
  ));
}

function code(text) {
  const button = h("button", { type: "button", class: "plain" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed here";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return h("div", { class: "code" }, h("pre", { tabindex: "0" }, text), button);
}

function curl(method, path, operation, example) {
  const lines = [`curl ${location.origin}${path.replace("{model}", "MODEL")}`];
  if (operation.security) lines.push('-H "Authorization: Bearer $FOVEA_API_KEY"');
  if (example) {
    const body = JSON.stringify(example, null, 2).replace(/'/g, "'\\''");
    lines.push("-H 'Content-Type: application/json'", `-d '${body}'`);
  }
  return lines.join(" \\\n  ");
}

function route(method, path, operation, schemas) {
  const body = operation.requestBody?.content["application/json"];
  const answers = operation.responses["200"].content ?? {};
  const shown = answers["application/json"]?.schema.$ref;
  const parts = [
    h("h2", {}, h("span", { class: `method ${method}` }, method.toUpperCase()), path),
    h("p", {}, operation.summary),
    code(curl(method, path, operation, body?.example)),
  ];
  if (body) parts.push(h("h3", {}, "Body"), fieldsOf(schemas[last(body.schema.$ref)]));
  parts.push(h("h3", {}, "Answer"), h("p", {}, ...(shown ? typeOf({ $ref: shown }) : ["plain text"])));
  const events = answers["text/event-stream"]?.schema.description;
  if (events) parts.push(h("p", { class: "note" }, events));
  const errors = Object.entries(operation.responses).filter(([status]) => status !== "200");
  parts.push(h("details", {}, h("summary", {}, `Errors (${errors.length})`), h("div", { class: "scroll" }, h("table", {},
    h("tbody", {}, ...errors.map(([status, error]) => h("tr", {}, h("td", {}, status), h("td", {}, error.description)))),
  ))));
  return h("section", { id: anchor(method, path) }, ...parts);
}

function schema(name, value) {
  const fields = fieldsOf(value);
  return h("details", { class: "schema", id: name }, h("summary", {}, name),
    ...(value.description ? prose(value.description) : []), fields ?? h("p", {}, ...typeOf(value)));
}

function show(description) {
  const schemas = description.components.schemas;
  const routes = Object.entries(description.paths).flatMap(([path, operations]) =>
    Object.entries(operations).map(([method, operation]) => [method, path, operation]));
  document.getElementById("version").textContent = description.info.version;
  document.getElementById("routes").append(
    h("h2", {}, "Routes"),
    h("ul", {}, ...routes.map(([method, path]) => h("li", {}, h("a", { href: `#${anchor(method, path)}` }, path)))),
    h("h2", {}, "More"),
    h("ul", {}, h("li", {}, h("a", { href: "#objects" }, "objects"))),
  );
  content.append(
    h("div", { class: "about" }, ...prose(description.info.description)),
    ...routes.map(([method, path, operation]) => route(method, path, operation, schemas)),
    h("section", { id: "objects" }, h("h2", {}, "Objects"), ...Object.entries(schemas).map(([name, value]) => schema(name, value))),
  );
  state.remove();
  open();
}

// An object that a link leads to is opened.
function open() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  if (target.tagName === "DETAILS") target.open = true;
  target.scrollIntoView();
}

addEventListener("hashchange", open);
document.getElementById("theme").addEventListener("click", () => {
  document.documentElement.dispatchEvent(new Event("fovea:theme"));
});

try {
  const response = await fetch("/openapi.json");
  if (!response.ok) throw new Error(String(response.status));
  show(await response.json());
} catch (error) {
  state.textContent = `The description could not be read (${error.message}).`;
}
