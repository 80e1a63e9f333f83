// The data of the page, elements, words, and which settings are shown

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (selector, root = document) => root.querySelector(selector);
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);
const unique = (values) => [...new Set(values)];
/** A text whose numbers below 0 have a minus sign: names and options keep their hyphens. */
const minus = (text) => String(text).replace(/(^|[\s(=,[])-(?=[\d.])/g, "$1−");
/** A text that may go on in a new line behind a comma, as long lists of settings do. */
const brokenAtCommas = (text) => text.split(/(?<=,)/).flatMap((part) => [part, el("wbr")]);
const short = (x) => (x === null || x === undefined ? "–" : minus(String(+x.toPrecision(4))));
const score = (x) => (x === null || x === undefined ? "–" : minus(x.toFixed(2)));
const clip = (text, length) => (text.length > length ? text.slice(0, length - 1) + "…" : text);
const option = (value, text) => el("option", { value }, text);

// ---- which settings are shown ------------------------------------------------------------------

const hidden = data.filters.map(() => new Set());
const isShown = (row) => data.filters.every((filter, i) => !hidden[i].has(filter.values[row.index]));
const shownRows = () => data.rows.filter(isShown);
const isRunShown = (run) => isShown(data.rows[run.row]);
data.rows.forEach((row, index) => Object.assign(row, { index, name: minus(row.name) }));
data.runs.forEach((run, index) => (run.index = index));
const runName = (run) => `${data.rows[run.row].name}, seed ${run.seed}`;

function buildFilters() {
  const form = $("#filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  data.filters.forEach((filter, i) => {
    const values = unique(filter.values).filter((v) => v !== null && v !== "–");
    values.sort((a, b) => (typeof a === "number" && typeof b === "number" ? a - b : 0));
    const buttons = values.map((v) => {
      const toggle = () => {
        hidden[i].has(v) ? hidden[i].delete(v) : hidden[i].add(v);
        button.setAttribute("aria-pressed", String(!hidden[i].has(v)));
        drawAll();
      };
      const name = minus(v);
      const button = el("button", { type: "button", "aria-pressed": "true", title: name.length > 32 ? name : null, onclick: toggle }, clip(name, 32));
      return button;
    });
    form.append(el("fieldset", { "data-filter": filter.key }, el("legend", {}, filter.title), buttons));
  });
  const all = () => {
    hidden.forEach((set) => set.clear());
    form.querySelectorAll("[aria-pressed]").forEach((b) => b.setAttribute("aria-pressed", "true"));
    drawAll();
  };
  if (form.children.length) form.append(el("button", { type: "button", onclick: all }, "Show all"));
  else form.remove();
}
