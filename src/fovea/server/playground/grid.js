// A picture with the grid of its tokens drawn over it, the card that shows both, and the dialog that shows them large.

import { button, byId, bytes, h, icon, number, plural, seconds, size, svg } from "./dom.js";
import { DETAILS } from "./pictures.js";

/** Where the grid lies over the picture, in fractions of its width and height.
 *
 * A model takes the whole picture, give or take the rounding of one cell; or cuts the middle out; or pads it. In the
 * last case it has tokens beside those of the grid.
 */
export function placement({ original, used, tokens, token_grid: [rows, columns] }) {
  const [width, height] = original;
  const [usedWidth, usedHeight] = used;
  const differs = Math.abs(usedHeight - (usedWidth * height) / width) > usedHeight / rows;
  const sameShape = !differs || Math.abs(usedWidth - (usedHeight * width) / height) <= usedWidth / columns;
  if (sameShape) return { x: 0, y: 0, width: 1, height: 1 };
  const isPadded = tokens > rows * columns;
  const fit = isPadded ? Math.max : Math.min;
  const scale = fit(width / usedWidth, height / usedHeight);
  const [w, t] = [(usedWidth * scale) / width, (usedHeight * scale) / height];
  return { x: (1 - w) / 2, y: (1 - t) / 2, width: w, height: t };
}

/** The overlay: lines, and the cell that is marked. */
export function gridOverlay(report) {
  const [rows, columns] = report?.token_grid ?? [0, 0];
  if (!rows || !columns) return null;
  const place = placement(report);
  let path = "";
  for (let row = 0; row <= rows; row += 1) path += `M0 ${row}H${columns}`;
  for (let column = 0; column <= columns; column += 1) path += `M${column} 0V${rows}`;
  const view = [
    (-place.x * columns) / place.width,
    (-place.y * rows) / place.height,
    columns / place.width,
    rows / place.height,
  ];
  return svg(
    "svg",
    {
      class: "grid",
      role: "img",
      "aria-label": `Token grid: ${plural(rows, "row")} of ${columns}`,
      "data-rows": rows,
      "data-columns": columns,
      viewBox: view.join(" "),
      preserveAspectRatio: "none",
    },
    svg("path", { class: "halo", d: path }),
    svg("path", { class: "line", d: path }),
  );
}

/** The picture itself with its overlay; follows the picture as long as it lives. */
export function pictureFrame(picture) {
  const seen = picture.isRemote
    ? h("div", { class: "remote" }, icon("link"), h("span", {}, new URL(picture.url).hostname))
    : h("img", { src: picture.preview, alt: "", draggable: "false" });
  const frame = h("div", { class: "frame" }, seen);
  const draw = () => {
    const [width, height] = picture.shownSize;
    frame.style.aspectRatio = `${width} / ${height}`;
    frame.style.setProperty("--ratio", width / height);
    frame.querySelector(".grid")?.remove();
    const overlay = gridOverlay(picture.report);
    if (overlay) frame.append(overlay);
  };
  picture.addEventListener("change", draw);
  draw();
  return frame;
}

function tokensOf({ tokens, token_grid: [rows, columns] }, before) {
  return [h("span", {}, before, plural(tokens, "token")), rows ? h("span", {}, ` · ${columns} × ${rows} grid`) : ""];
}

/** A picture in the tray (`onRemove` given) or in the conversation. */
export function pictureCard(picture, { onRemove = null, onDetail = null } = {}) {
  const facts = h("div", { class: "facts" });
  const open = h("button", { type: "button", class: "open", onclick: () => inspect(picture) }, pictureFrame(picture));
  const write = () => {
    open.setAttribute("aria-label", `Look at ${picture.name} and its tokens`);
    const { report, error } = picture;
    const known = picture.width ? [size(picture.shownSize)] : [];
    const sizes = report ? [size(report.original), " → ", size(report.used)] : known;
    facts.replaceChildren(
      h("div", { class: "name", title: picture.name }, picture.name),
      h("div", { class: "sizes" }, ...sizes),
      report ? h("div", { class: "tokens" }, tokensOf(report, onRemove ? "will be " : "")) : "",
      error ? h("div", { class: "refused" }, error.message, error.code ? [" ", h("code", {}, error.code)] : "") : "",
    );
    card.classList.toggle("bad", Boolean(error));
  };
  const card = h("figure", { class: "card" }, open, h("figcaption", {}, facts));
  if (onRemove) {
    card.append(detailChoice(picture, onDetail));
    card.append(button(`Remove ${picture.name}`, "close", () => onRemove(picture), { quiet: true, class: "remove" }));
  }
  picture.addEventListener("change", write);
  write();
  return card;
}

function detailChoice(picture, onDetail) {
  const choice = h(
    "select",
    { onchange: () => { picture.detail = choice.value; onDetail(picture); } },
    DETAILS.map((name) => h("option", { value: name, selected: name === picture.detail }, name)),
  );
  return h("label", { class: "detail" }, "Detail ", h("span", { class: "offscreen" }, `of ${picture.name} `), choice);
}

/** The large view. The pointer and the arrow keys move over the cells. */
export function inspect(picture) {
  const dialog = byId("inspector");
  const where = h("p", { class: "where", "aria-live": "polite" });
  const frame = pictureFrame(picture);
  frame.tabIndex = 0;
  frame.setAttribute("aria-label", "Token grid; the arrow keys move over its cells");
  moveOverCells(frame, picture, where);
  const save = picture.preview
    ? h("a", { class: "plain", href: picture.preview, download: picture.name }, icon("save"), "Save picture")
    : null;
  dialog.replaceChildren(
    h("header", {}, h("h2", {}, picture.name), button("Close", "close", () => dialog.close(), { quiet: true })),
    h("div", { class: "viewer" }, frame),
    where,
    h("dl", {}, facts(picture).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    h("footer", {}, save),
  );
  dialog.showModal();
  frame.focus();
}

function facts(picture) {
  const { report } = picture;
  const rows = [];
  if (!report) rows.push(["Size", picture.width ? size(picture.shownSize) : "known when the server has seen it"]);
  else {
    const [height, width] = report.token_grid;
    rows.push(["Original", size(report.original)], ["Used", size(report.used)], ["Tokens", number(report.tokens)]);
    if (height) rows.push(["Grid", `${width} × ${height}`]);
    if (report.tokens > width * height) rows.push(["Beside the grid", plural(report.tokens - width * height, "token")]);
    if (report.bytes) rows.push(["Bytes", bytes(report.bytes)]);
    const { cache_hit: isHit } = report;
    if (isHit !== undefined) rows.push(["Encoder cache", isHit ? "hit: not encoded again" : "miss"]);
    for (const [name, key] of [["Fetch", "fetch_s"], ["Decode", "decode_s"], ["Resize", "resize_s"]]) {
      if (report[key] !== undefined) rows.push([name, seconds(report[key])]);
    }
  }
  rows.push(["Detail", picture.detail]);
  if (picture.made) rows.push(["Made", "by this page"]);
  if (picture.isRemote) rows.push(["Address", picture.url], ["Preview", "none: only the server opens addresses"]);
  return rows;
}

function moveOverCells(frame, picture, where) {
  const grid = frame.querySelector(".grid");
  where.textContent = grid ? "Point at the picture, or use the arrow keys, to see which token looks where." : "";
  if (!grid) return;
  const { rows, columns } = { rows: Number(grid.dataset.rows), columns: Number(grid.dataset.columns) };
  const mark = svg("rect", { class: "cell", width: 1, height: 1, visibility: "hidden" });
  grid.append(mark);
  let [row, column] = [0, -1];
  const show = () => {
    mark.setAttribute("x", column);
    mark.setAttribute("y", row);
    mark.setAttribute("visibility", "visible");
    const index = row * columns + column + 1;
    where.textContent = `Cell ${number(index)} of ${number(rows * columns)}: row ${row + 1}, column ${column + 1}`;
  };
  frame.addEventListener("pointermove", (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(grid.getScreenCTM().inverse());
    if (point.x < 0 || point.y < 0 || point.x >= columns || point.y >= rows) return;
    [row, column] = [Math.floor(point.y), Math.floor(point.x)];
    show();
  });
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    if (column < 0) column = 0; // the first key only shows where one is
    else {
      row = Math.min(rows - 1, Math.max(0, row + step[0]));
      column = Math.min(columns - 1, Math.max(0, column + step[1]));
    }
    show();
  });
}
