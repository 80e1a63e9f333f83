// Answers side by side

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
    const why = data.generations.length ? `they would make the page larger than ${data.megabytes} MB` : "the folders of the runs hold none";
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
    "Marked words are in the longest common subsequence of the answer and its nearest reference. ROUGE-L counts them (it also joins forms of a word)." +
    (cut.length ? ` To keep the page below ${data.megabytes} MB, it holds only the first prompts: ${cut.join(", ")}.` : "") +
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
    $("#prompt").replaceChildren("No prompt contains these words.");
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
