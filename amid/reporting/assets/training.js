// Training curves

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
    const ending = run.diverged === null ? run.outcome : `diverged at step ${run.diverged}`;
    return { name: runName(run), group: data.rows[run.row].name, row: run.row, ending: run.failed ? ending : "", failed: run.failed, diverged: run.diverged, curves: run.curves };
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
  if (!points.length) return figure("curves", caption, [el("p", { class: "note" }, "No chosen row has this score.")]);
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
    xTitle: "Optimiser step", yTitle: training.key, label: `${training.key} against the optimiser step`,
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
