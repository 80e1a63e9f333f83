// Figures over the settings: curves, the plane, maps

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
  figure(id, [el("b", {}, `Effect of ${symbol}. `), "Error bars show the standard deviation; dashed lines are baselines; ✕ marks a failed run."], panels);
}

function linePanel(series, baselines, key, symbol, c, columns, width) {
  const rows = series.flatMap(([, , members]) => members);
  const levels = baselines.filter((row) => mean(row, c) !== null).sort((a, b) => mean(a, c) - mean(b, c));
  const ys = [...rows, ...levels].flatMap((row) => (mean(row, c) === null ? [] : [mean(row, c) - std(row, c), mean(row, c) + std(row, c)]));
  const xs = unique(rows.map((row) => row[key])).sort((a, b) => a - b);
  if (!xs.length || !ys.length) return el("p", { class: "note" }, "No chosen row has this score.");
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
    el("b", {}, `${column().title} against ${data.columns[diversity].title}. `),
    `${up ? `${up > 0 ? "Higher" : "Lower"} is better, and further left` : "Further left"} is more diverse.`,
    up ? " The ringed points on the dotted line are the Pareto front: no other student is better in both." : "",
  ];
  if (!rows.length) return figure("plane", caption, [el("p", { class: "note" }, "No chosen row has this score.")]);
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
  drawMaps("divergence-alpha", (row) => row.series.divergence_alpha, (row) => row.labels.divergence, "", "By divergence and α.");
  drawMaps("alpha-lam", (row) => row.series.alpha_lam, (row) => row.lam, "λ ", "By α and λ.");
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
