// The sampled tokens of a turn, coloured by what training knows about them.
const COLOUR_MODES = {
  advantage: { title: "advantage", scale: "green above 0, red below; the deepest colour from ±2", value: (turn, at) => pick(turn.adv, at), hue: (v) => signed(v / 2) },
  logprob: { title: "log-prob", scale: "the less likely when sampled, the deeper; from −5 nats", value: (turn, at) => milli(turn.lp[at]), hue: (v) => (v === null ? "" : tint("orange", Math.min(1, -v / 5))) },
  mismatch: { title: "mismatch", scale: "trainer's log-prob less the engine's; the deepest colour from ±0.5 nats", value: (turn, at) => milli(turn.d === undefined ? null : pick(turn.d, at)), hue: (v) => signed(v === null ? null : v / 0.5, "blue", "magenta") },
  version: { title: "weight version", scale: "a colour for each version", value: (turn, at) => pick(turn.ver, at), hue: (v) => (v === null || v < 0 ? "" : `${COLOURS[v % COLOURS.length]}44`) },
  none: { title: "none", scale: "", value: () => null, hue: () => "" },
};
const TINTS = { green: [26, 127, 55], red: [200, 40, 30], orange: [224, 120, 20], blue: [40, 100, 220], magenta: [190, 40, 160] };
const tint = (name, share) => (share > 0.01 ? `rgba(${TINTS[name].join(",")},${(0.08 + 0.55 * Math.min(1, share)).toFixed(3)})` : "");
const signed = (share, above = "green", below = "red") => (share === null ? "" : tint(share > 0 ? above : below, Math.abs(share)));
const pick = (values, at) => (Array.isArray(values) ? values[at] : values === undefined ? null : values);
const milli = (value) => (value === null || value === undefined ? null : value / 1000);

function tokenView(turn, words) {
  const mode = COLOUR_MODES[state.colour] || COLOUR_MODES.advantage;
  const holder = make("div", { class: "tokens" });
  turn.ids.forEach((id, at) => {
    const value = mode.value(turn, at), hue = mode.hue(value), trained = pick(turn.on, at);
    const text = words[id] === undefined ? `⟨${id}⟩` : words[id] === "" ? "∅" : words[id];
    const difference = turn.d === undefined ? null : milli(pick(turn.d, at));
    holder.append(make("span", {
      class: trained ? "" : "off", style: hue ? `background:${hue}` : undefined,
      title: `token ${id}${trained ? "" : ", not trained"}\nadvantage ${short(pick(turn.adv, at))}\nlog-prob ${short(milli(turn.lp[at]))}${difference === null ? "" : `, trainer ${short(milli(turn.lp[at]) + difference)} (${short(difference)})`}\nweight version ${pick(turn.ver, at)}`,
    }, text));
  });
  return holder;
}

function colourChoice() {
  const choose = make("select", { id: "colour", onchange: (event) => { state.colour = event.target.value; remember(); showDialogue(); } },
    Object.entries(COLOUR_MODES).map(([name, mode]) => make("option", { value: name, selected: name === state.colour }, mode.title)));
  return make("div", { class: "bar" }, make("label", {}, "colour tokens by", choose), make("span", { class: "soft" }, (COLOUR_MODES[state.colour] || COLOUR_MODES.advantage).scale, " · dotted underline: not trained"));
}
