// The page as a whole: views, runs, stamps, keys, themes, and loading itself again while the job goes on.
const VIEWS = { curves: showCurves, timeline: showTimeline, episodes: showEpisodes, stamps: showStamps };

function show(tab) {
  state.tab = tab;
  for (const name of Object.keys(VIEWS)) {
    find(`#view-${name}`).hidden = name !== tab;
    find(`#tab-${name}`).setAttribute("aria-selected", String(name === tab));
  }
  remember();
  VIEWS[tab]();
}

function showRuns() {
  find("#runs").replaceChildren(...data.runs.map((run, at) => make("label", { class: "chip", title: run.path },
    make("input", { type: "checkbox", checked: !state.hidden.has(at), onchange: (event) => { if (event.target.checked) state.hidden.delete(at); else state.hidden.add(at); show(state.tab); } }),
    make("i", { class: "swatch", style: `background:${runColour(at)}` }), run.name)));
}

function showStamps() {
  const view = find("#view-stamps");
  const labels = [...new Set(data.runs.flatMap((run) => Object.keys(run.stamps)))];
  const parts = [make("p", {}, "A stamp says what an episode was played on: tau2's version, digests of tasks, policy and tools, the judge, the user, settings and the program's revision. Only scores with equal stamps are comparable.")];
  for (const label of labels) {
    const runs = data.runs.map((run, at) => [run, at]).filter(([run, at]) => run.stamps[label] && !state.hidden.has(at));
    if (!runs.length) continue;
    const fields = [...new Set(runs.flatMap(([run]) => Object.keys(run.stamps[label])))];
    parts.push(make("h2", {}, label), make("table", { class: "plain" }, make("thead", {}, make("tr", {}, make("th", {}, "field"), runs.map(([run]) => make("th", {}, run.name)))),
      make("tbody", {}, fields.map((field) => {
        const values = runs.map(([run]) => String(run.stamps[label][field] ?? "–"));
        return make("tr", { class: new Set(values).size > 1 ? "differs" : "" }, make("td", { class: "soft" }, field), values.map((value) => make("td", {}, value)));
      }))));
  }
  if (parts.length === 1) parts.push(make("p", {}, "The runs have no stamps: they kept no episodes and no evaluation."));
  for (const run of data.runs) if (run.notices.length) parts.push(make("h2", {}, `notices of ${run.name}`), make("ul", {}, run.notices.map((notice) => make("li", {}, notice))));
  view.replaceChildren(...parts);
}

function warn() {
  const told = data.differences.map((one) => `${one.runs[0]} and ${one.runs[1]} are not comparable: the stamps of ${one.of} differ in ${one.fields.join("; ")}`);
  find("#warning").hidden = !told.length;
  find("#warning").textContent = told.join(" · ");
}

function theme(next) {
  const known = next || (() => { try { return localStorage.getItem("tau2-theme"); } catch { return null; } })() || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.documentElement.dataset.theme = known;
  try { if (next) localStorage.setItem("tau2-theme", next); } catch { /* no storage for this page */ }
}

const KEYS = [["1 2 3 4", "curves, timeline, episodes, stamps"], ["/", "to the search or the first filter"], ["j k", "next, previous episode"], ["↑ ↓ Enter", "in the table: move, open"], ["← → Enter", "on a curve: move, open the step's episodes"], ["+ − ← → 0", "on a timeline: zoom and move"], ["s", "the group side by side"], ["c", "the next way to colour tokens"], ["t", "light or dark"], ["Escape", "close the dialogue"], ["?", "these keys"]];

function showKeys() {
  const dialog = find("#keys");
  dialog.replaceChildren(make("h2", {}, "Keys"), make("table", { class: "plain" }, make("tbody", {}, KEYS.map(([key, what]) => make("tr", {}, make("td", {}, make("kbd", {}, key)), make("td", {}, what))))), make("button", { type: "button", onclick: () => dialog.close() }, "close"));
  dialog.showModal();
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || find("#keys").open) return;
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
  if (event.key === "Escape" && typing) { event.target.blur(); return; }
  if (typing) return;
  const tabs = Object.keys(VIEWS), open = state.tab === "episodes" && state.open !== null;
  const action = {
    "/": () => { const field = state.tab === "curves" ? find("#metric-search") : find("#filter-task"); if (field) field.focus(); },
    j: () => state.tab === "episodes" && step(1), k: () => state.tab === "episodes" && step(-1), t: () => find("#theme").click(), "?": showKeys,
    s: () => open && find("#side").click(), Escape: () => { if (open) { state.open = null; showEpisodes(); find("#grid").focus(); } },
    c: () => { if (!open) return; const modes = Object.keys(COLOUR_MODES); state.colour = modes[(modes.indexOf(state.colour) + 1) % modes.length]; remember(); showDialogue(); },
  }[event.key] || (/^[1-4]$/.test(event.key) ? () => show(tabs[Number(event.key) - 1]) : null);
  if (action) { event.preventDefault(); action(); }
}

// A file cannot be asked whether it has changed, so it is loaded again as often as it is written. Where one reads stays.
function follow() {
  if (!data.reload) return;
  const button = find("#follow");
  let on = sessionStorage.getItem("follow") !== "off";
  const tell = () => { button.textContent = on ? "following" : "follow"; button.setAttribute("aria-pressed", String(on)); };
  button.hidden = false;
  button.addEventListener("click", () => { on = !on; sessionStorage.setItem("follow", on ? "on" : "off"); tell(); });
  tell();
  setInterval(() => {
    if (!on || document.hidden || ["INPUT", "SELECT"].includes(document.activeElement.tagName)) return;
    const places = { page: scrollY, grid: find("#grid") ? find("#grid").scrollTop : 0, dialogue: find("#dialogue") ? find("#dialogue").scrollTop : 0 };
    sessionStorage.setItem("places", JSON.stringify(places));
    location.reload();
  }, data.reload * 1000);
}

async function returnToPlaces() {
  const places = JSON.parse(sessionStorage.getItem("places") || "null");
  sessionStorage.removeItem("places");
  if (!places) return;
  if (find("#grid")) find("#grid").scrollTop = places.grid;
  if (find("#dialogue")) { await showDialogue(); find("#dialogue").scrollTop = places.dialogue; }
  scrollTo(0, places.page);
}

async function start() {
  theme();
  data = await unpack("index");
  if (!data.episodes.kind) for (const name of ["kind", "step", "status", "domain", "split", "task", "group", "sample", "number", "attempt", "final", "cause", "reward", "began", "seconds", "mistakes", "faults", "staleness"]) data.episodes[name] = [];
  readAddress();
  find("#tabs").replaceChildren(...Object.keys(VIEWS).map((name) => make("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `view-${name}`, onclick: () => show(name) }, name)));
  find("#made").textContent = `made ${data.made}`;
  find("#theme").addEventListener("click", () => { theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"); show(state.tab); });
  find("#help").addEventListener("click", showKeys);
  addEventListener("keydown", pressed);
  addEventListener("hashchange", () => { if (location.hash !== address()) { readAddress(); showRuns(); show(state.tab); } });
  showRuns();
  warn();
  show(state.tab);
  follow();
  await returnToPlaces();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}

start();
