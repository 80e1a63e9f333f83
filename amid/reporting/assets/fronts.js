// Quality at a diversity that the reader chooses

function frontsSection(section, index) {
  const { rows, ladder, qualities, diversities, sets: places, views } = section.fronts;
  const node = $(`#section-${index}`);
  const at = { quality: qualities[0].name, diversity: diversities[0].name, set: places[0], stop: 0 };
  const view = () => views[`${at.quality}/${at.diversity}/${at.set}`];
  const titleOf = (all, name) => all.find((of) => of.name === name).title;
  const baselines = rows.filter((row) => data.rows[row].baseline);
  const grid = rows.filter((row) => !data.rows[row].baseline);
  const number = (row) => (data.rows[row].baseline ? BASELINES : grid.indexOf(row));
  const dashOf = (row) => (data.rows[row].baseline ? ["", "7 3", "2 3", "9 3 2 3"][baselines.indexOf(row) % 4] : dash(number(row)));

  const choose = (name, text, options) => {
    const select = el("select", { "data-choice": name, onchange: () => { at[name] = select.value; reset(); } }, options);
    select.value = at[name];
    return options.length > 1 ? el("label", {}, `${text} `, select) : null;
  };
  const slider = el("input", { type: "range", min: 0, step: 1, "data-choice": "stop", "aria-label": "Diversity", style: "width: min(24em, 60vw)", oninput: () => { at.stop = +slider.value; draw(); } });
  const told = el("b", { "aria-live": "polite" });
  const targets = el("span", {});
  const tools = el("div", { class: "tools" },
    choose("quality", "Quality", qualities.map((of) => option(of.name, of.title))),
    choose("diversity", "Diversity", diversities.map((of) => option(of.name, minus(of.title)))),
    choose("set", "Set", places.map((name) => option(name, name === data.average ? "mean of all sets" : name))),
    el("label", {}, "Compare at ", slider, " ", told), targets);
  const panel = el("div", {});
  const table = el("table", { class: "fronts" });
  const figureNode = el("figure", {}, el("figcaption", {}, el("b", {}, "Quality over diversity. "), `Each curve is one setting, each marker a ${ladder}. At equal diversity, the higher curve is better. The line is the chosen diversity.`), el("div", { class: "panels one" }, panel));
  const chosenTable = el("div", { class: "wide", style: "margin-bottom: 1.5em", tabindex: 0, role: "region", "aria-label": "Quality at the chosen diversity" }, table);
  $("h2", node).after(tools, figureNode, chosenTable);

  function reset() {
    const { stops, marks } = view();
    slider.max = stops.length - 1;
    const wanted = marks.length ? marks[0][1] : (stops[0] + stops.at(-1)) / 2;
    at.stop = stops.reduce((near, stop, i) => (Math.abs(stop - wanted) < Math.abs(stops[near] - wanted) ? i : near), 0);
    slider.value = at.stop;
    targets.replaceChildren(...marks.map(([name, diversity]) =>
      el("button", { type: "button", onclick: () => { at.stop = stops.indexOf(diversity); slider.value = at.stop; draw(); } }, `${name}: ${diversity.toFixed(1)}`)));
    draw();
  }

  function drawFigure(shown) {
    const { stops, rows: curves } = view();
    const points = shown.flatMap((i) => curves[i].knots);
    if (!points.length) return panel.replaceChildren(el("p", { class: "note" }, "No setting is chosen."));
    const width = Math.max(300, Math.min(1100, node.clientWidth - 24));
    const x = padded(points.map((knot) => knot[1]), 0.04);
    const rungs = unique(curves.flatMap((curve) => curve.knots.map((knot) => knot[0]))).sort((a, b) => a - b);
    const { root, sx, sy, inner } = axes({
      width, height: Math.min(460, Math.max(320, width * 0.5)), x, y: padded(points.map((knot) => knot[2]), 0.06),
      xTicks: niceTicks(x[0], x[1], width > 600 ? 8 : 5), xTitle: `${minus(titleOf(diversities, at.diversity))}  (← more diverse)`,
      yTitle: titleOf(qualities, at.quality), label: "Quality over diversity",
    });
    const here = sx(stops[at.stop]);
    root.append(svg("line", { class: "axis", x1: here, x2: here, y1: inner.top, y2: inner.bottom, "stroke-dasharray": "2 3" }));
    const ends = [];
    for (const i of shown) {
      const row = rows[i];
      const ink = colour(number(row));
      const { knots, at: values } = curves[i];
      const inside = stops.map((stop, k) => [stop, values[k]]).filter(([, value]) => value !== null);
      const all = [...inside, ...knots.filter((knot) => [Math.min, Math.max].some((end) => knot[1] === end(...knots.map((other) => other[1])))).map((knot) => [knot[1], knot[2]])].sort((a, b) => a[0] - b[0]);
      root.append(svg("path", { class: "line", d: all.map(([d, q], k) => `${k ? "L" : "M"}${sx(d).toFixed(1)} ${sy(q).toFixed(1)}`).join(""), stroke: ink, "stroke-dasharray": dashOf(row) }));
      for (const [rung, d, q] of knots) {
        root.append(spot({ transform: `translate(${sx(d)} ${sy(q)})` },
          `${data.rows[row].name}\n${ladder} ${rung}\n${titleOf(qualities, at.quality)}: ${q.toFixed(2)}\n${titleOf(diversities, at.diversity)}: ${d.toFixed(2)}`, row,
          halo(7), svg("path", { class: "mark", d: shape(rungs.indexOf(rung)), fill: ink, transform: "scale(0.8)" })));
      }
      ends.push([row, all.at(-1)]);
    }
    const taken = shown.flatMap((i) => curves[i].knots.map(([, d, q]) => [sx(d) - 5, sy(q) - 5, 10, 10]));
    for (const [row, [d, q]] of ends) {
      const text = data.rows[row].baseline ? clip(data.rows[row].name, 24) : shortName(data.rows[row]);
      root.append(nameBeside(text, [sx(d), sy(q)], inner, width, taken) ?? "");
    }
    const legendOf = rungs.map((rung, k) => el("span", { class: "scale" }, sample("var(--muted)", shape(k)), ` ${rung}`));
    panel.replaceChildren(el("div", { class: "legend" }, el("span", { class: "scale" }, `${ladder}:`), legendOf), roving(root));
  }

  function drawTable(shown) {
    const { rows: curves, references } = view();
    const reference = references[at.stop] ?? null;
    const compared = reference !== null;
    const lines = shown.map((i) => ({ row: rows[i], value: curves[i].at[at.stop], less: curves[i].less?.[at.stop] }));
    lines.sort((a, b) => (b.value ?? -Infinity) - (a.value ?? -Infinity));
    const heads = ["Setting", titleOf(qualities, at.quality), ...(compared ? [`Difference from ${data.rows[reference].name}`] : [])];
    table.replaceChildren(
      el("thead", {}, el("tr", {}, heads.map((head, i) => el("th", { scope: "col", class: i ? "number" : null }, head)))),
      el("tbody", {}, lines.map(({ row, value, less: found }) =>
        el("tr", { "data-row": row }, el("td", {}, data.rows[row].name),
          el("td", { class: "number" }, value === null ? "not reached" : value.toFixed(2)),
          !compared ? null : row === reference ? el("td", { class: "number" }, "reference") : differenceCell(found)))));
  }

  function draw() {
    const { stops } = view();
    told.textContent = `${minus(titleOf(diversities, at.diversity))} ${stops[at.stop].toFixed(1)}`;
    const shown = rows.map((_, i) => i).filter((i) => isShown(data.rows[rows[i]]));
    drawFigure(shown);
    drawTable(shown);
  }

  reset();
  $("#filters")?.addEventListener("click", draw);
  addEventListener("resize", draw);
}

data.sections.forEach((section, index) => section.fronts && frontsSection(section, index));
