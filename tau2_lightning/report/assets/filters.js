// Which episodes the table shows.
const NAMES = (counts) => Object.entries(counts || {}).map(([name, n]) => (n > 1 ? `${name} ${n}` : name)).join(", ");

function choices(read) {
  const found = new Set();
  for (let at = 0; at < data.episodes.run.length; at++) for (const one of [read(data.episodes, at)].flat()) if (one !== "" && one !== null) found.add(String(one));
  return [...found].sort();
}

// Each filter: its name, how it is shown, and the test of one episode against what was typed or chosen.
const FILTERS = [
  { name: "run", label: "run", options: () => data.runs.map((run, at) => [String(at), run.name]), test: (e, at, v) => e.run[at] === Number(v) },
  { name: "kind", label: "kind", options: () => choices((e, at) => e.kind[at]).map((v) => [v, v]), test: (e, at, v) => e.kind[at] === v },
  { name: "step", label: "step", hint: "3 or 3-7", test: (e, at, v) => within(e.step[at], v) },
  { name: "task", label: "task", hint: "part of it", test: (e, at, v) => e.task[at].toLowerCase().includes(v.toLowerCase()) },
  { name: "domain", label: "domain", options: () => choices((e, at) => e.domain[at]).map((v) => [v, v]), test: (e, at, v) => e.domain[at] === v },
  { name: "split", label: "split", options: () => choices((e, at) => e.split[at]).map((v) => [v, v]), test: (e, at, v) => e.split[at] === v },
  { name: "status", label: "status", options: () => choices((e, at) => e.status[at]).map((v) => [v, v]), test: (e, at, v) => e.status[at] === v },
  { name: "reward", label: "reward", hint: "0, 1, 0-0.5", test: (e, at, v) => within(e.reward[at], v) },
  { name: "fault", label: "fault", options: () => choices((e, at) => e.cause[at]).map((v) => [v, v]), test: (e, at, v) => e.cause[at] === v },
  { name: "mistake", label: "mistake", options: () => [["*", "any"], ...choices((e, at) => Object.keys(e.mistakes[at])).map((v) => [v, v])], test: (e, at, v) => (v === "*" ? Object.keys(e.mistakes[at]).length > 0 : v in e.mistakes[at]) },
  { name: "userfault", label: "user's fault", options: () => [["*", "any"], ...choices((e, at) => Object.keys(e.faults[at])).map((v) => [v, v])], test: (e, at, v) => (v === "*" ? Object.keys(e.faults[at]).length > 0 : v in e.faults[at]) },
  { name: "staleness", label: "staleness", hint: "0, 1-3, 2-", test: (e, at, v) => within(e.staleness[at], v) },
  { name: "group", label: "group", hint: "number", test: (e, at, v) => e.group[at] === v },
];

// "3", "3-7", "2-" (2 and more), "-0.5" is a number, "-1--0.2" a range.
function within(value, text) {
  if (value === null || value === undefined) return false;
  const found = /^\s*(-?\d*\.?\d+(?:e-?\d+)?)\s*(?:(-)\s*(-?\d*\.?\d+(?:e-?\d+)?)?)?\s*$/i.exec(text);
  if (!found) return true;
  const low = Number(found[1]);
  if (!found[2]) return Math.abs(value - low) < 1e-9;
  return value >= low && (found[3] === undefined || value <= Number(found[3]));
}

function chosenEpisodes() {
  const e = data.episodes;
  const tests = FILTERS.filter((one) => (state.filters[one.name] || "") !== "").map((one) => [one.test, state.filters[one.name]]);
  const found = [];
  for (let at = 0; at < e.run.length; at++) if (!state.hidden.has(e.run[at]) && tests.every(([test, value]) => test(e, at, value))) found.push(at);
  const { key, down } = state.sort;
  const read = (COLUMNS.find((one) => one.key === key) || COLUMNS[0]).read;
  const values = new Map(found.map((at) => [at, read(e, at)]));
  const sign = down ? -1 : 1;
  found.sort((a, b) => compare(values.get(a), values.get(b), sign) || a - b);
  return found;
}

// Nothing comes last, whichever way.
function compare(a, b, sign) {
  const no = (value) => value === null || value === undefined || value === "";
  if (no(a) || no(b)) return Number(no(a)) - Number(no(b));
  return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));
}

function filterBar(changed) {
  const bar = make("div", { class: "bar", role: "search", "aria-label": "Filter episodes" });
  for (const one of FILTERS) {
    const options = one.options && one.options();
    if (options && options.filter(([value]) => value !== "*").length < (one.name === "run" ? 2 : 1)) continue;
    const set = (event) => { state.filters[one.name] = event.target.value; changed(); };
    const value = state.filters[one.name] || "";
    const input = options
      ? make("select", { id: `filter-${one.name}`, onchange: set }, make("option", { value: "" }, "all"), options.map(([key, shown]) => make("option", { value: key, selected: key === value }, shown)))
      : make("input", { id: `filter-${one.name}`, class: one.name === "task" ? "" : "short", type: "search", placeholder: one.hint, value, oninput: set });
    bar.append(make("label", {}, one.label, input));
  }
  bar.append(make("button", { type: "button", onclick: () => { state.filters = {}; changed(true); } }, "clear"));
  return bar;
}
