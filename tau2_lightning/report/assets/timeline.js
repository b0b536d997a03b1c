// What a run did when: its phases, the gaps between them, how many episodes were running, and the engine's idle share.
const PHASE_COLOURS = { rollout: "#3f8ae0", train: "#2e9e4f", "weight sync": "#d9822b", validate: "#8e5bd0", "engine start": "#9aa0a6", "warm start": "#c7a500", checkpoint: "#b0413e" };
const phaseColour = (name) => PHASE_COLOURS[name] || COLOURS[[...name].reduce((sum, letter) => sum + letter.codePointAt(0), 0) % COLOURS.length];

function showTimeline() {
  const view = find("#view-timeline");
  view.replaceChildren(...visibleRuns().map(timelineOf));
  if (!view.childElementCount) view.append(make("p", {}, "No run is shown."));
}

function timelineOf(run) {
  const one = data.runs[run], e = data.episodes, spans = one.phases;
  const box = make("section", {}, make("h2", {}, one.name));
  const origin = one.began || Math.min(...e.began.filter((value, at) => e.run[at] === run && value > 0));
  const played = [];
  for (let at = 0; at < e.run.length; at++) if (e.run[at] === run && e.began[at] > 0) played.push([e.began[at] - origin, e.began[at] - origin + e.seconds[at], at]);
  const end = Math.max(0, ...spans.map((span) => span[2]), ...played.map((span) => span[1]));
  if (!end) { box.append(make("p", { class: "soft" }, "This run has recorded no times.")); return box; }
  const running = concurrency(played);
  const window = { from: 0, to: end };
  const canvas = make("canvas", { class: "lanes", tabindex: "0", role: "img", "aria-label": `Timeline of ${one.name}: ${totals(spans, end).map(([name, s]) => `${name} ${seconds(s)}`).join(", ")}` });
  const tip = make("div", { class: "soft", "aria-live": "off" }, "\u00a0");
  const redraw = () => drawLanes(canvas, spans, running, idleOf(run), window, origin, run);
  const zoom = (factor, middle = (window.from + window.to) / 2) => {
    const half = Math.max(0.5, ((window.to - window.from) * factor) / 2);
    window.from = Math.max(0, middle - half); window.to = Math.min(end, middle + half); redraw();
  };
  const move = (share) => { const by = Math.max(-window.from, Math.min(end - window.to, (window.to - window.from) * share)); window.from += by; window.to += by; redraw(); };
  canvas.addEventListener("keydown", (event) => {
    const action = { "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), ArrowLeft: () => move(-0.25), ArrowRight: () => move(0.25), "0": () => { window.from = 0; window.to = end; redraw(); } }[event.key];
    if (action) { event.preventDefault(); action(); }
  });
  const timeAt = (event) => { const area = canvas.getBoundingClientRect(); return window.from + ((event.clientX - area.left) / area.width) * (window.to - window.from); };
  canvas.addEventListener("mousemove", (event) => {
    const t = timeAt(event), span = spans.find((s) => s[1] <= t && t < s[2]);
    const inside = played.filter((s) => s[0] <= t && t < s[1]);
    tip.textContent = `${seconds(t)} after the beginning: ${span ? `${span[0]} (${seconds(span[2] - span[1])})` : "no phase: idle"}; ${inside.length} episodes running`;
  });
  canvas.addEventListener("click", (event) => {
    const t = timeAt(event), inside = played.filter((s) => s[0] <= t && t < s[1]);
    if (!inside.length) return;
    const at = inside[0][2];
    state.filters = { kind: e.kind[at], step: String(e.step[at]), ...(data.runs.length > 1 ? { run: String(run) } : {}) };
    state.open = null; show("episodes");
  });
  const tools = make("div", { class: "bar" },
    make("button", { type: "button", onclick: () => zoom(0.5) }, "zoom in"), make("button", { type: "button", onclick: () => zoom(2) }, "zoom out"),
    make("button", { type: "button", onclick: () => { window.from = 0; window.to = end; redraw(); } }, "whole run"),
    make("span", { class: "soft" }, "on the timeline: + − ← → 0; a click opens the episodes that ran then"));
  const rows = totals(spans, end);
  const names = rows.map(([name]) => name);
  const legend = make("div", { class: "legend" }, names.map((name) => make("span", { class: "chip" }, make("i", { class: "swatch", style: `background:${name === "idle" ? "transparent;border:1px solid var(--line)" : phaseColour(name)}` }), name)));
  const table = make("table", { class: "plain" }, make("thead", {}, make("tr", {}, make("th", {}, "phase"), make("th", { class: "n" }, "time"), make("th", { class: "n" }, "share"))),
    make("tbody", {}, rows.map(([name, s]) => make("tr", {}, make("td", {}, name), make("td", { class: "n" }, seconds(s)), make("td", { class: "n" }, `${short((100 * s) / end, 1)} %`)))));
  box.append(tools, canvas, tip, legend, table);
  new ResizeObserver(redraw).observe(canvas);
  return box;
}

// At most ten round times of the window.
function ticks(window) {
  const by = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];
  const step = by.find((one) => (window.to - window.from) / one <= 10) || Math.ceil((window.to - window.from) / 864000) * 86400;
  const found = [];
  for (let time = Math.ceil(window.from / step) * step; time <= window.to; time += step) found.push(time);
  return found;
}

// Seconds of each phase, and of none: "idle".
function totals(spans, end) {
  const sums = new Map();
  for (const [name, from, to] of spans) sums.set(name, (sums.get(name) || 0) + to - from);
  const rows = [...sums].sort((a, b) => b[1] - a[1]);
  const idle = end - rows.reduce((sum, row) => sum + row[1], 0);
  return spans.length && idle > 0 ? [...rows, ["idle", idle]] : rows;
}

// [time, number of episodes that run from then on].
function concurrency(played) {
  const events = played.flatMap(([from, to]) => [[from, 1], [to, -1]]).sort((a, b) => a[0] - b[0]);
  let count = 0;
  return events.map(([time, change]) => [time, (count += change)]);
}

function idleOf(run) {
  const series = data.runs[run].series["idle/engine"];
  return series ? new Map(series.x.map((step, at) => [step, series.y[at]])) : new Map();
}

function drawLanes(canvas, spans, running, idle, window, origin, run) {
  const width = canvas.clientWidth || 800, height = 150, scale = devicePixelRatio || 1;
  canvas.width = width * scale; canvas.height = height * scale; canvas.style.height = `${height}px`;
  const c = canvas.getContext("2d"); c.scale(scale, scale); c.clearRect(0, 0, width, height);
  const x = (time) => ((time - window.from) / (window.to - window.from)) * width;
  c.font = "11px system-ui"; c.textBaseline = "top";
  for (const [name, from, to] of spans) {
    if (to < window.from || from > window.to) continue;
    c.fillStyle = phaseColour(name); const left = x(from), wide = Math.max(0.5, x(to) - left);
    c.fillRect(left, 18, wide, 26);
    if (wide > 60) { c.fillStyle = "#fff"; c.fillText(name, left + 4, 25, wide - 8); }
  }
  const top = Math.max(1, ...running.map(([, n]) => n));
  c.fillStyle = `${runColour(run)}88`; c.beginPath(); c.moveTo(0, 104);
  let level = 104;
  for (const [time, n] of running) { const at = Math.min(width, Math.max(0, x(time))); c.lineTo(at, level); level = 104 - (n / top) * 40; c.lineTo(at, level); }
  c.lineTo(Math.min(width, Math.max(0, running.length ? x(running[running.length - 1][0]) : 0)), 104); c.closePath(); c.fill();
  // The engine's idle share of each batch, over the time of the batch's rollout.
  spans.filter((span) => span[0] === "rollout").forEach((span, step) => {
    const share = idle.get(step);
    if (share === undefined || share === null) return;
    const left = x(span[1]), wide = Math.max(1, x(span[2]) - left);
    c.fillStyle = "#2e9e4f66"; c.fillRect(left, 118, wide, 12); c.fillStyle = "#b3261eaa"; c.fillRect(left, 118, wide * Math.min(1, share), 12);
  });
  c.fillStyle = css("--soft");
  c.fillText("phases of the trainer", 4, 4); c.fillText(`episodes running, at most ${top}`, 4, 50); c.fillText("engine: idle share (red) of each batch", 4, 106);
  for (const time of ticks(window)) {
    const text = seconds(time), wide = c.measureText(text).width;
    c.fillRect(x(time), 131, 1, 4);
    c.fillText(text, Math.min(width - wide - 2, Math.max(2, x(time) - wide / 2)), 136);
  }
}
