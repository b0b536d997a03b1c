// The table of episodes: only the rows in sight are elements, however many there are.
const ROW = 26;
const COLUMNS = [
  { key: "step", wide: 46, n: true, read: (e, at) => e.step[at] },
  { key: "run", wide: 96, read: (e, at) => data.runs[e.run[at]].name, when: () => data.runs.length > 1 },
  { key: "task", wide: 216, beside: 120, read: (e, at) => e.task[at] },
  { key: "sample", wide: 58, n: true, read: (e, at) => e.sample[at] },
  { key: "reward", wide: 58, n: true, read: (e, at) => e.reward[at] },
  { key: "advantage", wide: 86, n: true, read: (e, at) => (e.trained[at] ? e.advantage[at] : null) },
  { key: "status", wide: 66, read: (e, at) => e.status[at] },
  { key: "fault", wide: 130, read: (e, at) => e.cause[at] },
  { key: "mistakes", wide: 130, read: (e, at) => NAMES(e.mistakes[at]) },
  { key: "user's faults", wide: 120, read: (e, at) => NAMES(e.faults[at]) },
  { key: "staleness", wide: 76, n: true, read: (e, at) => e.staleness[at] },
  { key: "mismatch", wide: 78, n: true, read: (e, at) => e.mismatch[at] },
  { key: "turns", wide: 54, n: true, read: (e, at) => e.turns[at] },
  { key: "tokens", wide: 62, n: true, read: (e, at) => e.tokens[at] },
  { key: "calls", wide: 52, n: true, read: (e, at) => e.calls[at] },
  { key: "seconds", wide: 72, n: true, read: (e, at) => e.seconds[at] },
  { key: "ended", wide: 110, read: (e, at) => e.ended[at] },
  { key: "kind", wide: 74, read: (e, at) => e.kind[at] },
  { key: "domain", wide: 82, read: (e, at) => e.domain[at] },
  { key: "split", wide: 62, read: (e, at) => e.split[at] },
  { key: "group", wide: 58, n: true, read: (e, at) => Number(e.group[at]) || e.group[at] },
];
let shownEpisodes = [];
const rowPool = new Map();

function showEpisodes() {
  const view = find("#view-episodes");
  view.classList.toggle("open", state.open !== null);
  const columns = COLUMNS.filter((one) => !one.when || one.when());
  const several = data.runs.length > 1;  // a column names the run then
  const template = columns.map((one) => `${(several && one.beside) || one.wide}px`).join(" ");
  const count = make("span", { class: "soft", id: "count", role: "status" });
  const head = make("div", { class: "head", role: "row", style: `grid-template-columns:${template}` });
  const body = make("div", { class: "body", role: "rowgroup" });
  const grid = make("div", { class: "grid", id: "grid", role: "grid", tabindex: "0", "aria-label": "Episodes; arrow keys move, Enter opens" }, head, body);
  const heads = () => head.replaceChildren(...columns.map((one) => {
    const own = state.sort.key === one.key;
    return make("button", { type: "button", role: "columnheader", title: one.key, class: one.n ? "n" : "", "aria-sort": own ? (state.sort.down ? "descending" : "ascending") : "none",
      onclick: () => { state.sort = { key: one.key, down: own ? !state.sort.down : Boolean(one.n) }; refresh(); } }, one.key + (own ? (state.sort.down ? " ▾" : " ▴") : ""));
  }));
  const cell = (one, at) => {
    const value = one.read(data.episodes, at);
    const kind = one.key === "reward" && value !== null ? (value > 0.5 ? "good" : "bad") : ["fault", "user's faults"].includes(one.key) && value ? "bad" : "";
    return make("span", { role: "gridcell", class: `${one.n ? "n " : ""}${kind}`, title: String(value ?? "") }, value === "" || value === null ? "" : short(value));
  };
  const paint = () => {
    const from = Math.max(0, Math.floor(grid.scrollTop / ROW) - 8), to = Math.min(shownEpisodes.length, from + Math.ceil(grid.clientHeight / ROW) + 16);
    for (const [place, row] of rowPool) if (place < from || place >= to) { row.remove(); rowPool.delete(place); }
    for (let place = from; place < to; place++) {
      if (rowPool.has(place)) continue;
      const at = shownEpisodes[place];
      const row = make("div", { class: "row", role: "row", "aria-rowindex": place + 2, "aria-selected": String(at === state.open), id: `row-${place}`, style: `top:${place * ROW}px;grid-template-columns:${template}`, onclick: () => openEpisode(at) }, columns.map((one) => cell(one, at)));
      rowPool.set(place, row); body.append(row);
    }
  };
  const refresh = (rebuild) => {
    if (rebuild === true) { showEpisodes(); return; }
    shownEpisodes = chosenEpisodes();
    heads();
    rowPool.clear(); body.replaceChildren(); body.style.height = `${shownEpisodes.length * ROW}px`;
    grid.setAttribute("aria-rowcount", String(shownEpisodes.length + 1));
    const finished = shownEpisodes.filter((at) => data.episodes.reward[at] !== null);
    const mean = finished.reduce((sum, at) => sum + data.episodes.reward[at], 0) / finished.length;
    count.textContent = `${shownEpisodes.length} of ${data.episodes.run.length} episodes` + (finished.length ? `, mean reward ${short(mean)}` : "") + (data.known > data.episodes.run.length ? `; ${data.known - data.episodes.run.length} older ones are not in this page` : "");
    grid.scrollTop = 0;
    const place = state.open === null ? -1 : shownEpisodes.indexOf(state.open);
    if (place > 8) grid.scrollTop = (place - 4) * ROW;
    paint(); remember();
  };
  grid.addEventListener("scroll", () => requestAnimationFrame(paint), { passive: true });
  new ResizeObserver(paint).observe(grid);
  grid.addEventListener("keydown", (event) => {
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: 15, PageUp: -15, Home: -Infinity, End: Infinity }[event.key];
    if (move !== undefined) { event.preventDefault(); step(move); }
    if (event.key === "Enter" && shownEpisodes.length) { event.preventDefault(); openEpisode(state.open ?? shownEpisodes[0], true); }
  });
  const left = make("div", {}, filterBar(refresh), count, grid);
  view.replaceChildren(left);
  if (state.open !== null) view.append(make("article", { id: "dialogue", tabindex: "-1", "aria-label": "Dialogue" }));
  refresh();
  if (state.open !== null) showDialogue();
}

// The next or previous episode of the table.
function step(by) {
  if (!shownEpisodes.length) return;
  const now = state.open === null ? -1 : shownEpisodes.indexOf(state.open);
  const next = Math.min(shownEpisodes.length - 1, Math.max(0, now < 0 ? (by > 0 ? 0 : shownEpisodes.length - 1) : now + by));
  openEpisode(shownEpisodes[next]);
}

function openEpisode(at, focus = false) {
  const first = state.open === null, view = find("#view-episodes"), kept = find("#grid") ? find("#grid").scrollTop : 0;
  state.open = at;
  if (state.tab !== "episodes") { show("episodes"); return; }
  if (first || !find("#dialogue")) {
    view.classList.add("open");
    view.append(make("article", { id: "dialogue", tabindex: "-1", "aria-label": "Dialogue" }));
  }
  for (const [place, row] of rowPool) row.setAttribute("aria-selected", String(shownEpisodes[place] === at));
  const grid = find("#grid"), place = shownEpisodes.indexOf(at);
  grid.scrollTop = kept;
  if (place >= 0) {
    grid.setAttribute("aria-activedescendant", `row-${place}`);
    if (place * ROW < grid.scrollTop) grid.scrollTop = place * ROW;
    if ((place + 3) * ROW > grid.scrollTop + grid.clientHeight) grid.scrollTop = (place + 3) * ROW - grid.clientHeight;
  }
  remember();
  showDialogue().then(() => { if (focus) find("#dialogue").focus(); });
}
