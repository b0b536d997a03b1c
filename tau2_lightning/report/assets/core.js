// What all parts use: elements made without markup, packed data, the state of the page and its address.
// Every text of a run goes through `append` or `textContent`: nothing in it is ever read as markup.
const COLOURS = ["#0b6bcb", "#d1660f", "#1a7f37", "#a333c8", "#c2185b", "#00838f", "#7a6200", "#5d4037"];
const find = (selector, root = document) => root.querySelector(selector);

function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "style") element.style.cssText = value;
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  return put(element, ...children);
}

function put(element, ...children) {
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false).map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

async function unpack(id) {
  const holder = document.getElementById(id);
  if (!holder) return null;
  const binary = atob(holder.textContent);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return JSON.parse(await new Response(stream).text());
}

const once = (load) => { const known = new Map(); return (key) => { if (!known.has(key)) known.set(key, load(key)); return known.get(key); }; };
const chunk = (() => {  // the newest chunks stay unpacked
  const known = new Map();
  return (number) => {
    if (!known.has(number)) known.set(number, unpack(`chunk-${number}`));
    else { const kept = known.get(number); known.delete(number); known.set(number, kept); }
    if (known.size > 24) known.delete(known.keys().next().value);
    return known.get(number);
  };
})();
const vocabulary = once((run) => unpack(`vocabulary-${run}`));
const longTexts = once(() => unpack("texts"));

const state = { tab: "curves", hidden: new Set(), filters: {}, sort: { key: "step", down: true }, open: null, colour: "advantage", metrics: "", all: false, side: false };
let data = null;  // the index

function short(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-5 || size >= 1e5)) return value.toExponential(1);
  return String(Number(size < 0.01 ? value.toPrecision(2) : value.toFixed(digits)));
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  const parts = (large, small, names) => `${large}${names[0]}` + (small ? ` ${small}${names[1]}` : "");
  if (value >= 3570) { const m = Math.round(value / 60); return parts(Math.floor(m / 60), m % 60, "hm"); }
  if (value >= 59.5) { const s = Math.round(value); return parts(Math.floor(s / 60), s % 60, "ms"); }
  return `${short(value, 2)}s`;
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const runColour = (run) => COLOURS[run % COLOURS.length];
const visibleRuns = () => data.runs.map((_, run) => run).filter((run) => !state.hidden.has(run));

// An episode's key stays the same when the page is written again.
function keyOf(at) {
  const e = data.episodes;
  return [e.run[at], e.kind[at], e.step[at], e.number[at], e.domain[at], e.group[at], e.sample[at], e.attempt[at], e.final[at]].join("~");
}

function address() {
  const words = new URLSearchParams({ tab: state.tab });
  for (const [name, value] of Object.entries(state.filters)) if (value !== "") words.set(`f.${name}`, value);
  words.set("sort", `${state.sort.key}.${state.sort.down ? "down" : "up"}`);
  if (state.open !== null) words.set("open", keyOf(state.open));
  if (state.metrics) words.set("metrics", state.metrics);
  if (state.all) words.set("all", "1");
  if (state.side) words.set("side", "1");
  words.set("colour", state.colour);
  if (state.hidden.size) words.set("hidden", [...state.hidden].join("."));
  return `#${words}`;
}

function remember() { if (location.hash !== address()) history.replaceState(null, "", address()); }

function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1));
  state.tab = ["curves", "timeline", "episodes", "stamps"].includes(words.get("tab")) ? words.get("tab") : "curves";
  state.filters = {};
  for (const [name, value] of words) if (name.startsWith("f.")) state.filters[name.slice(2)] = value;
  const [key, way] = (words.get("sort") || "step.down").split(".");
  state.sort = { key, down: way === "down" };
  state.metrics = words.get("metrics") || "";
  state.all = words.get("all") === "1";
  state.side = words.get("side") === "1";
  state.colour = words.get("colour") || "advantage";
  state.hidden = new Set((words.get("hidden") || "").split(".").filter(Boolean).map(Number));
  const open = words.get("open");
  state.open = null;
  if (open) for (let at = 0; at < data.episodes.run.length; at++) if (keyOf(at) === open) { state.open = at; break; }
}
