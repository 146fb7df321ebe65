// The backward sweep, step by step, and the memory that the tape holds meanwhile.

// ------------------------------------------------------------------------------------------------------------ the sweep

function countUpTo(sorted, step) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= step) low = middle + 1;
    else high = middle;
  }
  return low;
}

function nodeClass(node) {
  const { step } = state;
  if (node.passed === step && step > 0) return " current";
  if (node.passed < step) return " passed";
  return node.arrivals[0] <= step ? " pending" : "";
}

// Classes are written only where they change: a step costs the same in a tape of ten nodes and of a thousand.
function setClass(item, extra) {
  if (item.now === extra) return;
  const keep = ["selected", "match"].filter((name) => item.g.classList.contains(name));
  item.g.setAttribute("class", [item.name + extra, ...keep].join(" "));
  item.now = extra;
}

function paintStep() {
  const { step } = state, event = sweep[step - 1];
  const inside = new Set(event ? chainOf(nodes[event.node]) : []);
  for (const item of drawn.values()) {
    const { box } = item;
    if (box.scope !== undefined) {
      const passes = shown[box.scope].passes, done = countUpTo(passes, step);
      item.progress.setAttribute("width", passes.length ? ((box.w - 2) * done / passes.length).toFixed(1) : 0);
      setClass(item, inside.has(box.key) ? " current" : done && done === passes.length ? " passed" : "");
      continue;
    }
    const { node } = box;
    setClass(item, nodeClass(node) + (node.saved_bytes && node.passed <= step ? " freed" : ""));
    for (const tag of item.tags) setClass(tag, nodeClass(tag.leaf));
    if (item.sum) {
      const arrived = node.arrivals.filter((at) => at <= step).length;
      if (item.arrived !== arrived) item.sumText.textContent = `⊕ ${arrived}/${node.arrivals.length}`;
      if (item.arrived !== arrived || item.arriving) {
        item.arriving = node.arrivals.includes(step) && arrived > 1;
        item.sum.setAttribute("class", item.arriving ? "sum arriving" : "sum");
      }
      item.arrived = arrived;
    }
  }
  const handing = [];
  for (const edge of drawnEdges) {
    const behind = edge.segment.pairs.every(([, user]) => nodes[user].passed <= step) ? "edge behind" : "edge";
    if (edge.name !== behind) {
      edge.path.setAttribute("class", behind + (edge.path.classList.contains("near") ? " near" : ""));
      edge.name = behind;
    }
    if (event && edge.segment.pairs.some(([from, user]) => user === event.node && event.gives.some((gift) => gift.to === from))) handing.push(edge.segment);
  }
  flowLayer.replaceChildren(...handing.map((segment) => svg("path", { class: "handing", d: curve(segment.points), "marker-start": segment.from === "in" ? null : "url(#arrow-grad)" })));
}

function nodeLink(id) {
  return html("a", { href: `#node-${id}` }, `${titleOf(nodes[id])} #${id}`);
}

const listed = (parts) => parts.flatMap((part, i) => (i === 0 ? [part] : [i === parts.length - 1 ? " and " : ", ", part]));

function story(step) {
  if (!sweep.length) return ["No backward sweep was recorded in this tape."];
  if (step === 0) return ["Before the sweep: the forward pass is done. Play, or step, to pass the gradients back."];
  const event = sweep[step - 1], node = nodes[event.node];
  const said = [html("b", {}, nodeLink(event.node)), " "];
  const own = (g) => nodes[g.to].kind === "leaf" && shortName(nodes[g.to]) === g.argument; // weight: blocks.0.mlp.fc1.weight
  const by = (g) => ruleFor(node, g.argument)?.short;
  const gift = (g) => [own(g) ? html("a", { href: `#node-${g.to}` }, `${g.argument} #${g.to}`) : [g.argument ? `${g.argument}: ` : "", nodeLink(g.to)], by(g) ? [" (rule ", html("code", {}, by(g)), ")"] : "", g.adds ? html("span", { class: "adds" }, " ⊕ adds to what is there") : ""];
  if (node.kind === "leaf") said.push("keeps its gradient: the way down ends here.");
  else if (!event.gives.length) said.push("passes no gradient back.");
  else said.push("passes back to ", ...listed(event.gives.map(gift)), ".");
  if (event.freed) said.push(` ${bytes(event.freed)} freed.`);
  return said;
}

let playing = null;
function goStep(step, follow = true) {
  state.step = clamp(Math.round(step), 0, sweep.length);
  paintStep();
  const event = sweep[state.step - 1];
  if (event && follow && document.body.dataset.view === "graph") bringIntoView(visibleKey(nodes[event.node]));
  paintOverview();
  const scrub = $("scrub");
  scrub.value = state.step;
  $("count").textContent = `${state.step} of ${sweep.length}`;
  $("story").replaceChildren(...story(state.step).flat(Infinity));
  scrub.setAttribute("aria-valuetext", `Step ${state.step} of ${sweep.length}. ${$("story").textContent}`);
  paintCursor();
  refreshGradient();
}

function play(on = !playing) {
  if (playing) clearTimeout(playing);
  playing = null;
  if (on && sweep.length) {
    if (state.step === sweep.length) goStep(0);
    const pause = () => clamp(24000 / sweep.length, 60, 900) / Number($("speed").value);
    const next = () => {
      goStep(state.step + 1);
      playing = state.step < sweep.length ? setTimeout(next, pause()) : null;
      if (!playing) play(false);
    };
    playing = setTimeout(next, 150);
  }
  $("play").textContent = playing ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", playing ? "Pause the backward sweep" : "Play the backward sweep");
  $("story").setAttribute("aria-live", playing ? "off" : "polite"); // a reader could not keep up
}

function stepBy(n) {
  play(false);
  goStep(state.step + n);
}

// --------------------------------------------------------------------------------------------------------------- memory

const memory = tape.memory ?? [];
const forwardCount = memory.filter((at) => at.phase === "forward").length;
const memoryPeak = memory.reduce((best, at, i) => (best < 0 || at.bytes > memory[best].bytes ? i : best), -1);
const memoryOf = new Map(memory.map((at, i) => [`${at.phase} ${at.node}`, i]));

function memoryLine(index) {
  const at = memory[index], line = lineOf(nodes[at.node]);
  const where = line ? [" — ", html("code", {}, `${lineName(line)}  ${line.code}`)] : ", whose line was not recorded";
  return [`${bytes(at.bytes)} ${at.phase} after ${titleOf(nodes[at.node])} #${at.node}`, where];
}

function drawMemory() {
  const holder = $("memory");
  if (!memory.length) return holder.replaceChildren(missing("The memory over time was not recorded in this tape."));
  const top = memory[memoryPeak].bytes || 1, n = memory.length;
  const x = (i) => (i / n * 1000).toFixed(2), y = (b) => (58 - 56 * b / top).toFixed(2);
  const steps = (from, to) => memory.slice(from, to).map((at, i) => `L${x(from + i)} ${y(at.bytes)}L${x(from + i + 1)} ${y(at.bytes)}`).join("");
  const area = (from, to, name) => svg("path", { class: name, d: `M${x(from)} 58${steps(from, to)}L${x(to)} 58Z` });
  const chart = svg("svg", { viewBox: "0 0 1000 58", preserveAspectRatio: "none", role: "img", "aria-label": `Memory over time, ${plural(n, "point")}; at most ${bytes(top)}` },
    area(0, forwardCount, "forward"), area(forwardCount, n, "backward"), svg("path", { class: "outline", d: `M0 58${steps(0, n)}L1000 58` }));
  const percent = (i) => `left:${(i / n * 100).toFixed(3)}%`;
  holder.replaceChildren(chart, html("div", { class: "turn", style: percent(forwardCount) }), html("div", { class: "peak", style: percent(memoryPeak + 0.5) }),
    html("div", { class: "cursor", id: "cursor" }), html("p", { class: "memory-note" }, html("span", { id: "memory-now" }), html("span", { id: "memory-peak" }, "peak ", memoryLine(memoryPeak))));
  const under = (event) => {
    const box = chart.getBoundingClientRect();
    return clamp(Math.floor((event.clientX - box.left) / box.width * n), 0, n - 1);
  };
  chart.addEventListener("pointermove", (event) => $("memory-now").replaceChildren(...memoryLine(under(event)).flat()));
  chart.addEventListener("pointerleave", paintCursor);
  chart.addEventListener("click", (event) => {
    const at = memory[under(event)];
    play(false);
    goStep(at.phase === "backward" ? nodes[at.node].passed : 0);
    go(`node-${at.node}`);
  });
}

function paintCursor() {
  if (!memory.length) return;
  const event = sweep[state.step - 1];
  const index = event ? memoryOf.get(`backward ${event.node}`) : forwardCount - 1;
  if (index === undefined || index < 0) return;
  const cursor = $("cursor");
  cursor.style.left = `${((index + 0.5) / memory.length * 100).toFixed(3)}%`;
  cursor.style.setProperty("--at", `${(100 - 96 * memory[index].bytes / (memory[memoryPeak].bytes || 1)).toFixed(1)}%`);
  $("memory-now").replaceChildren(...memoryLine(index).flat());
}
