// Curves: a card for each metric, all runs in one plot, with intervals; a click on a step opens its episodes.
const FIRST = [/^reward\/mean$/, /^eval\/.*pass\^1$/, /^frac_reward_zero_std$/, /^entropy\/all\/mean$/, /^loss\/mean$/, /^optim\/grad_norm$/, /^mismatch_kl\/all\/mean$/, /^ratio\/mean$/, /^clip_ratio\/region_mean$/,
  /^transfer_rate$/, /^user_faults$/, /^dispatcher\/errored\/all$/, /^completions\/mean_length$/, /^effective\/num_turns\/mean$/, /^batch\/staleness\/mean$/, /^off_policy\/mean$/, /^perf\/rollout_tokens_per_second$/, /^time\/rollout$/, /^time\/forward_backward$/, /^idle\/engine$/];
let watcher = null;
const plots = new Set();

function metricNames() {
  const names = [...new Set(visibleRuns().flatMap((run) => Object.keys(data.runs[run].series)))];
  const wanted = state.metrics.toLowerCase().split(/\s+/).filter(Boolean);
  const rank = (name) => { const at = FIRST.findIndex((pattern) => pattern.test(name)); return at < 0 ? FIRST.length : at; };
  const shown = names.filter((name) => (wanted.length ? wanted.every((word) => name.toLowerCase().includes(word)) : state.all || rank(name) < FIRST.length));
  return shown.sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}

function showCurves() {
  const view = find("#view-curves");
  for (const plot of plots) plot.destroy();
  plots.clear();
  if (watcher) watcher.disconnect();
  watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { watcher.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "300px" });
  const total = new Set(data.runs.flatMap((run) => Object.keys(run.series))).size;
  const names = metricNames();
  const search = make("input", { id: "metric-search", type: "search", placeholder: "part of a name", value: state.metrics, oninput: (event) => { state.metrics = event.target.value; remember(); fill(); } });
  const all = make("button", { id: "all-metrics", type: "button", "aria-pressed": String(state.all), onclick: () => { state.all = !state.all; remember(); showCurves(); } }, `all ${total} metrics`);
  const note = make("span", { class: "soft" }, "Bands: 95% interval (solid edge), or smallest to largest value (pale). A click opens the step's episodes.");
  const cards = make("div", { class: "cards" });
  view.replaceChildren(...data.pools.map(poolTables).flat(), make("div", { class: "bar" }, make("label", {}, "metrics", search), all, note), cards);
  const fill = () => {
    for (const plot of plots) plot.destroy();
    plots.clear();
    const found = metricNames();
    cards.replaceChildren(...found.map(card));
    if (!found.length) cards.append(make("p", {}, total ? "No metric has this name." : "The runs have logged no metrics yet."));
  };
  if (names.length || total === 0) fill(); else fill();
}

// pass^k over the runs of a sweep, a table for each domain.
function poolTables(pool) {
  const text = (one) => (one ? short(one.mean) + (one.low === null ? "" : ` [${short(one.low)}, ${short(one.high)}]`) : "–");
  return Object.entries(pool.domains).map(([domain, { pass_hat: rows, stamps_differ_in: differ }]) => {
    const columns = ["before", "after", "change", "score"].filter((name) => Object.values(rows).some((row) => row[name]));
    const head = [`mean over ${pool.ended.length} of ${pool.runs.length} runs, 95% interval over runs: ${domain}`, pool.label].filter(Boolean).join("; ");
    return make("table", { class: "plain pool" },
      make("caption", {}, head + (differ.length ? ` — NOT COMPARABLE, stamps differ in ${differ.join("; ")}` : "")),
      make("thead", {}, make("tr", {}, make("th", {}, ""), columns.map((name) => make("th", { scope: "col", class: "n" }, name)))),
      make("tbody", {}, Object.entries(rows).map(([name, row]) => make("tr", {}, make("th", { scope: "row" }, name), columns.map((column) => make("td", { class: "n" }, text(row[column])))))));
  });
}

function card(name) {
  const plot = make("div", { class: "plot", tabindex: "0", role: "img", "aria-label": describe(name) });
  plot.dataset.metric = name;
  const one = make("div", { class: "card" }, make("h3", {}, name), plot, make("div", { class: "value", "aria-live": "off" }));
  watcher.observe(plot);
  return one;
}

function describe(name) {
  const parts = visibleRuns().map((run) => [data.runs[run].name, data.runs[run].series[name]]).filter(([, series]) => series && series.x.length);
  return `${name}: ${parts.map(([run, series]) => `${run} from ${short(series.y[0])} to ${short(series.y[series.y.length - 1])} over ${series.x.length} points`).join("; ")}`;
}

function draw(holder) {
  const name = holder.dataset.metric;
  const runs = visibleRuns().filter((run) => data.runs[run].series[name] && data.runs[run].series[name].x.length);
  const steps = [...new Set(runs.flatMap((run) => data.runs[run].series[name].x))].sort((a, b) => a - b);
  const place = new Map(steps.map((step, at) => [step, at]));
  const columns = [steps], series = [{ label: "step" }], bands = [], lines = [];
  const column = (xs, ys) => { const out = new Array(steps.length).fill(null); xs.forEach((x, at) => { out[place.get(x)] = ys[at]; }); return out; };
  for (const run of runs) {
    const one = data.runs[run].series[name], colour = runColour(run);
    if (one.band) {
      const edge = one.band === "interval" ? `${colour}55` : "transparent";
      columns.push(column(one.x, one.hi), column(one.x, one.lo));
      for (const end of ["high", "low"]) series.push({ label: end, stroke: edge, width: 1, points: { show: false }, spanGaps: true });
      bands.push({ series: [columns.length - 2, columns.length - 1], fill: one.band === "interval" ? `${colour}2e` : `${colour}17` });
    }
    columns.push(column(one.x, one.y));
    series.push({ label: data.runs[run].name, stroke: colour, width: 1.8, spanGaps: true, points: { show: one.x.length < 60, size: 5 } });
    lines.push({ run, at: columns.length - 1, one });
  }
  const axis = { stroke: css("--soft"), grid: { stroke: css("--line"), width: 0.5 }, ticks: { stroke: css("--line"), width: 1, size: 4 }, gap: 4, font: "11px system-ui" };
  const value = find(".value", holder.parentElement);
  const tell = (plot) => {
    const at = plot.cursor.idx;
    value.textContent = at === null || at === undefined ? "" : `step ${steps[at]}: ${lines.map(({ at: line, one }) => {
      const y = columns[line][at]; if (y === null) return null;
      const k = one.x.indexOf(steps[at]);
      return short(y, 4) + (one.band && one.lo[k] !== null ? ` [${short(one.lo[k])}, ${short(one.hi[k])}]` : "");
    }).filter(Boolean).join(" · ")}`;
  };
  const plot = new uPlot({
    width: Math.max(240, holder.clientWidth), height: 190, legend: { show: false }, scales: { x: { time: false }, y: { range: around } }, padding: [8, 8, 0, 0],
    axes: [{ ...axis, size: 26, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000, 100000] }, { ...axis, size: 46, values: (_, ticks) => ticks.map((tick) => short(tick)) }],
    series, bands, cursor: { drag: { x: true, y: false } }, hooks: { setCursor: [tell] },
  }, columns, holder);
  plots.add(plot);
  const open = () => {
    const at = plot.cursor.idx;
    if (at === null || at === undefined) return;
    const near = lines.filter(({ at: line }) => columns[line][at] !== null);
    if (!near.length) return;
    const y = plot.posToVal(plot.cursor.top, "y");
    near.sort((a, b) => Math.abs(columns[a.at][at] - y) - Math.abs(columns[b.at][at] - y));
    openStep(near[0].run, steps[at], name);
  };
  let pressed = 0;
  plot.over.addEventListener("mousedown", (event) => { pressed = event.clientX; });
  plot.over.addEventListener("click", (event) => { if (Math.abs(event.clientX - pressed) < 4) open(); });
  holder.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Enter") { event.preventDefault(); open(); }
    if (move === undefined) return;
    event.preventDefault();
    const now = plot.cursor.idx ?? (move > 0 ? -1 : steps.length);
    const next = Math.min(steps.length - 1, Math.max(0, now + move));
    const line = lines.find(({ at }) => columns[at][next] !== null);
    plot.setCursor({ left: plot.valToPos(steps[next], "x"), top: line ? plot.valToPos(columns[line.at][next], "y") : 20 });
  });
}

// What the y axis shows; of a value that never changes a unit, or its half, around it.
function around(_, low, high) {
  if (low === null || low === undefined) return [0, 1];
  if (low === high) { const room = Math.abs(low) / 2 || 1; return low === 0 ? [0, 1] : [low - room, low + room]; }
  const room = 0.06 * (high - low);
  return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
}

// The line of a validation has the step of the batch before it, or the number of batches: the nearest one is meant.
function openStep(run, step, metric) {
  const e = data.episodes, kind = metric.startsWith("eval/") ? "validate" : "train";
  const own = e.run.includes(run);  // the mean of several runs has no episodes of its own
  let meant = step;
  if (kind === "validate") {
    const known = new Set();
    for (let at = 0; at < e.run.length; at++) if ((!own || e.run[at] === run) && e.kind[at] === "validate") known.add(e.step[at]);
    meant = [...known].sort((a, b) => Math.abs(a - step - 0.4) - Math.abs(b - step - 0.4))[0] ?? step;
  }
  state.filters = { kind, step: String(meant), ...(data.runs.length > 1 && own ? { run: String(run) } : {}) };
  state.open = null;
  show("episodes");
}
