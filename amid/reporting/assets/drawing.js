// Marks, axes, tips: what all figures are drawn with

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
