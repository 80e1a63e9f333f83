"use strict";
(() => {
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
  const minus = (text) => String(text).replace("-", "−");
  const short = (x) => (x === null || x === undefined ? "–" : minus(String(+x.toPrecision(4))));
  const score = (x) => (x === null || x === undefined ? "–" : minus(x.toFixed(2)));
  const clip = (text, length) => (text.length > length ? text.slice(0, length - 1) + "…" : text);
  const option = (value, text) => el("option", { value }, text);

  // ---- which settings are shown ------------------------------------------------------------------

  const hidden = data.filters.map(() => new Set());
  const isShown = (row) => data.filters.every((filter, i) => !hidden[i].has(filter.values[row.index]));
  const shownRows = () => data.rows.filter(isShown);
  const isRunShown = (run) => isShown(data.rows[run.row]);
  data.rows.forEach((row, index) => Object.assign(row, { index, name: row.name.replaceAll("=-", "=−") }));
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

  // ---- table of scores ---------------------------------------------------------------------------

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
          return el("td", { class: classes(column) }, text);
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
    const describe = () => ($("#caption").textContent = [...caption, shownToo.further ? data.further : null].filter(Boolean).join(" "));
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

  // ---- drawing -----------------------------------------------------------------------------------

  const SHAPES = [
    "M-4.6 0a4.6 4.6 0 1 0 9.2 0a4.6 4.6 0 1 0-9.2 0Z",
    "M-4.2-4.2H4.2V4.2H-4.2Z",
    "M0-5.4L5.2 4H-5.2Z",
    "M0-5.8L5.8 0L0 5.8L-5.8 0Z",
    "M0 5.4L5.2-4H-5.2Z",
    "M-1.8-5.2H1.8V-1.8H5.2V1.8H1.8V5.2H-1.8V1.8H-5.2V-1.8H-1.8Z",
    "M0-5.6L5.3-1.7L3.3 4.5H-3.3L-5.3-1.7Z",
    "M-4.2-5.2L5.2 0L-4.2 5.2Z",
  ];
  const DASHES = ["", "7 3", "2 3", "9 3 2 3"];
  const BASELINES = -1;
  const WITHOUT_RESULT = -2;
  const colour = (i) => (i < 0 ? "var(--muted)" : `var(--c${i % 8})`);
  const HEXAGON = "M0-5.6L4.9-2.8V2.8L0 5.6L-4.9 2.8V-2.8Z";
  const CROSS = "M-4-4L4 4M-4 4L4-4";
  const shape = (i) => ({ [BASELINES]: HEXAGON, [WITHOUT_RESULT]: CROSS })[i] ?? SHAPES[i % SHAPES.length];
  const dash = (i) => DASHES[Math.floor(i / 8) % DASHES.length];

  const sample = (fillWith, path) =>
    svg("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" },
      svg("path", path === CROSS ? { d: path, class: "stroke", stroke: fillWith } : { d: path, fill: fillWith }));

  const tip = $("#tip");
  function showTip(target) {
    tip.textContent = target.getAttribute("aria-label");
    const box = target.getBoundingClientRect();
    const own = tip.getBoundingClientRect();
    const x = Math.min(Math.max(4, box.left + box.width / 2 - own.width / 2), innerWidth - own.width - 4);
    const above = box.top - own.height - 8;
    tip.style.left = `${x}px`;
    tip.style.top = `${above > 4 ? above : box.bottom + 8}px`;
    tip.style.visibility = "visible";
  }
  const hideTip = () => (tip.style.visibility = "hidden");

  /** Makes all that belongs to the same setting stand out. */
  function heat(target) {
    const marked = target.closest("[data-row]");
    document.querySelectorAll(".hot").forEach((node) => node.classList.remove("hot"));
    if (!marked) return;
    const same = `[data-row="${marked.dataset.row}"]`;
    document.querySelectorAll(same).forEach((node) => node.classList.add("hot"));
  }

  /** Something in a figure that shows its values when pointed at or focused. */
  function spot(attributes, label, row, ...children) {
    return svg(
      "g",
      { class: "pt", ...attributes, role: "img", "aria-label": label, "data-row": row, tabindex: -1 },
      children,
    );
  }

  /** One stop of the tab key for a figure; arrow keys move among its points. */
  function roving(figure) {
    const points = [...figure.querySelectorAll(".pt")];
    if (points.length) points[0].setAttribute("tabindex", 0);
    figure.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const from = points.indexOf(document.activeElement);
      if (event.key === "Escape") hideTip();
      if (!step || from < 0) return;
      event.preventDefault();
      const to = points[(from + step + points.length) % points.length];
      points[from].setAttribute("tabindex", -1);
      to.setAttribute("tabindex", 0);
      to.focus();
    });
    return figure;
  }

  document.addEventListener("pointerover", (event) => {
    const point = event.target.closest(".pt");
    const focused = document.activeElement.closest(".pt"); // its values stay, wherever the mouse rests
    if (point) showTip(point);
    else if (!focused) hideTip();
    if (point || !focused) heat(event.target);
  });
  document.addEventListener("focusin", (event) => {
    const point = event.target.closest(".pt");
    if (!point) return hideTip();
    showTip(point);
    heat(point);
  });
  document.addEventListener("focusout", (event) => event.target.closest(".pt") && hideTip());

  function niceTicks(low, high, count) {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const off = (k) => Math.abs(Math.log(k / rough));
    const step = [1, 2, 5, 10].map((k) => k * power).reduce((a, b) => (off(b) < off(a) ? b : a));
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(+(i * step).toPrecision(10));
    return ticks;
  }

  function padded(values, share) {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = (high - low || Math.abs(high) || 1) * share;
    return [low - room, high + room];
  }

  /** Axes with their grid; returns the drawing and the two scales. */
  function axes({ width, height, x, y, xTicks, xTitle, yTitle, right = 16, log = false, label }) {
    const [left, top, bottom] = [54, 26, 44];
    const inner = { left, top, right: width - right, bottom: height - bottom };
    const scaled = (v) => (log ? Math.log10(v) : v);
    const sx = (v) => inner.left + ((v - x[0]) / (x[1] - x[0])) * (inner.right - inner.left);
    const sy = (v) => inner.bottom - ((scaled(v) - scaled(y[0])) / (scaled(y[1]) - scaled(y[0]))) * (inner.bottom - inner.top);
    let yTicks = niceTicks(y[0], y[1], 5);
    if (log) {
      const powers = niceTicks(scaled(y[0]), scaled(y[1]), 5);
      yTicks = powers.map((p) => 10 ** p);
    }
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": label });
    for (const tick of yTicks) {
      root.append(
        svg("line", { class: "grid", x1: inner.left, x2: inner.right, y1: sy(tick), y2: sy(tick) }),
        svg("text", { class: "quiet", x: inner.left - 7, y: sy(tick) + 4, "text-anchor": "end" }, minus(+tick.toPrecision(3))),
      );
    }
    let last = -Infinity;
    for (const tick of xTicks) {
      root.append(svg("line", { class: "axis", x1: sx(tick), x2: sx(tick), y1: inner.bottom, y2: inner.bottom + 4 }));
      const text = minus(+tick.toPrecision(6));
      if (sx(tick) - last > 7 * text.length + 8) {
        root.append(svg("text", { class: "quiet", x: sx(tick), y: inner.bottom + 17, "text-anchor": "middle" }, text));
        last = sx(tick);
      }
    }
    root.append(
      svg("line", { class: "axis", x1: inner.left, x2: inner.right, y1: inner.bottom, y2: inner.bottom }),
      svg("text", { x: (inner.left + inner.right) / 2, y: height - 8, "text-anchor": "middle" }, xTitle),
      svg("text", { x: 0, y: 12 }, yTitle),
    );
    return { root, sx, sy, inner };
  }

  const halo = (size = 9) => svg("circle", { class: "halo", r: size });
  const marker = (i, scale = 1) =>
    svg("path", { class: "mark", d: shape(i), fill: colour(i), transform: scale === 1 ? null : `scale(${scale})` });

  function errorBar(root, at, low, high, horizontal, ink) {
    const line = horizontal
      ? { x1: low, x2: high, y1: at, y2: at }
      : { x1: at, x2: at, y1: low, y2: high };
    root.append(svg("line", { ...line, stroke: ink, "stroke-width": 1, opacity: 0.55 }));
  }

  // ---- figures over the settings -----------------------------------------------------------------

  const chosen = { column: data.columns.findIndex((column) => column.key === data.quality) };
  if (chosen.column < 0) chosen.column = 0;
  const off = new Map();
  const offOf = (id) => off.get(id) ?? off.set(id, new Set()).get(id);
  const column = () => data.columns[chosen.column];
  const columnTitle = (c) => `${c.title} (${c.set === data.average ? "mean of all sets" : c.set})`;
  const diversityMetric = data.diversity.slice(data.diversity.lastIndexOf("/") + 1);
  const direction = (c) => ({ higher: 1, lower: -1 })[c.better] ?? 0;
  function meaning(c) {
    if (c.metric === diversityMetric) return ", lower is more diverse";
    return c.further && c.better ? `, ${c.better} is better` : "";
  }

  function diversityColumn() {
    const beside = data.columns.findIndex((c) => c.metric === diversityMetric && c.set === column().set);
    return beside >= 0 ? beside : data.columns.findIndex((c) => c.key === data.diversity);
  }

  const mean = (row, c) => row.cells[c]?.mean ?? null;
  const std = (row, c) => row.cells[c]?.std ?? 0;
  const label = (row, columns) =>
    [row.name, ...columns.map((c) => `${columnTitle(data.columns[c])}: ${row.cells[c].text}`), `${row.runs.length} run${row.runs.length > 1 ? "s" : ""}`].join("\n");

  function legend(id, names, redraw, extra = []) {
    const set = offOf(id);
    const buttons = names.map(([name, i]) => {
      const toggle = () => {
        set.has(name) ? set.delete(name) : set.add(name);
        redraw();
        [...$(`#${id} .legend`).querySelectorAll("button")].find((b) => b.dataset.name === name)?.focus();
      };
      return el(
        "button",
        { type: "button", "aria-pressed": String(!set.has(name)), "data-name": name, "data-row": id === "curves" ? i : null, onclick: toggle },
        sample(colour(i), shape(i)),
        name,
      );
    });
    $(`#${id} .legend`).replaceChildren(...buttons, ...extra);
  }

  function figure(id, caption, panels) {
    const node = $(`#${id}`);
    node.hidden = !panels.length;
    $("figcaption", node).replaceChildren(...caption);
    $(".panels", node).replaceChildren(...panels.map((panel) => el("div", {}, panel)));
  }
  const panelWidth = (id, most, least = 300) => {
    const node = $(`#${id}`);
    node.hidden = false;
    const columns = getComputedStyle($(".panels", node)).gridTemplateColumns.split(" ");
    return Math.max(least, Math.min(most, Math.floor(parseFloat(columns[0]) || most)));
  };

  /** Groups of rows that differ in the number `key` only, with the number that their colour and marker has. */
  function seriesOf(key) {
    const groups = new Map();
    for (const row of data.rows) {
      if (row.baseline || row[key] === null) continue;
      const name = row.series[key];
      groups.has(name) ? groups.get(name).push(row) : groups.set(name, [row]);
    }
    return [...groups]
      .filter(([, rows]) => unique(rows.map((row) => row[key])).length > 1)
      .map(([name, rows], i) => [name, i, rows.sort((a, b) => a[key] - b[key])]);
  }

  function drawLines(id, key, symbol) {
    const all = seriesOf(key);
    const series = all
      .filter(([name]) => !offOf(id).has(name))
      .map(([name, i, rows]) => [name, i, rows.filter(isShown)]);
    const baselines = data.rows.filter((row) => row.baseline && isShown(row));
    legend(id, all.map(([name, i]) => [name, i]), () => drawLines(id, key, symbol));
    if (!all.length) return figure(id, [], []);
    const width = panelWidth(id, 600);
    const columns = unique([chosen.column, diversityColumn()]).filter((c) => c >= 0);
    const panels = columns.map((c) => linePanel(series, baselines, key, symbol, c, columns, width));
    figure(id, [el("b", {}, `Against ${symbol}. `), "Error bars: standard deviation; dashed: baselines; ✕: failed."], panels);
  }

  function linePanel(series, baselines, key, symbol, c, columns, width) {
    const rows = series.flatMap(([, , members]) => members);
    const levels = baselines.filter((row) => mean(row, c) !== null).sort((a, b) => mean(a, c) - mean(b, c));
    const ys = [...rows, ...levels].flatMap((row) => (mean(row, c) === null ? [] : [mean(row, c) - std(row, c), mean(row, c) + std(row, c)]));
    const xs = unique(rows.map((row) => row[key])).sort((a, b) => a - b);
    if (!xs.length || !ys.length) return el("p", { class: "note" }, "Nothing of this is shown.");
    const names = levels.map((row) => clip(row.name, 16));
    const right = names.length ? 14 + 6.4 * Math.max(...names.map((name) => name.length)) : 16;
    const chart = axes({
      width, height: 300, x: padded(xs, 0.05), y: padded(ys, 0.1), xTicks: xs, right,
      xTitle: symbol, yTitle: columnTitle(data.columns[c]) + meaning(data.columns[c]),
      label: `${columnTitle(data.columns[c])} against ${symbol}`,
    });
    const { root, sx, sy, inner } = chart;
    const heights = levels.map((row) => sy(mean(row, c)));
    for (let round = 0; round < 60; round++) {
      for (let i = 1; i < heights.length; i++) {
        const overlap = Math.max(0, 14 - (heights[i - 1] - heights[i]));
        heights[i - 1] += overlap / 2;
        heights[i] -= overlap / 2;
      }
    }
    levels.forEach((row, i) => {
      const y = sy(mean(row, c));
      root.append(
        svg("path", { class: "level", d: `M${inner.left} ${y}H${inner.right}L${inner.right + 8} ${heights[i]}` }),
        spot({}, label(row, columns), row.index, svg("text", { class: "quiet", x: inner.right + 10, y: heights[i] + 4 }, names[i])),
      );
    });
    for (const [, i, members] of series) {
      const scored = members.filter((row) => mean(row, c) !== null);
      const path = scored.map((row, n) => `${n ? "L" : "M"}${sx(row[key]).toFixed(1)} ${sy(mean(row, c)).toFixed(1)}`).join("");
      root.append(svg("path", { class: "line", d: path, stroke: colour(i), "stroke-dasharray": dash(i) }));
      for (const row of members) {
        const x = sx(row[key]);
        if (mean(row, c) === null) {
          if (row.cells[c].text === "–") continue;
          root.append(spot({ transform: `translate(${x} ${inner.bottom - 8})` }, label(row, columns), row.index, halo(), svg("path", { class: "stroke", d: CROSS, stroke: colour(i) })));
          continue;
        }
        errorBar(root, x, sy(mean(row, c) - std(row, c)), sy(mean(row, c) + std(row, c)), false, colour(i));
        root.append(spot({ transform: `translate(${x} ${sy(mean(row, c))})` }, label(row, columns), row.index, halo(), marker(i)));
      }
    }
    return roving(root);
  }

  /**
   * A name beside a point, where no box of `taken` is, to which its own is added, and no box of `lines` if that can be;
   * null where there is no room.
   */
  function nameBeside(text, [px, py], inner, width, taken, lines = []) {
    const size = 6.3 * text.length;
    const places = [[12, -10], [12, 18], [-12 - size, -10], [-12 - size, 18], [-size / 2, -14], [-size / 2, 23], [12, 4], [-12 - size, 4]]
      .map(([dx, dy]) => [px + dx, py + dy - 11, size, 14])
      .filter((box) => box[0] > inner.left && box[0] + box[2] < width && box[1] > 14 && box[1] + 14 < inner.bottom && !taken.some((other) => crosses(box, other)));
    const free = places.find((box) => !lines.some((line) => crosses(box, line))) ?? places[0];
    if (!free) return null;
    taken.push(free);
    return svg("text", { class: "quiet", x: free[0], y: free[1] + 11 }, text);
  }
  const crosses = (a, b) => a[0] < b[0] + b[2] && b[0] < a[0] + a[2] && a[1] < b[1] + b[3] && b[1] < a[1] + a[3];

  function drawPlane() {
    const [qualityColumn, diversity] = [chosen.column, diversityColumn()];
    const groups = unique(data.rows.map((row) => row.series.alpha_lam ?? "Baselines"));
    const name = (row) => row.series.alpha_lam ?? "Baselines";
    const number = new Map(groups.filter((group) => group !== "Baselines").map((group, i) => [group, i]));
    if (groups.includes("Baselines")) number.set("Baselines", BASELINES);
    const scored = data.rows.filter((row) => mean(row, qualityColumn) !== null && mean(row, diversity) !== null);
    if (diversity < 0 || diversity === qualityColumn || !scored.length) return figure("plane", [], []);
    legend("plane", groups.map((group) => [group, number.get(group)]), drawPlane);
    const rows = scored.filter((row) => isShown(row) && !offOf("plane").has(name(row)));
    const up = direction(column());
    const caption = [
      el("b", {}, column().further ? `${column().title} against diversity. ` : "Quality against diversity. "),
      `${up ? `${up > 0 ? "Up" : "Down"} is better, left` : "Left"} is more diverse.`,
      up ? " Ringed and dotted: the Pareto front, the settings that no other (the teacher aside) beats in both." : "",
    ];
    if (!rows.length) return figure("plane", caption, [el("p", { class: "note" }, "Nothing of this is shown.")]);
    const width = panelWidth("plane", 1200);
    const spread = (c) => rows.flatMap((row) => [mean(row, c) - std(row, c), mean(row, c) + std(row, c)]);
    const x = padded(spread(diversity), 0.08);
    const { root, sx, sy, inner } = axes({
      width, height: Math.min(460, Math.max(320, width * 0.55)), x, y: padded(spread(qualityColumn), 0.08),
      xTicks: niceTicks(x[0], x[1], width > 600 ? 8 : 5),
      xTitle: `${columnTitle(data.columns[diversity])}  (← more diverse)`, yTitle: columnTitle(column()),
      label: `${columnTitle(column())} against diversity`,
    });
    const at = (row) => [sx(mean(row, diversity)), sy(mean(row, qualityColumn))];
    const front = [];
    const ranked = up ? rows.filter((row) => !row.teacher) : [];
    ranked.sort((a, b) => mean(a, diversity) - mean(b, diversity) || up * (mean(b, qualityColumn) - mean(a, qualityColumn)));
    for (const row of ranked) {
      if (!front.length || up * (mean(row, qualityColumn) - mean(front.at(-1), qualityColumn)) > 0) front.push(row);
    }
    for (const row of rows) {
      const [px, py] = at(row);
      const ink = colour(number.get(name(row)));
      errorBar(root, px, sy(mean(row, qualityColumn) - std(row, qualityColumn)), sy(mean(row, qualityColumn) + std(row, qualityColumn)), false, ink);
      errorBar(root, py, sx(mean(row, diversity) - std(row, diversity)), sx(mean(row, diversity) + std(row, diversity)), true, ink);
    }
    root.append(svg("path", { class: "front", d: front.map((row, i) => `${i ? "L" : "M"}${at(row).join(" ")}`).join("") }));
    const taken = rows.map((row) => [at(row)[0] - 6, at(row)[1] - 6, 12, 12]);
    const dotted = front.slice(1).flatMap((row, i) => {
      const [[x0, y0], [x1, y1]] = [at(front[i]), at(row)];
      const pieces = Math.ceil(Math.hypot(x1 - x0, y1 - y0) / 8);
      return Array.from({ length: pieces }, (_, k) => [x0 + ((x1 - x0) * k) / pieces - 2, y0 + ((y1 - y0) * k) / pieces - 2, 4, 4]);
    });
    for (const row of rows) {
      const onFront = front.includes(row);
      const i = number.get(name(row));
      root.append(
        spot({ transform: `translate(${at(row).join(" ")})` }, label(row, [qualityColumn, diversity]) + (onFront ? "\non the Pareto front" : ""), row.index,
          halo(), onFront ? svg("circle", { class: "ring", r: 9 }) : null, marker(i, 1.15)),
      );
    }
    for (const row of rows.filter((r) => r.baseline || front.includes(r))) {
      const text = row.baseline ? clip(row.name, 24) : shortName(row);
      root.append(nameBeside(text, at(row), inner, width, taken, dotted) ?? "");
    }
    figure("plane", caption, [roving(root)]);
  }
  const varies = (key) => unique(data.rows.map((row) => row[key]).filter((v) => v !== null)).length > 1;
  const shortName = (row) =>
    [varies("alpha") ? `α = ${minus(row.alpha)}` : null, varies("lam") ? `λ = ${row.lam}` : null].filter(Boolean).join(", ") || clip(row.name, 24);

  const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
  function cividis(t) {
    const place = Math.min(Math.max(t, 0), 1) * (CIVIDIS.length - 1);
    const i = Math.min(Math.floor(place), CIVIDIS.length - 2);
    const [a, b] = [CIVIDIS[i], CIVIDIS[i + 1]].map((hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)));
    return a.map((v, k) => Math.round(v + (b[k] - v) * (place - i)));
  }

  /** Maps with α across: `facet` tells the maps apart, `down` their rows. */
  function drawMaps(id, facet, down, downTitle, caption) {
    const c = chosen.column;
    const grid = data.rows.filter((row) => !row.baseline && row.alpha !== null && isShown(row) && down(row) !== null);
    const facets = unique(grid.map(facet))
      .map((name) => [name, grid.filter((row) => facet(row) === name)])
      .filter(([, rows]) => unique(rows.map(down)).length > 1 && unique(rows.map((row) => row.alpha)).length > 1);
    const finite = facets.flatMap(([, rows]) => rows.map((row) => mean(row, c))).filter((v) => v !== null);
    if (!finite.length) return figure(id, [], []);
    const [low, high] = [Math.min(...finite), Math.max(...finite)];
    const best = { higher: high, lower: low }[column().better];
    const width = panelWidth(id, 560, 260);
    const panels = facets.map(([name, rows]) => {
      const alphas = unique(rows.map((row) => row.alpha)).sort((a, b) => a - b);
      const names = unique(rows.map(down));
      if (typeof names[0] === "number") names.sort((a, b) => b - a);
      const left = 14 + 7 * Math.max(...names.map((n) => minus(n).length), downTitle.length);
      const cell = Math.min(84, (width - left) / alphas.length);
      const height = 24 + 34 * names.length + 40;
      const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": `${columnTitle(column())}: ${name}` });
      root.append(svg("text", { x: 0, y: 12 }, name || " "));
      names.forEach((value, j) => {
        root.append(svg("text", { class: "quiet", x: left - 8, y: 24 + 34 * j + 21, "text-anchor": "end" }, `${downTitle}${minus(value)}`));
        alphas.forEach((alpha, i) => {
          const row = rows.find((r) => r.alpha === alpha && down(r) === value);
          const box = { x: left + cell * i + 1, y: 24 + 34 * j + 1, width: cell - 2, height: 32, rx: 3 };
          if (!row) return root.append(svg("rect", { ...box, class: "empty" }));
          const m = mean(row, c);
          const rgb = m === null ? null : cividis(high > low ? (m - low) / (high - low) : 0.5);
          const dark = rgb && 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2] < 128;
          const isBest = m !== null && m.toFixed(1) === best?.toFixed(1);
          const text = m === null ? (row.cells[c].text === "–" ? "–" : "✕") : m.toFixed(1);
          root.append(
            spot({ class: `pt cell${isBest ? " best" : ""}`, fill: rgb ? (dark ? "#fff" : "#000") : "var(--bad)" }, label(row, [c]), row.index,
              svg("rect", { ...box, ...(rgb ? { fill: `rgb(${rgb})` } : { class: "empty" }) }),
              svg("text", { x: box.x + box.width / 2, y: box.y + 21, "text-anchor": "middle" }, text)),
          );
        });
      });
      alphas.forEach((alpha, i) =>
        root.append(svg("text", { class: "quiet", x: left + cell * (i + 0.5), y: 24 + 34 * names.length + 16, "text-anchor": "middle" }, minus(alpha))),
      );
      root.append(svg("text", { x: left + (cell * alphas.length) / 2, y: height - 6, "text-anchor": "middle" }, "α"));
      return roving(root);
    });
    const bar = el("span", { class: "bar", style: `background: linear-gradient(to right, ${CIVIDIS.join(",")})`, "aria-hidden": "true" });
    $(`#${id} .legend`).replaceChildren(el("span", { class: "scale" }, `${columnTitle(column())}: ${minus(low.toFixed(1))}`, bar, minus(high.toFixed(1))));
    figure(id, [el("b", {}, caption), best === undefined ? " ✕: failed." : " Framed: the best; ✕: failed."], panels);
  }

  function drawFigures() {
    drawPlane();
    drawLines("alpha", "alpha", "α");
    drawLines("lam", "lam", "λ");
    drawMaps("divergence-alpha", (row) => row.series.divergence_alpha, (row) => row.labels.divergence, "", "Over divergence and α.");
    drawMaps("alpha-lam", (row) => row.series.alpha_lam, (row) => row.lam, "λ ", "Over α and λ.");
  }

  function buildFigures() {
    const select = el("select", { id: "score", onchange: () => { chosen.column = +select.value; drawFigures(); } },
      [[false, "Scores"], [true, "More scores"]].map(([further, name]) => {
        const options = data.columns.flatMap((c, i) => (c.further === further ? [option(i, columnTitle(c))] : []));
        return options.length ? el("optgroup", { label: name }, options) : null;
      }));
    select.value = chosen.column;
    $("#figure-tools").append(el("label", {}, "Score drawn ", select));
  }

  // ---- training ----------------------------------------------------------------------------------

  const training = { key: null, log: false, smooth: false };

  /** Each value's mean with its neighbours, a fortieth of the curve to either side. */
  function smoothed(curve) {
    const reach = Math.max(1, Math.round(curve.length / 40));
    return curve.map(([step], i) => {
      const near = curve.slice(Math.max(0, i - reach), i + reach + 1);
      return [step, near.reduce((sum, [, y]) => sum + y, 0) / near.length];
    });
  }

  function buildTraining() {
    const keys = unique([...data.runs, ...data.unfinished].flatMap((run) => Object.keys(run.curves))).sort();
    if (!keys.length) return $("#training").remove();
    training.key = ["train/loss", "valid/loss"].find((key) => keys.includes(key)) ?? keys[0];
    const select = el("select", { id: "curve", onchange: () => { training.key = select.value; drawTraining(); } }, keys.map((key) => option(key, key)));
    select.value = training.key;
    const smooth = el("input", { type: "checkbox", id: "smooth", onchange: () => { training.smooth = smooth.checked; drawTraining(); } });
    const log = el("input", { type: "checkbox", onchange: () => { training.log = log.checked; drawTraining(); } });
    $("#training .tools").append(el("label", {}, "Curve ", select), el("label", {}, log, "logarithmic"), el("label", {}, smooth, "smoothed"));
  }

  const WITHOUT = "without a result";

  /** The runs whose curve is drawn: how each ended, in words where it did not just train, and its row, if any. */
  function curvesShown() {
    const finished = data.runs.filter(isRunShown).map((run) => {
      const failed = run.outcome !== "trained";
      const ending = run.diverged === null ? run.outcome : `diverged at step ${run.diverged}`;
      return { name: runName(run), group: data.rows[run.row].name, row: run.row, ending: failed ? ending : "", failed, diverged: run.diverged, curves: run.curves };
    });
    const others = data.unfinished.map((run) => {
      const ending = [run.state, run.note].filter(Boolean).join(": ");
      return { name: run.name, group: WITHOUT, row: null, ending, failed: run.state === "failed", diverged: null, curves: run.curves };
    });
    return [...finished, ...others].filter((run) => run.curves[training.key]?.length || run.diverged !== null);
  }

  function drawTraining() {
    if (!training.key) return;
    const all = curvesShown();
    const runs = all.filter((run) => !offOf("curves").has(run.group));
    const rows = data.rows.filter((row) => all.some((run) => run.row === row.index));
    const begun = all.filter((run) => run.row === null).length;
    const counts = ["diverged", "collapsed"].map((outcome) => [data.runs.filter((run) => isRunShown(run) && run.outcome === outcome).length, outcome]);
    const words = [...counts, [begun, WITHOUT]].filter(([n]) => n).map(([n, word]) => `${n} ${word}`);
    const note = words.length ? [el("span", { class: "failed" }, `✕ ${words.join(", ")}`)] : [];
    legend("curves", [...rows.map((row) => [row.name, row.index]), ...(begun ? [[WITHOUT, WITHOUT_RESULT]] : [])], drawTraining, note);
    const caption = [
      el("b", {}, `${training.key} against the optimiser step, `), `a line for each run${training.smooth ? ", smoothed" : ""}`,
      words.length ? "; dotted, ending in ✕: it diverged, collapsed or has no result (cut far above and below the others)." : ".",
    ];
    const usable = (run) => {
      const curve = (run.curves[training.key] ?? []).filter(([, y]) => !training.log || y > 0);
      return training.smooth ? smoothed(curve) : curve;
    };
    const points = runs.flatMap(usable);
    if (!points.length) return figure("curves", caption, [el("p", { class: "note" }, "Nothing of this is shown.")]);
    const width = panelWidth("curves", 1180);
    const x = [0, Math.max(1, ...points.map(([step]) => step), ...runs.map((run) => run.diverged ?? 0)) * 1.02];
    const calm = runs.filter((run) => !run.failed).flatMap(usable);
    const others = (calm.length ? calm : points).map(([, v]) => v);
    const [low, high] = [Math.min(...others), Math.max(...others)];
    const within = (v) => Math.min(Math.max(v, low - (high - low) / 2), high + (high - low) / 2); // or one that explodes flattens all
    const ys = points.map(([, v]) => within(v));
    const y = training.log ? [Math.min(...ys) * 0.95, Math.max(...ys) * 1.05] : padded(ys, 0.06);
    const { root, sx, sy, inner } = axes({
      width, height: 340, x, y, xTicks: niceTicks(x[0], x[1], width > 600 ? 10 : 5), log: training.log,
      xTitle: "optimiser step", yTitle: training.key, label: `${training.key} against the optimiser step`,
    });
    const [spots, taken, names] = [[], [], []];
    for (const run of runs) {
      const curve = usable(run);
      if (!curve.length && run.diverged === null) continue;
      const d = curve.map(([step, v], n) => `${n ? "L" : "M"}${sx(step).toFixed(1)} ${sy(within(v)).toFixed(1)}`).join("");
      const end = [sx(run.diverged ?? curve.at(-1)[0]), curve.length ? sy(within(curve.at(-1)[1])) : inner.bottom - 8];
      const colouring = run.failed ? "var(--bad)" : run.row === null ? "var(--muted)" : colour(run.row);
      const ink = { stroke: colouring, "stroke-dasharray": run.ending ? "1 3" : dash(run.row) };
      if (curve.length) root.append(svg("path", { class: run.ending ? "line ended" : runs.length > 12 ? "line fine" : "line", d: `${d}L${end.join(" ")}`, ...ink, "data-row": run.row }));
      const last = curve.length ? `${training.key}: ${short(curve.at(-1)[1])} at step ${curve.at(-1)[0]}` : null;
      spots.push(
        spot({ transform: `translate(${end.map((v) => v.toFixed(1)).join(" ")})` }, [run.name, run.ending, last].filter(Boolean).join("\n"), run.row, halo(),
          run.ending ? svg("path", { class: "stroke", d: CROSS, stroke: colouring }) : marker(run.row)),
      );
      taken.push([end[0] - 6, end[1] - 6, 12, 12]);
      if (run.row === null) names.push([clip(run.ending, 36), end]);
    }
    root.append(...spots, ...names.map(([text, end]) => nameBeside(text, end, inner, width, taken) ?? ""));
    figure("curves", caption, [roving(root)]);
  }

  // ---- answers side by side ----------------------------------------------------------------------

  const browser = { set: 0, prompt: 0, search: "", runs: new Set() };
  const words = (text) => [...text.matchAll(/[\p{L}\p{N}]+/gu)].map((m) => [m[0].toLowerCase(), m.index, m[0].length]);

  /** The words of `text` in its longest common subsequence with the reference that it is nearest to. */
  function matched(text, references) {
    const own = words(text);
    let best = { f1: -1, indices: [], of: 0 };
    for (const reference of references) {
      const theirs = words(reference).map(([word]) => word);
      const table = Array.from({ length: own.length + 1 }, () => new Uint16Array(theirs.length + 1));
      for (let i = own.length - 1; i >= 0; i--) {
        for (let j = theirs.length - 1; j >= 0; j--) {
          table[i][j] = own[i][0] === theirs[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
        }
      }
      const f1 = (2 * table[0][0]) / (own.length + theirs.length || 1);
      if (f1 <= best.f1) continue;
      const indices = [];
      for (let i = 0, j = 0; i < own.length && j < theirs.length; ) {
        if (own[i][0] === theirs[j]) { indices.push(i); i++; j++; }
        else if (table[i + 1][j] >= table[i][j + 1]) i++;
        else j++;
      }
      best = { f1, indices, of: theirs.length };
    }
    const pieces = [];
    let end = 0;
    for (const i of best.indices) {
      const [, start, length] = own[i];
      pieces.push(text.slice(end, start), el("mark", {}, text.slice(start, start + length)));
      end = start + length;
    }
    pieces.push(text.slice(end));
    return { pieces, count: best.indices.length, of: best.of };
  }

  const runsWithAnswers = () => {
    const found = new Set(data.generations.flatMap((g) => g.prompts.flatMap((p) => Object.keys(p[3]).map(Number))));
    return data.runs.filter((run) => found.has(run.index));
  };

  function promptsFound() {
    const wanted = browser.search.toLowerCase();
    const all = data.generations[browser.set].prompts;
    return all.map((prompt, i) => [i, prompt]).filter(([, p]) => !wanted || `${p[0]} ${p[1]} ${p[2].join(" ")}`.toLowerCase().includes(wanted));
  }

  function buildAnswers() {
    const available = data.generations.filter((g) => g.prompts.length);
    if (!available.length) {
      const why = data.generations.length ? `the page has no room for them below ${data.megabytes} MB` : "the runs' folders hold none";
      $("#answers").replaceChildren(el("h2", {}, "Answers side by side"), el("p", { class: "note" }, `No answers are shown: ${why}.`));
      return;
    }
    available.sort((a, b) => sets.indexOf(a.set) - sets.indexOf(b.set));
    data.generations = available;
    const runs = runsWithAnswers();
    const c = data.columns.findIndex((col) => col.key === data.quality);
    const having = (seed) => runs.filter((run) => run.seed === seed);
    const alike = runs.map((run) => having(run.seed)).reduce((most, next) => (next.length > most.length ? next : most));
    const ranked = alike.filter((run) => mean(data.rows[run.row], c) !== null)
      .sort((a, b) => mean(data.rows[b.row], c) - mean(data.rows[a.row], c));
    const first = (test) => ranked.find((run) => test(data.rows[run.row]));
    const begin = [first((row) => row.teacher), first((row) => row.baseline && !row.teacher), first((row) => !row.baseline)];
    const settings = new Set();
    for (const run of [...begin.filter(Boolean), ranked.at(-1) ?? alike[0], ...alike, ...runs]) {
      if (browser.runs.size < 3 && !settings.has(run.row)) browser.runs.add(run.index);
      settings.add(run.row);
    }

    const set = el("select", { id: "answer-set", onchange: () => { browser.set = +set.value; browser.prompt = 0; drawAnswers(); } },
      available.map((g, i) => option(i, g.set)));
    const search = el("input", { id: "answer-search", type: "search", placeholder: "words in the prompt", oninput: () => { browser.search = search.value; browser.prompt = 0; drawAnswers(); } });
    const prompt = el("select", { id: "answer-prompt", onchange: () => { browser.prompt = +prompt.value; drawAnswers(); } });
    const step = (by) => () => { browser.prompt += by; drawAnswers(); };
    $("#answers .tools").append(
      el("label", {}, "Set ", set),
      el("label", {}, "Find ", search),
      el("button", { type: "button", id: "previous", onclick: step(-1) }, "← Previous"),
      el("button", { type: "button", id: "next", onclick: step(1) }, "Next →"),
      el("label", { class: "prompts" }, "Prompt ", prompt),
    );
    const cut = available.filter((g) => g.prompts.length < g.total).map((g) => `${g.prompts.length} of ${g.total} of ${g.set}`);
    const without = data.runs.length - runs.length;
    $("#answers > .note").textContent =
      "Marked: the words of an answer in its longest common subsequence with the nearest reference, what ROUGE-L counts (which also joins forms of a word)." +
      (cut.length ? ` Only the first prompts are here, so that the page stays below ${data.megabytes} MB: ${cut.join(", ")}.` : "") +
      (without ? ` ${without} run${without > 1 ? "s have" : " has"} no answers here.` : "");
  }

  function drawAnswers() {
    if (!$("#answer-prompt")) return;
    const runs = runsWithAnswers().filter(isRunShown);
    const boxes = runs.map((run) => {
      const toggle = () => { box.checked ? browser.runs.add(run.index) : browser.runs.delete(run.index); drawSides(); };
      const box = el("input", { type: "checkbox", value: run.index, onchange: toggle });
      box.checked = browser.runs.has(run.index);
      return el("label", {}, box, " ", runName(run));
    });
    $("#answer-runs .choices").replaceChildren(...boxes);
    const found = promptsFound();
    browser.prompt = Math.max(0, Math.min(browser.prompt, found.length - 1));
    const select = $("#answer-prompt");
    select.replaceChildren(...found.map(([i, p], n) => option(n, `${i + 1}. ${clip(`${p[0]} ${p[1]}`.trim(), 90)}`)));
    select.value = browser.prompt;
    $("#previous").disabled = browser.prompt === 0;
    $("#next").disabled = browser.prompt >= found.length - 1;
    drawSides();
  }

  function drawSides() {
    const found = promptsFound();
    const shown = data.runs.filter((run) => browser.runs.has(run.index) && isRunShown(run));
    $("#answer-runs summary").textContent = `Runs side by side (${shown.length})`;
    if (!found.length) {
      $("#prompt").replaceChildren("No prompt has these words.");
      return $("#side-by-side").replaceChildren();
    }
    const [index, [instruction, input, references, answers]] = found[browser.prompt];
    $("#prompt").replaceChildren(
      el("h3", {}, `Prompt ${index + 1}`), el("p", {}, instruction, input ? `\n${input}` : ""),
      el("h3", {}, references.length > 1 ? "References" : "Reference"),
      ...references.map((reference) => el("p", {}, reference)),
    );
    $("#side-by-side").replaceChildren(
      ...shown.map((run) => {
        const drawn = answers[run.index] ?? [];
        return el(
          "article", { "data-run": run.index },
          el("h3", {}, data.rows[run.row].name), el("small", { class: "note" }, `training seed ${run.seed} · ${run.folder}/generations`),
          drawn.length ? null : el("div", { class: "answer" }, el("small", {}, "no answer to this prompt")),
          drawn.map(([seed, text, tokens, ended]) => {
            const { pieces, count, of } = matched(text, references);
            const facts = [`sampling seed ${seed}`, tokens === null ? null : `${tokens} tokens`, ended === false ? "not ended" : null, `${count} of ${of} reference words`];
            return el("div", { class: "answer" }, pieces, el("small", {}, facts.filter(Boolean).join(" · ")));
          }),
        );
      }),
    );
    if (!shown.length) $("#side-by-side").append(el("p", { class: "note" }, "No run is chosen."));
  }

  // ---- the rest ----------------------------------------------------------------------------------

  function plainTable(heads, lines, numbersFrom) {
    const kind = (i) => ({ class: i >= numbersFrom ? "number" : null });
    return [
      el("thead", {}, el("tr", {}, heads.map((head, i) => el("th", { scope: "col", ...kind(i) }, head)))),
      el("tbody", {}, lines.map((line) => el("tr", {}, line.map((cell, i) => el("td", kind(i), cell))))),
    ];
  }

  function buildClaims() {
    if (!data.claims.length) return $("#claims").remove();
    const kinds = { holds: "✓ ", "does not hold": "✕ ", "cannot be told": "? " };
    const classes = { holds: "holds", "does not hold": "not", "cannot be told": "unknown" };
    $("#claims ul").append(
      ...data.claims.map((claim) =>
        el("li", {}, el("b", { class: classes[claim.verdict] }, kinds[claim.verdict] + claim.verdict), claim.text, " ", el("span", {}, `(${claim.why})`)),
      ),
    );
    $("#claims .note").textContent = data.claimsNote;
  }

  function buildSections() {
    data.sections.forEach((section, i) =>
      $("#sections").append(
        el("section", { id: `section-${i}` }, el("h2", {}, section.title),
          el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": section.title }, el("table", {}, plainTable(section.heads, section.lines, 1))),
          el("p", { class: "note" }, section.note)),
      ),
    );
  }

  const duration = (s) => (s < 60 ? `${Math.round(s)} s` : s < 3600 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`);

  function drawRuns() {
    const lines = data.runs.filter(isRunShown).map((run) =>
      el("tr", { "data-row": run.row },
        el("td", {}, data.rows[run.row].name),
        el("td", { class: "number" }, run.seed),
        el("td", { class: run.outcome === "trained" ? null : "failed" }, run.diverged === null ? run.outcome : `diverged at step ${run.diverged}`),
        el("td", { class: "number" }, duration(run.seconds)),
        el("td", {}, Object.entries(run.config).map(([key, value]) => el("code", {}, el("span", { class: "note" }, `${key}: `), value))),
        el("td", {}, el("code", { title: run.folder }, clip(run.name, 48)), el("code", {}, run.hash)),
      ),
    );
    const heads = ["Setting", "Seed", "Outcome", "Time", "Configuration, where it differs from the common part", "Run and hash"];
    $("#runs > .wide table").replaceChildren(
      el("thead", {}, el("tr", {}, heads.map((head, i) => el("th", { scope: "col", class: i === 1 || i === 3 ? "number" : null }, head)))),
      el("tbody", {}, lines),
    );
  }

  function buildRuns() {
    const common = Object.entries(data.common);
    if (!common.length) $("#common").remove();
    else $("#common table").append(...plainTable(["Key", "Value"], common.map(([k, v]) => [el("code", {}, k), el("code", {}, v)]), 9));
    const versions = Object.entries(data.versions).map(([name, all]) => `${name} ${all.join(" and ")}`);
    $("#versions").textContent = versions.length ? `Versions: ${versions.join(", ")}.` : "";
  }

  function buildHead() {
    document.title = data.title;
    $("#title").textContent = data.title;
    const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
    const failed = data.runs.filter((run) => run.outcome !== "trained").length;
    const parts = [count(data.runs.length, "run"), `of ${count(data.rows.length, "setting")},`, failed ? `${failed} failed,` : "", data.unfinished.length ? `${data.unfinished.length} more without a result,` : "", `scored on ${sets.filter((s) => s !== data.average).join(", ")}`];
    $("#summary").textContent = parts.filter(Boolean).join(" ") + ".";
    for (const section of document.querySelectorAll("main section")) {
      $("#nav").append(el("a", { href: `#${section.id}` }, $("h2", section).textContent));
    }
  }

  function drawAll() {
    drawTable();
    drawFigures();
    drawTraining();
    drawAnswers();
    drawRuns();
  }

  buildFilters();
  buildTable();
  buildClaims();
  buildFigures();
  buildTraining();
  buildAnswers();
  buildSections();
  buildRuns();
  buildHead();
  drawAll();

  let drawnAt = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === drawnAt) return;
    drawnAt = innerWidth;
    requestAnimationFrame(() => { pinLabels(); drawFigures(); drawTraining(); });
  });
  const opened = [];
  addEventListener("beforeprint", () => document.querySelectorAll("#common:not([open])").forEach((d) => { d.open = true; opened.push(d); }));
  addEventListener("afterprint", () => opened.splice(0).forEach((d) => (d.open = false)));
})();
