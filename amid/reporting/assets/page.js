// Claims, further tables, runs, the head; and the start

function plainTable(heads, lines, numbersFrom) {
  const kind = (i) => ({ class: i >= numbersFrom ? "number" : null });
  return [
    el("thead", {}, el("tr", {}, heads.map((head, i) => el("th", { scope: "col", ...kind(i) }, head)))),
    el("tbody", {}, lines.map((line) => el("tr", {}, line.map((cell, i) => el("td", kind(i), typeof cell === "string" ? minus(cell) : cell))))),
  ];
}

function buildClaims() {
  if (!data.claims.length) return $("#claims").remove();
  const kinds = { holds: "✓ ", "does not hold": "✕ ", "undecided": "? " };
  const classes = { holds: "holds", "does not hold": "not", "undecided": "unknown" };
  $("#claims ul").append(
    ...data.claims.map((claim) =>
      el("li", {}, el("b", { class: classes[claim.verdict] }, kinds[claim.verdict] + claim.verdict), minus(claim.text), " ", el("span", {}, `(${minus(claim.why)})`)),
    ),
  );
  $("#claims .note").textContent = minus(data.claimsNote);
}

function buildSections() {
  const plain = ({ title, heads, lines }) => el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": title }, el("table", {}, plainTable(heads, lines, 1)));
  data.sections.forEach((section, i) =>
    $("#sections").append(
      el("section", { id: `section-${i}` }, el("h2", {}, section.title),
        section === against ? buildDifferences() : plain(section),
        section === against || !section.finding ? null : el("p", {}, minus(section.finding)),
        el("p", { class: "note" }, minus(section.note))),
    ),
  );
}

const duration = (s) => (s < 60 ? `${Math.round(s)} s` : s < 3600 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`);

function drawRuns() {
  const lines = data.runs.filter(isRunShown).map((run) =>
    el("tr", { "data-row": run.row },
      el("td", {}, data.rows[run.row].name),
      el("td", { class: "number" }, run.seed),
      el("td", { class: run.failed ? "failed" : null }, run.diverged === null ? run.outcome : `diverged at step ${run.diverged}`),
      el("td", { class: "number" }, duration(run.seconds)),
      el("td", {}, Object.entries(run.config).map(([key, value]) => el("code", {}, el("span", { class: "note" }, `${key}: `), value))),
      el("td", {}, el("code", { title: run.folder }, clip(run.name, 48)), el("code", {}, run.hash)),
    ),
  );
  const heads = ["Setting", "Seed", "Outcome", "Time", "Configuration (differences from the common part)", "Run and hash"];
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
  const failed = data.runs.filter((run) => run.failed).length;
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
  drawDifferences();
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
