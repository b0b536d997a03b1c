// One episode: its facts, its reward part by part, its group, and what was said, with tokens and times.
const TIME_KINDS = [["queue_s", "queue of the engine", "#9aa0a6"], ["engine_s", "engine", "#3f8ae0"], ["tool_s", "tools", "#8e5bd0"], ["user_s", "user", "#d9822b"]];
let asked = 0;

async function showDialogue() {
  const number = ++asked, at = state.open, holder = find("#dialogue"), e = data.episodes;
  const group = groupOf(at);
  const shown = state.side ? group : [at];
  const [words, texts, ...dialogues] = await Promise.all([vocabulary(e.run[at]), longTexts("all"), ...shown.map((one) => chunk(e.chunk[one]).then((all) => all[e.place[one]]))]);
  if (number !== asked || !holder.isConnected) return;  // another one was opened meanwhile
  const kept = holder.dataset.episode === String(at) ? holder.scrollTop : 0;
  const bodies = shown.map((one, k) => dialogueBody(one, dialogues[k], words || {}, texts || {}));
  holder.replaceChildren(toolbar(at, group), siblings(at, group), colourChoice(), state.side ? make("div", { class: "sides" }, bodies) : bodies[0]);
  holder.dataset.episode = String(at);
  holder.scrollTop = kept;
}

function groupOf(at) {
  const e = data.episodes, found = [];
  for (let one = 0; one < e.run.length; one++) {
    const same = ["run", "kind", "step", "number", "group", "domain", "task"].every((name) => e[name][one] === e[name][at]);
    if (same && (e.final[one] || one === at)) found.push(one);
  }
  return found;
}

function toolbar(at, group) {
  const e = data.episodes;
  const close = () => { state.open = null; showEpisodes(); find("#grid").focus(); };
  const curves = () => { state.metrics = e.kind[at] === "validate" ? "pass^1" : "reward/mean"; show("curves"); };
  return make("div", { class: "bar" },
    make("button", { type: "button", title: "previous (k)", onclick: () => step(-1) }, "◂"), make("button", { type: "button", title: "next (j)", onclick: () => step(1) }, "▸"),
    make("button", { type: "button", id: "side", "aria-pressed": String(state.side), onclick: () => { state.side = !state.side; remember(); showDialogue(); } }, `group side by side (${group.length})`),
    make("button", { type: "button", onclick: () => { state.filters = { kind: e.kind[at], step: String(e.step[at]), ...(data.runs.length > 1 ? { run: String(e.run[at]) } : {}) }; showEpisodes(); } }, `all of step ${e.step[at]}`),
    make("button", { type: "button", onclick: curves }, "curve"), make("button", { type: "button", title: "close (Escape)", onclick: close }, "close"));
}

function siblings(at, group) {
  const e = data.episodes;
  return make("div", { class: "siblings", "aria-label": "Samples of the group" }, group.map((one) => make("button", {
    type: "button", "aria-pressed": String(one === at), onclick: () => openEpisode(one), title: e.status[one] },
  `#${e.sample[one]} `, e.reward[one] === null ? make("span", { class: "bad" }, e.cause[one] || e.status[one]) : `${short(e.reward[one])}`, e.trained[one] ? ` (${e.advantage[one] > 0 ? "+" : ""}${short(e.advantage[one], 2)})` : "")));
}

function dialogueBody(at, d, words, texts) {
  const e = data.episodes;
  const box = make("div", {}, make("h2", {}, `${e.task[at]} `, make("span", { class: "soft" }, `${data.runs[e.run[at]].name} · ${e.kind[at]} step ${e.step[at]} · group ${e.group[at]} sample ${e.sample[at]}`)));
  if (e.status[at] === "failed") box.append(make("p", { class: "fault" }, `Fault ${e.cause[at]}${e.final[at] ? "" : ", tried again"}: ${d.fault}`));
  else if (!["trained", "validated"].includes(e.status[at])) box.append(make("p", { class: "fault" }, `Not trained on: ${e.status[at]}${e.cause[at] ? `, ${e.cause[at]}` : ""}`));
  const faults = Object.entries(e.faults[at]);
  if (faults.length) box.append(make("p", { class: "fault" }, `The simulated user broke its rules: ${NAMES(e.faults[at])}`));
  put(box, rewardTable(at, d), facts(at, d));
  const turnsShown = new Set();
  d.messages.forEach((message) => { if (message.turn !== undefined) turnsShown.add(message.turn); box.append(messageView(message, d, words, texts)); });
  const others = d.turns.map((turn, k) => [turn, k]).filter(([, k]) => !turnsShown.has(k));
  if (others.length) box.append(make("h3", {}, d.rows.length > 1 ? `Turns of the ${d.rows.length} rows that are not in this line of the dialogue` : "Turns without a message"),
    ...others.map(([turn, k]) => make("div", { class: "message assistant" }, turnHead(turn, k, d), tokenView(turn, words), timesOf(turn))));
  return box;
}

function rewardTable(at, d) {
  const e = data.episodes, rows = [];
  const parts = Object.entries(d.parts);
  for (const [name, value] of parts) rows.push([`tau2: ${name}`, value]);
  if (e.tau2[at] !== null) rows.push([parts.length > 1 ? "tau2's reward (product of the parts)" : "tau2's reward", e.tau2[at]]);
  if (e.reward[at] !== null) rows.push(["reward of the episode", e.reward[at]]);
  if (e.penalty[at]) { rows.push(["penalties of its turns", -e.penalty[at]]); rows.push(["total that is compared in the group", e.reward[at] - e.penalty[at]]); }
  if (e.trained[at]) rows.push(["mean advantage of its trained tokens", e.advantage[at]]);
  if (!rows.length) return null;
  return make("table", { class: "plain reward" }, make("caption", { class: "soft" }, "reward"), make("tbody", {}, rows.map(([name, value]) => make("tr", {}, make("td", {}, name), make("td", { class: "n" }, short(value, 4))))));
}

function facts(at, d) {
  const e = data.episodes;
  const rows = [["ended by", e.ended[at]], ["user", d.user], ["agent's mistakes", NAMES(e.mistakes[at])], ["transferred", e.transferred[at] ? (d.expected ? "yes, as the task asks" : "yes, needlessly") : ""],
    ["tool errors", e.errors[at] || ""], ["weights", d.oldest >= 0 ? `trained at version ${d.version}, oldest token of ${d.oldest}: staleness ${e.staleness[at]}` : ""],
    ["time", `${seconds(e.seconds[at])}${e.queued[at] > 0.05 ? `, after ${seconds(e.queued[at])} in the queue for a place` : ""}${d.opening ? `; user's first words ${seconds(d.opening)}` : ""}`],
    ["tokens", `${e.tokens[at]} sampled, ${e.trained[at]} trained, rows of ${d.rows.join(", ")}`], ["mismatch", e.mismatch[at] === null ? "" : `mean |difference| of log-probs ${short(e.mismatch[at], 4)} nats`], ["stamp", d.stamp]];
  const sums = TIME_KINDS.map(([key, name]) => [name, d.turns.reduce((sum, turn) => sum + (turn[key] || 0), 0)]);
  rows.splice(rows.findIndex(([name]) => name === "time") + 1, 0, ["of it", sums.filter(([, s]) => s > 0.005).map(([name, s]) => `${name} ${seconds(s)}`).join(", ")]);
  return make("details", { open: !state.side }, make("summary", {}, "facts"), make("table", { class: "plain" }, make("tbody", {}, rows.filter(([, value]) => value !== "" && value !== undefined).map(([name, value]) => make("tr", {}, make("td", { class: "soft" }, name), make("td", {}, String(value)))))));
}

function messageView(message, d, words, texts) {
  const content = message.text === undefined ? message.content : texts[message.text];
  const turn = message.turn === undefined ? null : d.turns[message.turn];
  const who = message.role === "tool" ? `tool result${message.by === "user" ? ", user's own tool" : ""}` : message.role;
  const head = make("div", { class: "who" }, make("b", {}, who), message.at === undefined ? null : make("span", {}, `at ${seconds(message.at)}`), message.error ? make("span", { class: "fault" }, "error") : null, turn ? turnHead(turn, message.turn, d) : null);
  const box = make("div", { class: `message ${["user", "assistant", "tool", "system"].includes(message.role) ? message.role : "system"}${message.faults ? " faulty" : ""}${message.error ? " error" : ""}` }, head);
  for (const fault of message.faults || []) box.append(make("div", { class: "fault" }, `user's fault: ${fault.kind}${fault.evidence ? ` — ${fault.evidence}` : ""}`));
  if (message.thought) box.append(make("details", {}, make("summary", {}, "thought"), make("pre", {}, message.thought)));
  const text = content === null || content === undefined || content === "" ? null : make("pre", {}, pretty(content, message.role));
  if (text && message.role === "system") box.append(make("details", {}, make("summary", {}, `${content.length} characters`), text)); else if (text) box.append(text);
  for (const call of message.calls || []) box.append(make("div", { class: "call" }, make("b", {}, call.name), make("pre", {}, typeof call.arguments === "string" ? call.arguments : JSON.stringify(call.arguments, null, 1))));
  if (turn) { put(box, make("details", { open: state.colour !== "none" }, make("summary", {}, `${turn.n} tokens`), tokenView(turn, words)), timesOf(turn)); }
  return box;
}

// Results of tools are mostly JSON on one line.
function pretty(content, role) {
  if (role !== "tool" || content.length > 200000) return content;
  try { const value = JSON.parse(content); return typeof value === "object" && value !== null ? JSON.stringify(value, null, 1) : content; } catch { return content; }
}

function turnHead(turn, number, d) {
  const told = [`turn ${number}`, `${turn.n} tokens`];
  if (d.rows.length > 1) told.push(`row ${turn.row}`);
  if (turn.advantage) told.push(`advantage ${turn.advantage > 0 ? "+" : ""}${short(turn.advantage)}`);
  if (turn.reward) told.push(`reward ${short(turn.reward)}`);
  if (turn.penalty) told.push(`penalty ${short(turn.penalty)}`);
  if (turn.finish_reason !== "stop") told.push(`ended by ${turn.finish_reason}`);
  if (turn.altered) told.push(`not trained, sampled with ${turn.altered}`);
  return make("span", {}, told.join(" · "), turn.invalid_format ? make("span", { class: "fault" }, " · tool call cannot be read") : null);
}

function timesOf(turn) {
  const inEngine = Math.max(0, (turn.engine_s || 0) - (turn.queue_s || 0));
  const parts = TIME_KINDS.map(([key, name, colour]) => [name, key === "engine_s" ? inEngine : turn[key] || 0, colour]);
  const sum = parts.reduce((total, [, s]) => total + s, 0);
  if (sum <= 0) return null;
  return make("div", { class: "who", title: parts.map(([name, s]) => `${name} ${seconds(s)}`).join(", ") }, make("span", {}, parts.filter(([, s]) => s > 0.0005).map(([name, s]) => `${name} ${seconds(s)}`).join(" · ")),
    make("div", { class: "times", style: "flex:1 1 120px" }, parts.filter(([, s]) => s > 0).map(([, s, colour]) => make("i", { style: `width:${((100 * s) / sum).toFixed(2)}%;background:${colour}` }))));
}
