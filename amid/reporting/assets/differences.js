// Settings less one that the reader chooses

const against = data.sections.find((section) => section.groups);
const ofBests = against?.groups.length > 1; // then each group's best is chosen at first
const signed = (x) => (x < 0 || Object.is(x, -0) ? "−" : "+") + Math.abs(x).toFixed(2);

/**
 * [difference, low, high, 1 if the interval leaves out 0] of one row of a group less another on a set, or null.
 * An infinite end is null.
 */
function less(group, set, row, other) {
  const [i, j] = [group.rows.indexOf(row), group.rows.indexOf(other)];
  const found = group.less[set][Math.max(i, j)][Math.min(i, j)];
  if (!found || i > j) return found;
  const [difference, low, high, apart] = found;
  return [-difference, high === null ? null : -high, low === null ? null : -low, apart];
}

function differenceCell(found) {
  if (!found) return el("td", { class: "number alike" }, "–");
  const [difference, low, high, apart] = found;
  return el(
    "td", { class: `number ${!apart ? "alike" : difference > 0 ? "higher" : "lower"}` },
    signed(difference), el("span", { class: "std" }, ` (${low === null ? "−∞" : signed(low)} to ${high === null ? "+∞" : signed(high)})`), el("span", { class: "apart" }, apart ? "*" : ""),
  );
}

function buildDifferences() {
  const best = against.groups.map((group) => group.best);
  const rows = against.groups.flatMap((group) => group.rows).sort((a, b) => a - b);
  const select = el("select", { id: "compare-with", onchange: drawDifferences },
    ofBests ? option("best", "the best of each pair and data") : null,
    rows.map((row) => option(row, data.rows[row].name + (best.includes(row) ? " (best)" : ""))));
  select.value = ofBests ? "best" : best[0];
  return [
    el("div", { class: "tools" }, el("label", {}, "Compare with ", select)),
    el("p", { id: "told-apart", "aria-live": "polite" }),
    el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": against.title }, el("table", { id: "differences" })),
  ];
}

function drawDifferences() {
  if (!against) return;
  const chosen = $("#compare-with").value;
  const lines = against.groups.flatMap((group) => {
    const other = chosen === "best" ? group.best : +chosen;
    const rows = group.rows.filter((row) => row !== other && !data.rows[row].teacher && isShown(data.rows[row]));
    if (!group.rows.includes(other)) return [];
    return rows.map((row) => ({ row, other, found: against.sets.map((_, set) => less(group, set, row, other)) }));
  });
  const names = chosen === "best" ? ["Best"] : [];
  const heads = ["Setting", ...names, ...against.sets];
  $("#differences").replaceChildren(
    el("thead", {}, el("tr", {}, heads.map((head, i) => el("th", { scope: "col", class: i > names.length ? "number" : null }, head)))),
    el("tbody", {}, lines.map(({ row, other, found }) =>
      el("tr", { "data-row": row },
        el("td", {}, data.rows[row].name), names.map(() => el("td", {}, data.rows[other].name)), found.map(differenceCell)))),
  );
  const told = against.sets.map((name, set) => {
    const signs = lines.map((line) => line.found[set]).filter((found) => found?.[3]).map(([difference]) => Math.sign(difference));
    const counts = [[1, "higher"], [-1, "lower"]].map(([sign, word]) => [signs.filter((s) => s === sign).length, word]).filter(([n]) => n);
    return `${name} ${counts.map(([n, word]) => `${n} ${word}`).join(", ") || "none"}`;
  });
  const reference = chosen === "best" ? "the best of its pair and data" : data.rows[chosen].name;
  const compared = lines.filter((line) => line.found.some((found) => found)).length;
  $("#told-apart").textContent = `${compared} settings are compared with ${reference}. By more than the choice of prompts explains, these differ: ${told.join("; ")}.`;
}
