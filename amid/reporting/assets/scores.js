// The table of scores

const order = { column: null, descending: false };
const sets = unique(data.columns.map((column) => column.set));
const averaged = new Set(data.columns.filter((column) => column.set === data.average).map((column) => column.metric));
const shownToo = { averages: false, further: false };
const ARROWS = { higher: " ↑", lower: " ↓" };
const columnName = (column) => column.title + (ARROWS[column.better] ?? "");

function tableColumns() {
  const labels = data.labels.map((label) => ({
    title: label.title,
    value: (row) => row.labels[label.key] ?? null,
    number: typeof data.rows.find((row) => row.labels[label.key] != null)?.labels[label.key] === "number",
  }));
  const counts = unique(data.rows.map((row) => row.runs.length));
  if (counts.length > 1) labels.push({ title: "n", value: (row) => row.runs.length, number: true });
  const scores = data.columns
    .map((column, index) => ({ ...column, index, number: true, value: (row) => row.cells[index].mean ?? null }))
    .filter((column) => !shownToo.averages || column.set === data.average || !averaged.has(column.metric))
    .filter((column) => shownToo.further || !column.further);
  return [...labels, ...scores];
}

function compare(column) {
  const sign = order.descending ? -1 : 1;
  return (a, b) => {
    const [x, y] = [column.value(a), column.value(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a.index - b.index;
    if (typeof x === "number" && typeof y === "number") return sign * (x - y) || a.index - b.index;
    return sign * String(x).localeCompare(String(y)) || a.index - b.index;
  };
}

function sortBy(column, title) {
  const bestFirst = column.set !== undefined && column.better !== "lower";
  if (order.column !== title) Object.assign(order, { column: title, descending: bestFirst });
  else if (order.descending === bestFirst) order.descending = !bestFirst;
  else Object.assign(order, { column: null, descending: false });
  drawTable();
  $("#table").querySelector(`button[data-sort="${CSS.escape(title)}"]`).focus();
}

const BROAD = 14; // columns that paper has room for
const classes = (column) =>
  [column.number ? "number" : "", column.set === undefined ? "label" : "", column.further ? "further" : ""].join(" ").trim() || null;

function scoreCell(cell, kind) {
  const failed = cell.mean === undefined || cell.mean === null;
  const [mean, std] = cell.text.split(" ± ");
  const number = [mean, std ? el("span", { class: "std" }, ` ± ${std}`) : null];
  const marked = cell.place === 1 ? el("b", {}, number) : cell.place === 2 ? el("u", {}, number) : number;
  const theirs = cell.published;
  const difference = failed || theirs === undefined ? "" : ` (${cell.mean < theirs ? "−" : "+"}${Math.abs(cell.mean - theirs).toFixed(2)})`;
  return el(
    "td",
    { class: failed && cell.text !== "–" ? `${kind} failed` : kind },
    marked,
    theirs === undefined
      ? null
      : el("span", { class: "published", title: cell.source }, `published ${theirs.toFixed(2)}${difference}`),
  );
}

function drawTable() {
  const columns = tableColumns();
  const head = columns.map((column) => {
    const key = column.key ?? column.title;
    const sorted = order.column === key;
    const arrow = sorted ? (order.descending ? "▾" : "▴") : "";
    const state = sorted ? (order.descending ? "descending" : "ascending") : "none";
    const sign = el("span", { class: "sorted", "aria-hidden": "true" }, arrow);
    return el(
      "th",
      { scope: "col", "aria-sort": state, class: classes(column) },
      el(
        "button",
        { type: "button", "data-sort": key, onclick: () => sortBy(column, key) },
        column.number ? [sign, columnName(column)] : [columnName(column), sign],
        column.set === undefined ? null : el("small", {}, column.set),
      ),
    );
  });
  const by = columns.find((column) => (column.key ?? column.title) === order.column);
  const rows = by ? shownRows().sort(compare(by)) : shownRows();
  const body = rows.map((row, i) =>
    el(
      "tr",
      { "data-row": row.index, class: !by && i && rows[i - 1].baseline !== row.baseline ? "rule" : null },
      columns.map((column) => {
        if (column.set !== undefined) return scoreCell(row.cells[column.index], classes(column));
        const value = column.value(row);
        const text = value === null ? "–" : typeof value === "number" ? minus(value) : String(value);
        return el("td", { class: classes(column) }, brokenAtCommas(text));
      }),
    ),
  );
  $("#table").replaceChildren(el("thead", {}, el("tr", {}, head)), el("tbody", {}, body));
  $("#table").classList.toggle("broad", columns.length > BROAD);
  pinLabels();
}

/** Keeps the labels of the rows in sight while the scores are scrolled: all where they leave room, else the first. */
function pinLabels() {
  const table = $("#table");
  table.classList.remove("pinned");
  const heads = [...table.rows[0].cells];
  const edges = heads.map((head) => head.getBoundingClientRect());
  const labels = heads.filter((head) => head.classList.contains("label")).length;
  const lefts = edges.slice(0, labels).map((edge) => edge.left - edges[0].left);
  table.classList.toggle("pinned", edges[labels - 1].right - edges[0].left < table.parentNode.clientWidth / 2);
  for (const row of table.rows) lefts.forEach((left, i) => (row.cells[i].style.left = `${left}px`));
}

function buildTable() {
  const sources = unique(data.rows.flatMap((row) => row.cells.map((cell) => cell.source)).filter(Boolean));
  const caption = [data.caption, sources.length ? `Published figures: ${sources.join("; ")}.` : null];
  const describe = () => ($("#caption").textContent = minus([...caption, shownToo.further ? data.further : null].filter(Boolean).join(" ")));
  const addToggle = (which, text) => {
    const toggle = () => {
      shownToo[which] = !shownToo[which];
      button.setAttribute("aria-pressed", String(shownToo[which]));
      drawTable();
      describe();
    };
    const button = el("button", { type: "button", id: which, class: "toggle", "aria-pressed": "false", onclick: toggle }, text);
    $("#table-tools").append(button);
  };
  if (sets.length > 2 && sets.includes(data.average)) addToggle("averages", "Averages only");
  if (data.further) addToggle("further", "More scores");
  describe();
}
