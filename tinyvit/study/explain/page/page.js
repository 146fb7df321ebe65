// The tape page. The data is SCHEMA version 1: scopes, nodes in creation order, the events of the backward sweep.
// Top to bottom: small helpers, the model, layout, drawing, the sweep, memory, the panel, attention, table, search, routes.
// A node's address is "node-17" and a scope's "scope-3": the same string is its key, its hash and its link.
"use strict";
(() => {
const tape = JSON.parse(document.getElementById("tape").textContent);
const { nodes, scopes, lines, sweep } = tape;
const $ = (id) => document.getElementById(id);
const root = document.documentElement;

// ---------------------------------------------------------------------------------------------------------- helpers

// One element with attributes and children; strings become text nodes, so that no data is ever parsed as HTML.
function element(create, tag, attributes, children) {
  const made = create(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}
const html = (tag, attributes, ...children) => element((t) => document.createElement(t), tag, attributes, children);
const svg = (tag, attributes, ...children) =>
  element((t) => document.createElementNS("http://www.w3.org/2000/svg", t), tag, attributes, children);

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const plural = (n, one) => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;
// An op with several results has a list of shapes.
const shapeOf = (shape) => (Array.isArray(shape[0]) ? shape.map(shapeOf).join(" and ") : [() => "scalar", () => `${shape[0]}-vector`][shape.length]?.() ?? shape.join("×"));
const sizeOf = (shape) => (Array.isArray(shape[0]) ? shape.reduce((sum, one) => sum + sizeOf(one), 0) : shape.reduce((a, b) => a * b, 1));
const missing = (sentence) => html("p", { class: "missing" }, sentence);
const lineName = (line) => `${line.file}:${line.line}`;
const lineOf = (node) => (node.line === null || node.line === undefined ? null : lines[node.line]);

function bytes(n) {
  if (n < 1024) return `${n} B`;
  const power = Math.min(Math.floor(Math.log2(n) / 10), 3);
  const scaled = n / 1024 ** power;
  return `${scaled < 10 ? scaled.toFixed(1) : Math.round(scaled).toLocaleString("en")} ${["", "KiB", "MiB", "GiB"][power]}`;
}

function microseconds(us) {
  if (us === null || us === undefined) return "not timed";
  return us < 1000 ? `${us < 10 ? us.toFixed(1) : Math.round(us)} µs` : `${(us / 1000).toFixed(us < 1e4 ? 2 : 1)} ms`;
}

// Non-finite numbers come as the strings "nan", "inf" and "-inf".
function number(x, digits = 4) {
  if (typeof x !== "number") return x === null || x === undefined ? "–" : String(x).replace("-", "−");
  if (x === 0) return "0";
  const size = Math.abs(x);
  let text = size >= 1e6 || size < 1e-4 ? x.toExponential(digits - 2) : x.toPrecision(digits);
  if (!text.includes("e") && text.includes(".")) text = text.replace(/\.?0+$/, "");
  return text.replace("e+", "e").replaceAll("-", "−");
}

// Enough of Python's grammar to tint a rule of a few lines.
const PYTHON = /(#[^\n]*)|("""[^]*?"""|'''[^]*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|\b(and|as|assert|class|def|del|elif|else|False|for|from|if|import|in|is|lambda|None|not|or|raise|return|True|while|with|yield)\b|\b(\d[\w.]*)/g;
function python(source, wrap = false) {
  const pre = html("pre", { tabindex: "0", class: wrap && "wrap" });
  let done = 0;
  for (const match of source.matchAll(PYTHON)) {
    const kind = "cskn"[[1, 2, 3, 4].findIndex((group) => match[group] !== undefined)];
    pre.append(source.slice(done, match.index), html("span", { class: kind }, match[0]));
    done = match.index + match[0].length;
  }
  pre.append(source.slice(done));
  return pre;
}

function mathml(source) {
  const template = document.createElement("template");
  template.innerHTML = source;
  return template.content.querySelector("math") ?? html("code", {}, source);
}

// ------------------------------------------------------------------------------------------------------------ model

const FOLD_ABOVE = 40; // in tapes larger than this, a parameter used once is a tag on the card of its op
const OPEN_AT_FIRST = 16; // as many cards as a screen holds

const titleOf = (node) => node.op && node.kind !== "leaf" ? (node.kind === "part" ? `part of ${node.op}` : node.op) : node.name ?? `leaf ${node.id}`;
const shortName = (node) => (node.name ? node.name.split(".").slice(-1)[0] : `leaf ${node.id}`);
const keyOf = (node) => `node-${node.id}`;

for (const node of nodes) {
  node.users = [];
  node.flags ??= [];
  node.tags = []; // leaves folded into this op's card
}
for (const node of nodes) for (const parent of node.parents) nodes[parent.id].users.push({ id: node.id, argument: parent.argument });

// Where things are shown. It differs from where they are in two ways: a leaf may be folded into the card of its op,
// and a scope that holds one op alone (a Linear) is shown as that op, under the scope's name.
const shown = scopes.map((scope, index) => ({ index, parent: scope.parent, nodes: [], scopes: [], all: [] }));
const depthOf = (index) => (scopes[index].parent === null || scopes[index].parent === undefined ? 0 : 1 + depthOf(scopes[index].parent));
for (const node of nodes) {
  const users = [...new Set(node.users.map((user) => user.id))];
  if (node.kind === "leaf" && nodes.length > FOLD_ABOVE && users.length === 1) {
    node.foldedInto = users[0];
    nodes[users[0]].tags.push(node);
  } else shown[node.scope].nodes.push(node);
  for (let s = node.scope; s !== null && s !== undefined; s = scopes[s].parent) shown[s].all.push(node);
}
for (const group of [...shown].sort((a, b) => depthOf(b.index) - depthOf(a.index))) {
  if (group.parent === null || group.parent === undefined) continue;
  const up = shown[group.parent];
  if (group.nodes.length + group.scopes.length === 0) continue;
  if (group.scopes.length === 0 && group.nodes.length === 1) {
    const [only] = group.nodes;
    only.alias = [scopes[group.index].label, only.alias].filter(Boolean).join(".");
    up.nodes.push(only);
    group.flat = only;
  } else up.scopes.push(group.index);
}
// A long script has no layers: hundreds of nodes side by side become parts of consecutive ones.
const CROWD = 150;
for (const group of [...shown]) {
  if (group.nodes.length <= CROWD) continue;
  const size = Math.ceil(Math.sqrt(group.nodes.length)), crowd = group.nodes;
  group.nodes = [];
  for (let i = 0; i < crowd.length; i += size) {
    const part = crowd.slice(i, i + size), index = scopes.length, all = part.flatMap((node) => [...node.tags, node]);
    scopes.push({ path: "", type: "", label: `#${part[0].id} to #${part.at(-1).id}`, parent: group.index });
    shown.push({ index, parent: group.index, nodes: part, scopes: [], all });
    group.scopes.push(index);
  }
}
for (const group of shown) for (const node of group.nodes) if (!group.flat) node.home = group.index;
for (const group of shown) {
  group.first = group.all.reduce((first, node) => Math.min(first, node.id), Infinity);
  group.saved = group.all.reduce((sum, node) => sum + node.saved_bytes, 0);
  group.ops = group.all.filter((node) => node.kind === "op").length;
  group.flags = new Set(group.all.flatMap((node) => node.flags));
}
const mostSaved = nodes.reduce((most, node) => Math.max(most, node.saved_bytes), 1);
const flaggedNodes = nodes.filter((node) => node.flags.length);

// The sweep, turned round: when is a node passed, and when does each gradient arrive at it?
for (const node of nodes) Object.assign(node, { passed: Infinity, arrivals: [] });
sweep.forEach((event, index) => {
  nodes[event.node].passed = index + 1;
  for (const gift of event.gives) {
    nodes[gift.to].arrivals.push(index + 1);
    nodes[gift.to].sums ||= gift.adds; // the parts of a split arrive several times too, each in its own place
  }
});
if (sweep.length) nodes[sweep[0].node].arrivals.unshift(0); // the loss has its gradient, 1, from the start
// Progress counts ops: leaves were made first, so their turn comes at the very end.
for (const group of shown) group.passes = group.all.filter((node) => !group.ops || node.kind !== "leaf").map((node) => node.passed).filter(Number.isFinite).sort((a, b) => a - b);

const state = { selected: null, step: 0, open: new Set(), view: { x: 0, y: 0, k: 1 }, matches: new Set() };

function openAtFirst() {
  state.open.add(0);
  const count = (index) => shown[index].nodes.length + shown[index].scopes.length;
  let cards = count(0);
  for (const index of shown[0].scopes.concat(shown[0].scopes.flatMap((s) => shown[s].scopes))) {
    const inside = shown[index].parent === 0 || state.open.has(shown[index].parent);
    if (inside && cards + count(index) <= OPEN_AT_FIRST) {
      state.open.add(index);
      cards += count(index);
    }
  }
}

// The keys of the scopes around something, from the root down, and itself; cut at the first closed scope.
function chainOf(node) {
  const card = node.foldedInto === undefined ? node : nodes[node.foldedInto];
  const chain = [];
  for (let s = card.home; s !== null && s !== undefined; s = shown[s].parent) chain.unshift(s);
  const closed = chain.findIndex((s) => !state.open.has(s));
  const visible = closed < 0 ? chain : chain.slice(0, closed + 1);
  return [...visible.map((s) => `scope-${s}`), ...(closed < 0 ? [keyOf(card)] : [])];
}
const visibleKey = (node) => chainOf(node).at(-1);

// ----------------------------------------------------------------------------------------------------------- layout

// Each open scope is laid out by dagre on its own, its open children being boxes in it, and what enters or leaves it
// passes a port on its border. So layouts are small (time grows with the square of the size), what is closed costs
// nothing, and twelve equal encoder layers look equal.
const CARD = 46, TAG_ROW = 22, HEADER = 26, PAD = 14;
const ruler = document.createElement("canvas").getContext("2d");
const fontOf = getComputedStyle(root).getPropertyValue("--sans");
function textWidth(text, size, weight = 400) {
  ruler.font = `${weight} ${size}px ${fontOf}`;
  return ruler.measureText(text).width;
}

function cardText(node) {
  return { alias: node.alias, title: titleOf(node), number: `#${node.id}`, shape: shapeOf(node.shape), bytes: node.saved_bytes ? `keeps ${bytes(node.saved_bytes)}` : "" };
}

function nodeSize(node) {
  if (node.size) return node.size;
  const text = cardText(node);
  const first = textWidth(`${text.alias ?? ""} ${text.title}`, 13, 600) + textWidth(text.number, 11) + 34;
  const second = textWidth(text.shape, 11) + textWidth(text.bytes, 11) + 36;
  let tags = PAD - 6;
  for (const leaf of node.tags) {
    leaf.tagWidth = textWidth(shortName(leaf), 10.5) + 14;
    leaf.tagX = tags + 2;
    tags += leaf.tagWidth + 5;
  }
  const small = node.kind === "leaf";
  node.size = { w: Math.ceil(Math.max(small ? 84 : 132, first, second, tags + 8)), h: CARD + (node.tags.length ? TAG_ROW : 0) };
  return node.size;
}

function scopeText(index) {
  const group = shown[index], scope = scopes[index];
  return { label: scope.label, type: scope.type === scope.label ? "" : scope.type, facts: `${plural(group.ops, "op")}, keeps ${bytes(group.saved)}` };
}

function closedSize(index) {
  const text = scopeText(index);
  return { w: Math.ceil(Math.max(150, textWidth(`${text.label} ${text.type}`, 13, 600) + 54, textWidth(text.facts, 11) + 44)), h: CARD };
}

// All edges of the tape, each cut into segments at the borders of the scopes that are open.
function segments() {
  const found = new Map(); // scope key → Map("from→to" → segment)
  const put = (scope, from, to, pair) => {
    if (!found.has(scope)) found.set(scope, new Map());
    const key = `${from}→${to}`, within = found.get(scope);
    if (!within.has(key)) within.set(key, { scope, from, to, pairs: [] });
    within.get(key).pairs.push(pair);
  };
  const chains = nodes.map(chainOf);
  for (const node of nodes) for (const { id } of node.parents) {
    if (nodes[id].foldedInto !== undefined) continue;
    const up = chains[id], down = chains[node.id], pair = [id, node.id];
    let common = 0;
    while (common < up.length && up[common] === down[common]) common++;
    if (common === up.length || common === down.length) continue; // both inside one closed scope
    put(up[common - 1], up[common], down[common], pair);
    for (let i = common + 1; i < up.length; i++) put(up[i - 1], up[i], "out", pair);
    for (let i = common + 1; i < down.length; i++) put(down[i - 1], "in", down[i], pair);
  }
  return found;
}

// Dagre bends every edge half a rank down; one that goes a single rank is better drawn as one curve.
const bendsOf = (points) => (points.length <= 3 ? [] : points.slice(1, -1));

// What this returns is relative to the scope's own corner.
function layoutScope(index, edges, result) {
  const key = `scope-${index}`, isRoot = index === 0;
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: "TB", nodesep: 22, edgesep: 16, ranksep: 30 });
  const children = [...shown[index].nodes.map((node) => ({ key: keyOf(node), first: node.id, node })),
    ...shown[index].scopes.map((s) => ({ key: `scope-${s}`, first: shown[s].first, scope: s }))].sort((a, b) => a.first - b.first);
  for (const child of children) {
    if (child.node) child.size = nodeSize(child.node);
    else child.size = state.open.has(child.scope) ? layoutScope(child.scope, edges, result) : closedSize(child.scope);
    graph.setNode(child.key, { width: child.size.w, height: child.size.h });
  }
  const within = [...(edges.get(key)?.values() ?? [])];
  for (const port of ["in", "out"]) if (within.some((s) => s.from === port || s.to === port)) graph.setNode(port, { width: 2, height: 2 });
  for (const segment of within) graph.setEdge(segment.from, segment.to, {});
  dagre.layout(graph);
  const { width = 0, height = 0 } = graph.graph();
  const text = isRoot ? 0 : textWidth(`${scopeText(index).label} ${scopeText(index).type}`, 12, 600) + 40;
  const w = Math.max(width + 2 * PAD, text), dx = (w - width) / 2, dy = isRoot ? PAD : HEADER + (graph.hasNode("in") ? 0 : 8);
  const ports = {};
  for (const port of ["in", "out"]) if (graph.hasNode(port)) ports[port] = graph.node(port).x + dx;
  const h = height + dy + (ports.out === undefined ? PAD : 0);
  result.scopes.set(key, { w, h, ports, children: children.map((child) => {
    const at = graph.node(child.key);
    return { ...child, x: at.x + dx - child.size.w / 2, y: at.y + dy - child.size.h / 2, ...child.size };
  }), segments: within.map((segment) => ({ ...segment, bends: bendsOf(graph.edge(segment.from, segment.to).points).map((p) => ({ x: p.x + dx, y: p.y + dy })) })) });
  return { w, h };
}

// From relative to absolute, and the segments' ends put on cards and ports.
function layout() {
  const result = { scopes: new Map(), boxes: new Map(), segments: [] };
  const size = layoutScope(0, segments(), result);
  const place = (index, x, y) => {
    const key = `scope-${index}`, own = result.scopes.get(key);
    result.boxes.set(key, { key, x, y, w: own.w, h: own.h, scope: index, open: true });
    for (const child of own.children) {
      const box = { key: child.key, x: x + child.x, y: y + child.y, w: child.w, h: child.h, node: child.node, scope: child.scope };
      if (child.scope !== undefined && state.open.has(child.scope)) place(child.scope, box.x, box.y);
      else result.boxes.set(child.key, box);
    }
    const port = (name, side) => {
      if (name === "in") return { x: x + own.ports.in, y };
      if (name === "out") return { x: x + own.ports.out, y: y + own.h };
      const box = result.boxes.get(name), ports = box.open ? result.scopes.get(name).ports : {};
      return { x: box.x + (ports[side] ?? box.w / 2), y: side === "out" ? box.y + box.h : box.y };
    };
    for (const segment of own.segments) {
      const start = port(segment.from, "out"), behind = segment.from === "in" ? [{ x: start.x, y: y + HEADER }] : []; // the title
      const points = [start, ...behind, ...segment.bends.map((p) => ({ x: p.x + x, y: p.y + y })), port(segment.to, "in")];
      result.segments.push({ ...segment, points });
    }
  };
  place(0, 0, 0);
  return { ...result, ...size };
}

function around(points) {
  const xs = points.map((p) => p.x), ys = points.map((p) => p.y), x = Math.min(...xs), y = Math.min(...ys);
  return { x, y, w: Math.max(...xs) - x, h: Math.max(...ys) - y };
}

// A curve that leaves and arrives upright: down the page is forward in time.
function curve(points) {
  const at = (p) => `${p.x.toFixed(1)} ${p.y.toFixed(1)}`;
  let path = `M${at(points[0])}`;
  for (let i = 1; i < points.length; i++) {
    const a = points[i - 1], b = points[i], bend = (b.y - a.y) / 2;
    path += Math.abs(a.x - b.x) < 0.5 ? `L${at(b)}` : `C${at({ x: a.x, y: a.y + bend })} ${at({ x: b.x, y: b.y - bend })} ${at(b)}`;
  }
  return path;
}

// ---------------------------------------------------------------------------------------------------------- drawing

const stage = $("stage"), graph = $("graph");
let plan = null; // the present layout
let drawn = new Map(); // key → {box, g, …} of what is in the document
let drawnEdges = [];
let viewport, flowLayer;

function describe(box) {
  if (box.node) {
    const node = box.node;
    return [node.alias ? `${node.alias}, ${titleOf(node)}` : titleOf(node), `number ${node.id}`, `shape ${shapeOf(node.shape)}`,
      node.saved_bytes ? `keeps ${bytes(node.saved_bytes)}` : "", ...node.flags].filter(Boolean).join(", ");
  }
  const text = scopeText(box.scope);
  return [`${text.label} ${text.type}`.trim(), text.facts, ...shown[box.scope].flags].join(", ");
}

function drawItem(box) {
  const isGroup = box.scope !== undefined;
  const flags = isGroup ? [...shown[box.scope].flags] : [...box.node.flags, ...box.node.tags.flatMap((leaf) => leaf.flags)];
  const kind = box.open ? "item group" : isGroup ? "item closed" : `item ${box.node.kind}`;
  const g = svg("g", { class: kind + (flags.length ? " flagged" : ""), "data-key": box.key, role: "button", tabindex: "-1", "aria-label": describe(box),
    "aria-expanded": isGroup ? String(Boolean(box.open)) : null, transform: `translate(${box.x.toFixed(1)} ${box.y.toFixed(1)})` });
  if (isGroup && !box.open) g.append(svg("rect", { class: "stack", x: 4, y: 4, width: box.w, height: box.h, rx: 6 }));
  g.append(svg("rect", { class: "halo", x: -4, y: -4, width: box.w + 8, height: box.h + 8, rx: 9 }),
    svg("rect", { class: "box", width: box.w, height: box.h, rx: 6 }));
  const parts = { box, g, name: g.getAttribute("class") };
  if (isGroup) drawScope(box, parts);
  else drawNode(box, parts);
  if (flags.length) {
    const x = box.w - 3;
    g.append(svg("g", { class: "mark", transform: `translate(${x} 3)` }, svg("title", {}, flags.join(", ")), svg("circle", { r: 8 }), svg("text", { y: 4 }, "!")));
  }
  return parts;
}

function drawNode(box, parts) {
  const { node, w } = box, { g } = parts, text = cardText(node);
  g.append(svg("text", { class: "name", x: 10, y: 19 }, text.alias ? [svg("tspan", { class: "alias" }, text.alias), svg("tspan", { class: "op", dx: 6 }, text.title)] : text.title),
    svg("text", { class: "number", x: w - 10, y: 19 }, text.number), svg("text", { class: "shape", x: 10, y: 36 }, text.shape));
  if (text.bytes) {
    g.append(svg("text", { class: "bytes", x: w - 10, y: 36 }, text.bytes),
      svg("rect", { class: "bar", x: 1, y: box.h - 3, width: Math.max(2, (w - 2) * node.saved_bytes / mostSaved), height: 2.5 }));
  }
  parts.tags = node.tags.map((leaf) => {
    const tag = svg("g", { class: `item chip leaf${leaf.flags.length ? " flagged" : ""}`, "data-key": keyOf(leaf), role: "button", tabindex: "-1",
      "aria-label": `${titleOf(leaf)}, parameter of shape ${shapeOf(leaf.shape)}${leaf.flags.map((f) => `, ${f}`).join("")}`, transform: `translate(${leaf.tagX} ${CARD - 4})` },
    svg("title", {}, `${titleOf(leaf)} ${shapeOf(leaf.shape)}`), svg("rect", { class: "box", width: leaf.tagWidth, height: 16, rx: 4 }),
    svg("text", { class: "name", x: 7, y: 12 }, shortName(leaf)));
    g.append(tag);
    return { leaf, g: tag, name: tag.getAttribute("class") };
  });
  if (node.sums) { // used several times: its gradients add here
    parts.sumText = svg("text", { x: 0, y: 4 }, `⊕ 0/${node.arrivals.length}`);
    parts.sum = svg("g", { class: "sum", transform: `translate(${w - 30} ${box.h + 3})` }, // beside the edge that leaves in the middle
      svg("title", {}, `used ${node.arrivals.length} times: its gradients add`), svg("rect", { x: -19, y: -8, width: 38, height: 16, rx: 8 }), parts.sumText);
    g.append(parts.sum);
  }
}

function drawScope(box, parts) {
  const text = scopeText(box.scope), y = box.open ? 17 : 19;
  let { g } = parts;
  if (box.open) g = parts.title = svg("g", { class: "group title", transform: g.getAttribute("transform") }); // over the edges
  g.append(svg("text", { class: "toggle", x: 9, y: y - 0.5 }, box.open ? "▾" : "▸"),
    svg("text", { class: "name", x: 22, y }, svg("tspan", { class: "alias" }, text.label), text.type ? svg("tspan", { class: "op", dx: 6 }, text.type) : ""));
  if (!box.open) g.append(svg("text", { class: "shape", x: 22, y: 36 }, text.facts));
  parts.progress = svg("rect", { class: "progress", x: 1, y: box.open ? HEADER - 3 : box.h - 3.5, width: 0, height: box.open ? 2 : 3 });
  parts.g.append(parts.progress);
}

function marker(id, name) {
  return svg("marker", { id, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: name === "arrow" ? 7 : 11, markerHeight: name === "arrow" ? 7 : 11, orient: "auto-start-reverse", markerUnits: "userSpaceOnUse" },
    svg("path", { d: "M0 0.6L8 4L0 7.4Z", class: name }));
}

function draw() {
  plan = layout();
  const boxes = [...plan.boxes.values()].filter((box) => box.key !== "scope-0");
  const groups = boxes.filter((box) => box.open), cards = boxes.filter((box) => !box.open);
  const items = [...groups, ...cards].map(drawItem);
  drawn = new Map(items.map((item) => [item.box.key, item]));
  drawnEdges = plan.segments.map((segment) => ({ segment, name: "edge", box: around(segment.points), path: svg("path", { class: "edge", d: curve(segment.points), "marker-end": segment.to === "out" ? null : "url(#arrow)" }) }));
  flowLayer = svg("g", { class: "flow" });
  viewport = svg("g", { id: "viewport" }, svg("g", {}, items.filter((i) => i.box.open).map((i) => i.g)),
    svg("g", {}, drawnEdges.map((edge) => edge.path)), flowLayer, svg("g", {}, items.map((i) => i.title)), svg("g", {}, items.filter((i) => !i.box.open).map((i) => i.g)));
  graph.replaceChildren(svg("defs", {}, marker("arrow", "arrow"), marker("arrow-grad", "arrow-grad")), viewport);
  markSelected();
  paintStep();
  applyView();
}

// --- pan and zoom

function applyView() {
  const { x, y, k } = state.view;
  viewport.setAttribute("transform", `translate(${x.toFixed(2)} ${y.toFixed(2)}) scale(${k.toFixed(4)})`);
  hideOutside();
  paintOverview();
}

// What lies far outside the stage is not rendered: a browser lays out every text of an SVG anew at each change in it.
function hideOutside() {
  const { x, y, k } = state.view, { W, H } = sizes, margin = 200;
  const left = (-x - margin) / k, top = (-y - margin) / k, right = (W - x + margin) / k, bottom = (H - y + margin) / k;
  const update = (thing, element, box) => {
    const out = box.x > right || box.y > bottom || box.x + box.w < left || box.y + box.h < top;
    if (thing.out === out) return;
    thing.out = out;
    if (out) element.setAttribute("display", "none");
    else element.removeAttribute("display");
  };
  for (const item of drawn.values()) {
    update(item, item.g, item.box);
    if (item.title) update(item.title, item.title, item.box);
  }
  for (const edge of drawnEdges) update(edge, edge.path, edge.box);
}
const setView = (x, y, k) => { state.view = { x, y, k }; applyView(); };
// Sizes are kept: to ask the browser for one in the middle of a step would make it lay out the whole graph for it.
const sizes = { W: 0, H: 0, sheet: 0 };
const stageSize = () => sizes;
function measureStage() {
  const panel = $("panel"), isSheet = getComputedStyle(panel).position === "absolute";
  Object.assign(sizes, { W: stage.clientWidth, H: stage.clientHeight, sheet: isSheet ? panel.offsetHeight : 0 });
}
const TOOLS = 48, LEGEND = 30; // the strips above and below that the tools and the legend cover

function fit(smallest = 0) {
  const { W, H } = stageSize();
  const whole = Math.min((W - 24) / plan.w, (H - TOOLS - LEGEND) / plan.h, 1.25);
  const k = Math.max(whole, Math.min(smallest, (W - 24) / plan.w));
  setView((W - plan.w * k) / 2, Math.max(TOOLS, TOOLS + (H - TOOLS - LEGEND - plan.h * k) / 2), k);
}

function zoomAt(factor, cx, cy) {
  const { x, y, k } = state.view, next = clamp(k * factor, 0.05, 4);
  setView(cx - (cx - x) * next / k, cy - (cy - y) * next / k, next);
}
const zoomMiddle = (factor) => zoomAt(factor, sizes.W / 2, sizes.H / 2);

// The part of the stage that no sheet covers.
function freeHeight() {
  return sizes.H - (sizes.sheet || LEGEND);
}

// Move only if the box is outside, and then to the middle: a graph that follows each step would make one seasick.
function bringIntoView(key) {
  const box = plan.boxes.get(key);
  if (!box) return;
  const { x, y, k } = state.view, { W } = sizes, H = freeHeight();
  const left = box.x * k + x, top = box.y * k + y, right = left + box.w * k, bottom = top + Math.min(box.h * k, H / 2);
  const inside = left > 4 && right < W - 4 && top > TOOLS - 6 && bottom < H - 4;
  if (!inside) setView(W / 2 - (box.x + box.w / 2) * k, Math.max(TOOLS, H / 2 - (bottom - top) / 2) - box.y * k, k);
}

// A small picture of the whole, where the whole does not fit.
function paintOverview() {
  const canvas = $("overview"), { W, H } = stageSize(), { x, y, k } = state.view;
  canvas.hidden = plan.h * k < H * 1.02 && plan.w * k < W * 1.02;
  if (canvas.hidden) return;
  const scale = Math.min(90 / plan.w, Math.min(420, H - 120) / plan.h), ratio = window.devicePixelRatio || 1;
  const w = Math.max(14, plan.w * scale), h = Math.max(14, plan.h * scale);
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    Object.assign(canvas, { width: Math.round(w * ratio), height: Math.round(h * ratio) });
    canvas.style.width = `${w}px`;
    canvas.style.height = `${h}px`;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale * ratio, 0, 0, scale * ratio, 0, 0);
  pen.clearRect(0, 0, plan.w, plan.h);
  for (const { box, now } of drawn.values()) {
    if (box.open) continue;
    pen.fillStyle = now?.includes("current") || now?.includes("passed") ? overviewColours.grad : overviewColours.edge;
    pen.fillRect(box.x, box.y, box.w, Math.max(box.h, 1.5 / scale));
  }
  pen.strokeStyle = overviewColours.accent;
  pen.lineWidth = 1.5 / scale;
  const left = Math.max(0, -x / k), top = Math.max(0, -y / k);
  pen.strokeRect(left, top, Math.min(plan.w, (W - x) / k) - left, Math.min(plan.h, (H - y) / k) - top);
}
// Canvases know no light-dark(); the colours are read once a theme from an element that does.
const overviewColours = {};
function readColours() {
  const probe = html("i", {});
  document.body.append(probe);
  for (const name of ["grad", "edge", "accent", "paper", "ink", "card"]) {
    probe.style.color = `var(--${name})`;
    overviewColours[name] = getComputedStyle(probe).color;
  }
  probe.remove();
}

function listenToPointer() {
  const fingers = new Map();
  let moved = 0;
  graph.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    moved = 0;
  });
  graph.addEventListener("pointermove", (event) => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const dx = event.clientX - last.x, dy = event.clientY - last.y;
    moved += Math.abs(dx) + Math.abs(dy);
    if (moved < 5) return;
    if (!graph.hasPointerCapture(event.pointerId)) graph.setPointerCapture(event.pointerId);
    graph.classList.add("dragging");
    const others = [...fingers].filter(([id]) => id !== event.pointerId).map(([, p]) => p);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (!others.length) return setView(state.view.x + dx, state.view.y + dy, state.view.k);
    const [other] = others, corner = stage.getBoundingClientRect(); // two fingers: zoom about the one at rest
    const factor = Math.hypot(event.clientX - other.x, event.clientY - other.y) / Math.max(20, Math.hypot(last.x - other.x, last.y - other.y));
    zoomAt(factor, other.x - corner.left, other.y - corner.top);
  });
  for (const end of ["pointerup", "pointercancel"]) graph.addEventListener(end, (event) => {
    fingers.delete(event.pointerId);
    graph.classList.remove("dragging");
  });
  graph.addEventListener("click", (event) => {
    if (moved >= 5) return;
    const item = event.target.closest("[data-key]");
    if (item) activate(item.dataset.key);
  });
  graph.addEventListener("wheel", (event) => {
    event.preventDefault();
    const corner = stage.getBoundingClientRect();
    if (event.ctrlKey || event.metaKey) zoomAt(Math.exp(-event.deltaY * 0.004), event.clientX - corner.left, event.clientY - corner.top);
    else setView(state.view.x - (event.shiftKey ? event.deltaY : event.deltaX), state.view.y - (event.shiftKey ? 0 : event.deltaY), state.view.k);
  }, { passive: false });
  const jump = (event) => {
    const canvas = $("overview"), at = canvas.getBoundingClientRect(), { W, H } = stageSize(), { k } = state.view;
    setView(W / 2 - (event.clientX - at.left) / at.width * plan.w * k, H / 2 - (event.clientY - at.top) / at.height * plan.h * k, k);
  };
  $("overview").addEventListener("pointerdown", jump);
  $("overview").addEventListener("pointermove", (event) => event.buttons && jump(event));
}

// --- open, close, select

// What was clicked stays where it is on the screen while the rest makes room.
function redrawAround(key) {
  const before = plan?.boxes.get(key);
  draw();
  const after = plan.boxes.get(key);
  if (before && after) {
    const { x, y, k } = state.view;
    setView(x + (before.x + before.w / 2 - after.x - after.w / 2) * k, y + (before.y - after.y) * k, k);
  }
}

function toggle(index) {
  if (state.open.has(index)) state.open.delete(index);
  else state.open.add(index);
  redrawAround(`scope-${index}`);
}

function openAround(node) {
  let changed = false;
  for (let s = (node.foldedInto === undefined ? node : nodes[node.foldedInto]).home; s !== null && s !== undefined; s = shown[s].parent) {
    if (!state.open.has(s)) {
      state.open.add(s);
      changed = true;
    }
  }
  if (changed) draw();
}

// A click or Enter: a part opens or closes and is selected, a node is selected.
function activate(key) {
  const [kind, id] = key.split("-");
  if (kind === "scope") toggle(Number(id));
  go(key);
  focusItem(key);
}

function markSelected() {
  const card = state.selected && graph.querySelector(`[data-key="${state.selected}"]`);
  for (const old of graph.querySelectorAll(".selected")) old.classList.remove("selected");
  for (const old of graph.querySelectorAll('[tabindex="0"]')) old.setAttribute("tabindex", "-1");
  for (const old of graph.querySelectorAll("[aria-current]")) old.removeAttribute("aria-current");
  card?.classList.add("selected");
  card?.setAttribute("aria-current", "true");
  (card ?? graph.querySelector(".item"))?.setAttribute("tabindex", "0"); // one stop of the Tab key in the whole graph
  for (const { segment, path } of drawnEdges) path.classList.toggle("near", segment.pairs.some((pair) => pair.some((id) => `node-${id}` === state.selected)));
  for (const { box, g } of drawn.values()) g.classList.toggle("match", state.matches.has(box.key));
}

function focusItem(key) {
  const item = graph.querySelector(`[data-key="${key}"]`);
  item?.focus({ preventScroll: true });
}

function select(key) {
  state.selected = key;
  const [kind, id] = (key ?? "-").split("-");
  if (kind === "node") openAround(nodes[id]);
  markSelected();
  showPanel(key);
  if (key) bringIntoView(kind === "node" ? visibleKey(nodes[id]) : key);
}

// Up and down follow the edges, the straightest first; left and right, and where no edge leads, the nearest card.
function neighbour(key, direction) {
  const from = plan.boxes.get(key) ?? plan.boxes.get(visibleKey(nodes[key.split("-")[1]]));
  const middle = (box) => ({ x: box.x + box.w / 2, y: box.y + (box.open ? 13 : box.h / 2) });
  const here = middle(from), sign = direction === "ArrowUp" || direction === "ArrowLeft" ? -1 : 1, upright = direction === "ArrowUp" || direction === "ArrowDown";
  const away = (box) => {
    const there = middle(box), along = sign * (upright ? there.y - here.y : there.x - here.x), aside = Math.abs(upright ? there.x - here.x : there.y - here.y);
    return along > 1 ? along + 3 * aside : Infinity;
  };
  const linked = upright ? plan.segments.map((s) => sign > 0 ? s.from === key && s.to : s.to === key && s.from).map((k) => k && plan.boxes.get(k)).filter(Boolean) : [];
  const others = [...plan.boxes.values()].filter((box) => box.key !== "scope-0" && box.key !== from.key);
  for (const choice of [linked, others]) {
    const best = choice.map((box) => [away(box), box]).sort((a, b) => a[0] - b[0])[0];
    if (best && best[0] < Infinity) return best[1].key;
  }
  return null;
}

// -------------------------------------------------------------------------------------------------------- the sweep

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
  if (step === 0) return ["Before the sweep: the forward pass is done. Play, or step, to hand the gradients back."];
  const event = sweep[step - 1], node = nodes[event.node];
  const said = [html("b", {}, nodeLink(event.node)), " "];
  const own = (g) => nodes[g.to].kind === "leaf" && shortName(nodes[g.to]) === g.argument; // weight: blocks.0.mlp.fc1.weight
  const gift = (g) => [own(g) ? html("a", { href: `#node-${g.to}` }, `${g.argument} #${g.to}`) : [g.argument ? `${g.argument}: ` : "", nodeLink(g.to)], g.adds ? html("span", { class: "adds" }, " ⊕ adds to what is there") : ""];
  if (node.kind === "leaf") said.push("keeps its gradient: the way down ends here.");
  else if (!event.gives.length) said.push("hands on no gradient.");
  else said.push("hands its gradient to ", ...listed(event.gives.map(gift)), ".");
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

// ----------------------------------------------------------------------------------------------------------- memory

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

// ------------------------------------------------------------------------------------------------------------ panel

function histogram(value, isGradient) {
  const counts = value.histogram;
  if (!counts?.length || !value.edges) return missing("A histogram was not kept.");
  const most = Math.max(1, ...counts), [low, high] = value.edges, w = 320 / counts.length;
  const zero = low < 0 && high > 0 ? 320 * -low / (high - low) : null;
  return [svg("svg", { class: "histogram", viewBox: "0 0 320 64", preserveAspectRatio: "none", role: "img", "aria-label": `Histogram from ${number(low)} to ${number(high)}` },
    svg("g", { class: isGradient ? "grad" : "" }, counts.map((c, i) => svg("rect", { x: i * w + 0.4, width: Math.max(0.5, w - 0.8), y: 64 - 62 * c / most, height: 62 * c / most }))),
    zero === null ? "" : svg("line", { x1: zero, x2: zero, y1: 0, y2: 64 })),
  html("div", { class: "range" }, html("span", {}, number(low)), zero === null ? "" : html("span", {}, "dashes: 0"), html("span", {}, number(high)))];
}

// Numbers as a table: rows are the second axis from the end, one table for each entry of the axes before it.
function numberTable(numbers, label) {
  if (!Array.isArray(numbers)) numbers = [[numbers]];
  else if (!Array.isArray(numbers[0])) numbers = [numbers];
  if (Array.isArray(numbers[0]?.[0])) return numbers.map((inner, i) => [html("p", { class: "stats" }, `[${label}${i}]`), numberTable(inner, `${label}${i}, `)]);
  const cell = (x) => html("td", { class: typeof x === "string" ? "bad" : null }, number(x));
  return html("div", { class: "numbers", tabindex: "0", role: "group", "aria-label": "Numbers" }, html("table", {}, html("tbody", {}, numbers.map((row) => html("tr", {}, row.map(cell))))));
}

function valueBlock(value, absent, isGradient = false) {
  if (!value) return missing(absent);
  if (value.text !== undefined) return html("p", {}, html("code", {}, value.text));
  const stat = (name, x) => [`${name} `, html("b", {}, x), "  "];
  const stats = value.size > 1 && html("p", { class: "stats" }, stat("min", number(value.min)), stat("max", number(value.max)), stat("mean", number(value.mean)), stat("std", number(value.std)),
    stat("norm", number(value.norm)), value.zeros ? stat("zeros", `${(100 * value.zeros).toFixed(value.zeros < 0.1 ? 1 : 0)} %`) : "",
    value.nonfinite ? html("b", { class: "flagged" }, `${value.nonfinite.toLocaleString("en")} of ${plural(value.size, "number")} not finite`) : "");
  const numbers = value.numbers === undefined || value.numbers === null ? null : numberTable(value.numbers, "");
  return [numbers, !numbers || value.size > 16 ? histogram(value, isGradient) : "", stats];
}

const section = (title, ...content) => [html("h3", {}, title), ...content];

function crumbs(index) {
  const path = [];
  for (let s = index; s !== null && s !== undefined; s = scopes[s].parent) path.unshift(s);
  return html("p", { class: "crumbs" }, path.flatMap((s, i) => {
    const target = shown[s].flat ? keyOf(shown[s].flat) : `scope-${s}`, text = scopes[s].label + (scopes[s].type && scopes[s].type !== scopes[s].label ? ` ${scopes[s].type}` : "");
    return [i ? " › " : "", s === 0 ? text : html("a", { href: `#${target}` }, text)];
  }));
}

function linksOf(node) {
  const argument = (name) => (name ? html("code", {}, `${name} `) : "");
  const inputs = node.parents.map((p) => html("li", {}, argument(p.argument), nodeLink(p.id), html("span", { class: "muted" }, ` ${shapeOf(nodes[p.id].shape)}`)));
  const constants = (node.constants ?? []).map((c) => html("li", {}, argument(c.argument),
    c.value?.text !== undefined ? html("code", {}, c.value.text.replace(`${c.argument}=`, "")) : [`constant ${shapeOf(c.shape ?? [])} ${c.dtype ?? ""}`, c.value ? html("details", {}, html("summary", {}, "its numbers"), valueBlock(c.value, "")) : ""]));
  const users = node.users.map((u) => html("li", {}, nodeLink(u.id), u.argument ? html("span", { class: "muted" }, ` as ${u.argument}`) : "", html("span", { class: "muted" }, ` ${shapeOf(nodes[u.id].shape)}`)));
  return [...(node.kind === "leaf" ? [] : section("Computed from", html("ul", { class: "links inputs" }, inputs, constants))),
    ...section("Used by", users.length ? html("ul", { class: "links outputs" }, users) : missing("Nothing: the sweep starts here, or nothing needed it."))];
}

function sweepBlock(node) {
  if (!Number.isFinite(node.passed)) return missing("The backward sweep does not pass here.");
  const event = sweep[node.passed - 1];
  const from = node.users.filter((u) => Number.isFinite(nodes[u.id].passed)).map((u) => nodeLink(u.id));
  const given = event.gives.map((g) => [g.argument ? html("code", {}, `${g.argument} `) : "", nodeLink(g.to), g.adds ? html("b", {}, " ⊕ added to what is there") : ""]);
  return [html("p", {}, html("button", { type: "button", onclick: () => { play(false); goStep(node.passed); } }, `Go to step ${node.passed} of ${sweep.length}`)),
    html("p", {}, from.length ? ["Its gradient comes from ", ...listed(from), from.length > 1 ? (node.sums ? ": a sum." : ", each in its own place.") : "."] : "It starts with a gradient of one."),
    given.length ? html("p", {}, "It gives to ", ...listed(given), ".") : node.kind === "leaf" ? html("p", {}, "The gradient is kept here.") : "",
    event.freed ? html("p", {}, `Then ${bytes(event.freed)} are freed.`) : ""];
}

function savedBlock(node) {
  if (node.kind === "leaf") return missing("A leaf saves nothing; it is what the gradient is taken for.");
  if (!node.saved?.length) return missing("Nothing: its rule needs no more than the gradient.");
  return html("table", { class: "grid" }, html("thead", {}, html("tr", {}, ["what", "shape", "bytes", "why"].map((t) => html("th", { scope: "col" }, t)))),
    html("tbody", {}, node.saved.map((s) => html("tr", {},
      html("td", {}, html("code", {}, s.name), s.of !== null && s.of !== undefined ? [" ", html("a", { href: `#node-${s.of}` }, `#${s.of}`)] : ""),
      html("td", {}, s.value?.text !== undefined ? html("code", {}, s.value.text) : `${shapeOf(s.shape ?? [])} ${s.dtype ?? ""}`), html("td", {}, s.bytes ? bytes(s.bytes) : "–", s.shared ? html("span", { class: "muted" }, " shared") : ""), html("td", {}, s.why ?? "")))));
}

function verdictBlock(op) {
  const v = op?.verdict;
  if (!v) return missing("No audit of this op is at hand.");
  const worst = v.worst;
  return [html("p", {}, html("span", { class: `verdict ${v.verdict}` }, { pass: "✓ pass", fail: "✗ fail" }[v.verdict] ?? v.verdict), v.rows ? ` in ${plural(v.rows, "row")}` : "", v.from ? html("span", { class: "muted" }, `, ${v.from}`) : ""),
    worst ? html("p", { class: "stats" }, `Worst: ${worst.method}, error ${number(worst.error, 3)} where ${number(worst.tolerance, 3)} is allowed`, worst.margin ? ` (${number(worst.margin, 2)} times better)` : "",
      worst.given !== undefined && worst.given !== null ? `; given ${number(worst.given, 7)}, expected ${number(worst.expected, 7)}` : "", ".") : ""];
}

// An op such as `linear` stands in many equations: those meant in the innermost layer around this node come first.
function equationsFor(op, node) {
  for (let s = node.scope; s !== null && s !== undefined; s = scopes[s].parent) {
    const meant = (e) => e.layers?.includes(scopes[s].type);
    if (op.equations.some(meant)) return [op.equations.filter(meant), op.equations.filter((e) => !meant(e))];
  }
  return op.equations.length > 6 ? [[], op.equations] : [op.equations, []];
}

function equationBlock(op, node) {
  if (!op?.equations?.length) return missing("The tutorial has no numbered equation for this op; its rule below is the formula.");
  const [here, elsewhere] = equationsFor(op, node);
  const draw = (e) => html("div", { class: "equation" }, html("p", { class: "title" }, html("b", {}, `(${e.number}) `), e.title ?? ""), e.mathml ? mathml(e.mathml) : "",
    e.holds ? [html("p", { class: "note" }, "As it holds here:"), mathml(e.holds)] : "", e.note ? html("p", { class: "note" }, e.note) : "");
  return [here.map(draw), elsewhere.length ? html("details", {}, html("summary", {}, `${plural(elsewhere.length, "equation")} where other layers use ${node.op}`), elsewhere.map(draw)) : ""];
}

function ruleBlock(op) {
  if (!op?.rules?.length) return missing("The source of its backward rule is not at hand.");
  return op.rules.map((rule) => [html("p", { class: "rule-of" }, rule.argument === "*" ? "all arguments together" : ["for ", html("code", {}, rule.argument)], html("span", { class: "muted" }, op.file ? ` — ${op.file}:${rule.line ?? op.line}` : "")), python(rule.code)]);
}

function lineBlock(node) {
  const line = lineOf(node);
  if (!line) return missing(node.kind === "leaf" ? "A leaf was there before the tape began." : "The line that made it was not recorded.");
  return [html("p", { class: "place" }, lineName(line), line.function ? ` in ${line.function}` : ""), python(line.code, true)];
}

function nodePanel(node) {
  const op = node.op && node.kind !== "leaf" ? tape.ops?.[node.op] : null;
  const fact = (name, value) => html("div", {}, html("dt", {}, name), html("dd", {}, value));
  const part = [html("h2", {}, html("code", {}, titleOf(node)), html("span", { class: "number" }, ` #${node.id}`)), crumbs(node.scope),
    op?.doc ? html("p", {}, op.doc) : "", node.flags.length ? html("p", { class: "flags" }, node.flags.map((f) => html("span", { class: "flag" }, `! ${f}`))) : "",
    html("dl", { class: "facts" }, fact("shape", `${shapeOf(node.shape)}${node.shape.length ? `, ${plural(sizeOf(node.shape), "number")}` : ""}`), fact("dtype", node.dtype),
      node.kind === "leaf" ? "" : [fact("keeps", node.saved_bytes ? bytes(node.saved_bytes) : "nothing of its own"), fact("forward", microseconds(node.forward_us)), fact("backward", microseconds(node.backward_us)),
        op ? fact("computed by", op.kernel ? "a compiled kernel" : "array operations") : ""])];
  const leaf = node.kind === "leaf";
  const value = section("Value", valueBlock(node.value, tape.watched === false ? "Its numbers were not recorded: no rule needed them, and the tape was not watched while it was made." : "Its numbers were not kept in this page.")), gradient = section("Gradient", valueBlock(node.gradient, Number.isFinite(node.passed) ? "Its gradient was not kept in this page." : "No gradient reaches it.", true));
  const beside = node.value?.histogram && node.gradient?.histogram && !node.value.numbers; // two histograms have room side by side
  return [...part, html("div", { class: beside ? "pair" : "" }, html("div", {}, value), html("div", {}, gradient)), ...linksOf(node), ...section("Made by", lineBlock(node)),
    ...(leaf ? [] : [...section("Equation", equationBlock(op, node)), ...section("Backward rule", ruleBlock(op)),
      op?.forward ? html("details", {}, html("summary", {}, `The forward: ${op.signature ?? node.op}`), python(op.forward)) : ""]),
    ...section("Saved for the way back", savedBlock(node)), ...section("In the sweep", sweepBlock(node)), ...(leaf ? [] : section("Audit", verdictBlock(op)))];
}

function scopePanel(index) {
  const group = shown[index], scope = scopes[index];
  const sum = (key) => group.all.some((n) => n[key] !== null && n[key] !== undefined) ? microseconds(group.all.reduce((t, n) => t + (n[key] ?? 0), 0)) : "not timed";
  const fact = (name, value) => html("div", {}, html("dt", {}, name), html("dd", {}, value));
  const leaves = group.all.filter((n) => n.kind === "leaf"), flagged = group.all.filter((n) => n.flags.length);
  return [html("h2", {}, html("code", {}, scope.label), html("span", { class: "number" }, ` ${scope.type}`)), crumbs(index),
    html("dl", { class: "facts" }, fact("ops", group.ops), fact("leaves", `${leaves.length}, ${plural(leaves.reduce((t, n) => t + sizeOf(n.shape), 0), "number")}`),
      fact("keeps", bytes(group.saved)), fact("forward", sum("forward_us")), fact("backward", sum("backward_us"))),
    ...(flagged.length ? section("Flagged", html("ul", { class: "links" }, flagged.map((n) => html("li", {}, nodeLink(n.id), ` ${n.flags.join(", ")}`)))) : []),
    ...(group.scopes.length ? section("Parts", html("ul", { class: "links" }, group.scopes.map((s) => html("li", {}, html("a", { href: `#scope-${s}` }, scopes[s].label), html("span", { class: "muted" }, ` ${scopes[s].type}, ${scopeText(s).facts}`))))) : []),
    ...section("Nodes", html("ul", { class: "links" }, group.all.map((n) => html("li", {}, nodeLink(n.id), html("span", { class: "muted" }, ` ${shapeOf(n.shape)}`)))))];
}

function overviewPanel() {
  return [html("h2", {}, tape.title), html("p", { class: "crumbs" }, tape.made_by ?? ""),
    tape.watched === false ? missing("This tape was not watched while it was made: lines, layers, forward times, and values that no rule saved are not known.") : "",
    html("p", {}, "Select a node to see its numbers, its backward rule and the equation behind it. Open a part of the model with a click or Enter. Play the slider below to watch the gradients being handed back."),
    ...(flaggedNodes.length ? section("Flagged", html("ul", { class: "links" }, flaggedNodes.slice(0, 60).map((n) => html("li", {}, nodeLink(n.id), ` ${n.flags.join(", ")}`)))) : section("Flagged", missing("Nothing: every value and gradient is finite, and no gradient is zero."))),
    ...section("What keeps most", html("ul", { class: "links" }, [...nodes].sort((a, b) => b.saved_bytes - a.saved_bytes).slice(0, 5).filter((n) => n.saved_bytes).map((n) => html("li", {}, nodeLink(n.id), html("span", { class: "muted" }, ` ${bytes(n.saved_bytes)}`)))))];
}

function showPanel(key) {
  const panel = $("panel"), [kind, id] = (key ?? "-").split("-");
  const content = kind === "node" ? nodePanel(nodes[id]) : kind === "scope" ? scopePanel(Number(id)) : overviewPanel();
  const close = key ? html("button", { class: "close", type: "button", "aria-label": "Close the panel", title: "Close (Esc)", onclick: () => go("graph") }, "×") : "";
  panel.classList.toggle("empty", !key);
  panel.replaceChildren(...[close, ...content].flat(Infinity).filter((part) => part !== "" && part !== null && part !== undefined && part !== false));
  panel.scrollTop = 0;
  measureStage();
}

// -------------------------------------------------------------------------------------------------------- attention

const decode = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const look = { image: 0, token: 0, whom: false, local: true, ready: null };

// From paper to blue in light, from paper to bright in dark; one hue, so that darker (or brighter) is always more.
function paintMap(canvas, weights, most, [rows, columns]) {
  Object.assign(canvas, { width: columns, height: rows });
  const rgb = (name) => overviewColours[name].match(/[\d.]+/g).slice(0, 3).map(Number), from = rgb("card"), to = rgb("accent"), picture = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const share = most > 0 ? clamp(weights[i] / most, 0, 1) : 0;
    for (let c = 0; c < 3; c++) picture.data[4 * i + c] = from[c] + (to[c] - from[c]) * share;
    picture.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

// The weights from one token to all patches (or to it, from all), out of one map of bytes and its rows' maxima.
function weightsOf(data, scales, map, token, toIt) {
  const { tokens: T, prefix } = tape.attention, out = new Float32Array(T);
  for (let j = 0; j < T; j++) {
    const row = toIt ? j : token, column = toIt ? token : j;
    out[j] = data[(map * T + row) * T + column] / 255 * scales[map * T + row];
  }
  return { patches: out.subarray(prefix), prefix: out.subarray(0, prefix) };
}

function tokenName(token) {
  const { prefix, grid } = tape.attention;
  if (token < prefix) return prefix === 1 ? "the class token" : `prefix token ${token + 1}`;
  return `patch row ${Math.floor((token - prefix) / grid[1]) + 1}, column ${(token - prefix) % grid[1] + 1}`;
}

function buildAttention() {
  const a = tape.attention, view = $("view-attention");
  if (!a?.images?.length) {
    view.replaceChildren(html("p", { class: "sentence" }, "No attention was recorded: this computation has no Vision Transformer in it. The graph and the table show all of it."));
    return;
  }
  const [gh, gw] = a.grid;
  const check = (text, key, on) => html("label", {}, html("input", { type: "checkbox", checked: on, onchange: (e) => { look[key] = e.target.checked; paintAttention(); } }), text);
  const label = (image, i) => `image ${i + 1}${image.label !== undefined && image.label !== null ? `, label ${image.label}` : ""}`;
  look.maps = [];
  const grid = html("div", { class: "maps", style: `--heads:${a.heads};--aspect:${gw}/${gh}` }, Array.from({ length: a.layers }, (_, l) =>
    html("section", { class: "layer", "aria-label": `Layer ${l + 1}` }, html("h4", {}, `Layer ${l + 1}`), Array.from({ length: a.heads }, (_, h) => {
      const canvas = html("canvas", { role: "img" }), most = html("span", {});
      look.maps.push({ canvas, most, name: `layer ${l + 1} head ${h + 1}` });
      return html("figure", {}, canvas, html("figcaption", {}, `head ${h + 1} · `, most));
    }))));
  view.replaceChildren(html("div", { class: "attention" },
    html("div", {}, html("h2", {}, "Where each patch looks"),
      html("div", { class: "thumbs", role: "group", "aria-label": "Images", hidden: a.images.length < 2 }, a.images.map((image, i) => html("button", { type: "button", "aria-pressed": "false", "aria-label": label(image, i), onclick: () => { look.image = i; look.ready = null; paintAttention(); } }, html("img", { src: image.png, alt: "" })))),
      html("div", { class: "picture", id: "picture", tabindex: "0", role: "application", "aria-roledescription": "image of patches", "aria-describedby": "token-said" }, html("img", { id: "picture-image", alt: "" }), html("canvas", { id: "picture-grid" })),
      html("p", { id: "token-said", class: "story", style: "white-space:normal", "aria-live": "polite" }),
      html("div", { class: "options" }, html("button", { type: "button", id: "class-token", hidden: a.prefix === 0, onclick: () => { look.token = 0; paintAttention(); } }, "Class token"), check("who looks at it, instead", "whom", false), check("each map to its own maximum", "local", true)),
      html("div", { class: "pair" },
        html("figure", {}, html("canvas", { id: "rollout", role: "img" }), html("figcaption", { id: "rollout-said" })),
        html("figure", {}, html("img", { id: "pixel-gradient", alt: "" }), html("figcaption", { id: "pixel-said" }))),
      html("div", { id: "probabilities" })),
    html("div", {}, html("h3", { id: "maps-said" }), html("p", { class: "place" }, "Under each map: the largest weight in it, which is its darkest colour in light and its brightest in the dark."), grid)));
  listenToPicture();
}

function listenToPicture() {
  const picture = $("picture"), { grid: [gh, gw], prefix } = tape.attention;
  const pick = (event) => {
    const box = picture.getBoundingClientRect();
    const row = clamp(Math.floor((event.clientY - box.top) / box.height * gh), 0, gh - 1), column = clamp(Math.floor((event.clientX - box.left) / box.width * gw), 0, gw - 1);
    const token = prefix + row * gw + column;
    if (token !== look.token) { look.token = token; paintAttention(); }
  };
  picture.addEventListener("pointermove", pick);
  picture.addEventListener("pointerdown", pick);
  picture.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }, move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopPropagation();
    const patch = Math.max(0, look.token - prefix), start = look.token < prefix;
    const row = clamp(Math.floor(patch / gw) + (start ? 0 : move[0]), 0, gh - 1), column = clamp(patch % gw + (start ? 0 : move[1]), 0, gw - 1);
    look.token = prefix + row * gw + column;
    paintAttention();
  });
}

function paintGrid() {
  const canvas = $("picture-grid"), { grid: [gh, gw], prefix } = tape.attention, side = 600, pen = canvas.getContext("2d");
  Object.assign(canvas, { width: side, height: Math.round(side * gh / gw) });
  const w = side / gw, h = canvas.height / gh;
  pen.strokeStyle = "rgba(128,128,128,.35)";
  for (let i = 1; i < gw; i++) pen.strokeRect(i * w, 0, 0, canvas.height);
  for (let i = 1; i < gh; i++) pen.strokeRect(0, i * h, side, 0);
  if (look.token < prefix) return;
  const patch = look.token - prefix, at = [(patch % gw) * w, Math.floor(patch / gw) * h, w, h];
  for (const [colour, width] of [["#000", 9], ["#fff", 6], ["#d55e00", 4]]) { // seen on any picture
    Object.assign(pen, { strokeStyle: colour, lineWidth: width });
    pen.strokeRect(...at);
  }
}

function paintAttention() {
  const a = tape.attention;
  if (!a?.images?.length) return;
  const image = a.images[look.image];
  if (!look.ready) {
    look.ready = { maps: decode(image.maps), rollout: image.rollout ? decode(image.rollout) : null };
    $("picture-image").src = image.png;
    $("picture-image").alt = `the image${image.label !== undefined && image.label !== null ? `, of class ${image.label}` : ""}`;
    document.querySelectorAll(".thumbs button").forEach((b, i) => b.setAttribute("aria-pressed", String(i === look.image)));
    paintPrediction(image);
  }
  const all = look.maps.map((_, i) => weightsOf(look.ready.maps, image.scales, i, look.token, look.whom));
  const largest = Math.max(...all.flatMap((w) => [...w.patches]));
  all.forEach((weights, i) => {
    const { canvas, most, name } = look.maps[i], peak = Math.max(...weights.patches), at = weights.patches.indexOf(peak);
    paintMap(canvas, weights.patches, look.local ? peak : largest, a.grid);
    most.textContent = number(peak, 2);
    canvas.setAttribute("aria-label", `${name}: most, ${number(peak, 2)}, ${look.whom ? "from" : "at"} ${tokenName(a.prefix + at)}${a.prefix ? `; class token ${number(weights.prefix[0], 2)}` : ""}`);
  });
  $("class-token").setAttribute("aria-pressed", String(look.token < a.prefix));
  $("maps-said").textContent = `${look.whom ? "Who looks at it" : "Where it looks"}, in every layer and head`;
  $("token-said").textContent = look.whom ? `Who looks at ${tokenName(look.token)}` : `Where ${tokenName(look.token)} looks`;
  if (look.ready.rollout) {
    const weights = weightsOf(look.ready.rollout, image.rollout_scales, 0, look.token, look.whom), peak = Math.max(...weights.patches),
    least = Math.min(...weights.patches);
    paintMap($("rollout"), weights.patches.map((w) => w - least), peak - least, a.grid); // near even after many layers
    $("rollout").setAttribute("aria-label", `Attention rollout, most ${number(peak, 2)}`);
    $("rollout-said").textContent = `Attention rollout, all layers multiplied together: ${number(least, 2)} to ${number(peak, 2)}`;
  } else $("rollout-said").textContent = "The attention rollout was not recorded.";
  paintGrid();
}

function paintPrediction(image) {
  $("pixel-gradient").hidden = !image.pixel_gradient;
  if (image.pixel_gradient) Object.assign($("pixel-gradient"), { src: image.pixel_gradient, alt: "the gradient of the loss on each pixel" });
  $("pixel-said").textContent = image.pixel_gradient ? `The gradient of the loss on the pixels: 0 to ${number(image.pixel_gradient_max, 2)} in size` : "The gradient on the pixels was not recorded.";
  const known = image.prediction !== undefined && image.prediction !== null;
  $("probabilities").replaceChildren(known ? html("p", {}, `Predicted ${image.prediction}`, image.label !== undefined && image.label !== null ? `, labelled ${image.label}` : "", ".") : missing("No prediction was recorded."),
    html("div", { class: "bars" }, (image.probabilities ?? []).slice(0, 5).flatMap(([name, p]) => [html("span", {}, name), html("i", { style: `width:${100 * p}%` }), html("span", {}, `${(100 * p).toFixed(1)} %`)])));
}

// ------------------------------------------------------------------------------------------------------------ table

function buildTable() {
  const head = ["#", "what", "where", "shape", "dtype", "computed from", "keeps", "forward", "backward", "step", "flags", "line"];
  const row = (node) => {
    const line = lineOf(node), cell = (content, name) => html("td", { class: name }, content), from = node.parents.map((p) => html("a", { href: `#node-${p.id}` }, `#${p.id}`));
    return html("tr", {}, cell(html("a", { href: `#node-${node.id}` }, `#${node.id}`), "right"), html("th", { scope: "row" }, titleOf(node)), cell(scopes[node.scope].path || scopes[node.scope].label), cell(shapeOf(node.shape)), cell(node.dtype),
      cell(from.length ? listed(from) : "–"), cell(node.saved_bytes ? bytes(node.saved_bytes) : "–", "right"), cell(node.forward_us === null || node.forward_us === undefined ? "–" : microseconds(node.forward_us), "right"),
      cell(node.kind === "leaf" || node.backward_us === null || node.backward_us === undefined ? "–" : microseconds(node.backward_us), "right"), cell(Number.isFinite(node.passed) ? node.passed : "–", "right"), cell(node.flags.join(", ") || "–", node.flags.length ? "flagged" : null), cell(line ? lineName(line) : "–"));
  };
  $("view-table").replaceChildren(html("table", { class: "tape-table" }, html("caption", {}, `The tape in the order of its creation, ${plural(nodes.length, "node")}. The column “step” is the node’s place in the backward sweep, “keeps” the bytes it keeps for it. A dash: nothing, or not recorded.`),
    html("thead", {}, html("tr", {}, head.map((t) => html("th", { scope: "col" }, t)))), html("tbody", {}, nodes.map(row))));
}

// ----------------------------------------------------------------------------------------------------------- search

// One line of text a node: "4x17x64", "4,17,64" and "4×17×64" all find a shape.
const haystack = nodes.map((node) => {
  const line = lineOf(node);
  return [`#${node.id}`, titleOf(node), node.name, node.alias, scopes[node.scope].path, shapeOf(node.shape), node.dtype, ...node.flags, line && `${lineName(line)} ${line.code}`].filter(Boolean).join(" ").toLowerCase();
});
function find(text) {
  const words = text.toLowerCase().replace(/(\d)\s*[x×,]\s*(?=\d)/g, "$1×").replace(/[()[\]]/g, " ").split(/\s+/).filter(Boolean);
  return words.length ? nodes.filter((_, i) => words.every((word) => haystack[i].includes(word))) : [];
}

const found = { list: [], at: -1 };
function showResults() {
  const list = $("results"), box = $("search"), text = box.value.trim();
  found.list = find(text).slice(0, 50);
  found.at = found.list.length ? 0 : -1;
  state.matches = new Set(find(text).map(visibleKey));
  markSelected();
  list.hidden = !text;
  box.setAttribute("aria-expanded", String(Boolean(text)));
  list.replaceChildren(...(found.list.length ? found.list.map((node, i) => {
    const line = lineOf(node);
    return html("li", { role: "option", id: `result-${i}`, onpointerdown: (event) => { event.preventDefault(); choose(i); } }, `${node.alias ? `${node.alias} ` : ""}${titleOf(node)} #${node.id}`, html("small", {}, [scopes[node.scope].path, shapeOf(node.shape), line && lineName(line), ...node.flags].filter(Boolean).join(" · ")));
  }) : [html("li", { class: "nothing" }, "Nothing has this in its op, name, line or shape.")]));
  markResult();
}
function markResult() {
  [...$("results").children].forEach((item, i) => item.setAttribute("aria-selected", String(i === found.at)));
  const item = $(`result-${found.at}`);
  if (item) $("search").setAttribute("aria-activedescendant", item.id);
  else $("search").removeAttribute("aria-activedescendant");
  item?.scrollIntoView({ block: "nearest" });
}
function closeResults() {
  $("results").hidden = true;
  $("search").setAttribute("aria-expanded", "false");
  state.matches = new Set();
  markSelected();
}
function choose(index) {
  const node = found.list[index];
  if (!node) return;
  closeResults();
  go(keyOf(node));
  requestAnimationFrame(() => focusItem(keyOf(node)));
}

// ------------------------------------------------------------------------------------------------- export and theme

const INLINED = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "paint-order", "opacity", "font-family", "font-size", "font-weight", "text-anchor", "text-decoration-line"];
function exportSvg() {
  const copy = viewport.cloneNode(true), defs = graph.querySelector("defs").cloneNode(true);
  const inline = (from, to) => {
    const style = getComputedStyle(from);
    for (const name of INLINED) to.style.setProperty(name, style.getPropertyValue(name));
    for (const name of ["class", "tabindex", "role", "data-key", "aria-current", "aria-expanded", "display"]) to.removeAttribute(name);
    [...from.children].forEach((child, i) => inline(child, to.children[i]));
  };
  inline(viewport, copy);
  inline(graph.querySelector("defs"), defs);
  copy.removeAttribute("transform");
  const file = svg("svg", { xmlns: "http://www.w3.org/2000/svg", viewBox: `-12 -12 ${Math.ceil(plan.w + 24)} ${Math.ceil(plan.h + 24)}`, width: Math.ceil(plan.w + 24), height: Math.ceil(plan.h + 24) },
    svg("title", {}, tape.title), defs, svg("rect", { x: -12, y: -12, width: "100%", height: "100%", fill: overviewColours.paper }), copy);
  const url = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(file)], { type: "image/svg+xml" }));
  html("a", { href: url, download: `${tape.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "tape"}.svg` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
function setTheme(theme) {
  if (theme) root.dataset.theme = theme;
  readColours();
  if (plan) paintOverview();
  if (document.body.dataset.view === "attention") paintAttention();
}
function toggleTheme() {
  const dark = (root.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
  setTheme(dark ? "light" : "dark");
  try { localStorage.setItem("tinyvit-theme", root.dataset.theme); } catch { /* a file may have no storage */ }
}

// ----------------------------------------------------------------------------------------------------------- routes

// What is shown follows from the address, so that links, "back" and reloading all work. Arrow keys replace the
// address instead of adding to it: "back" should not walk each of their steps again.
function go(hash, replace = false) {
  if (location.hash === `#${hash}`) return route();
  if (replace) {
    history.replaceState(null, "", `#${hash}`);
    route();
  } else location.hash = hash; // and hashchange routes
}

function route() {
  const hash = location.hash.slice(1), [, kind, id] = hash.match(/^(node|scope)-(\d+)$/) ?? [];
  const exists = kind === "node" ? nodes[id] : kind === "scope" ? scopes[id] && id !== "0" && !shown[id].flat : null;
  const view = ["attention", "table"].includes(hash) ? hash : "graph", changed = document.body.dataset.view !== view;
  document.body.dataset.view = view;
  $("dock").hidden = view !== "graph";
  for (const name of ["graph", "attention", "table"]) $(`view-${name}`).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (view === "table" && !$("view-table").childElementCount) buildTable();
  if (view === "attention") {
    if (!$("view-attention").childElementCount) buildAttention();
    paintAttention();
  }
  if (view !== "graph") {
    if (changed) $(`view-${view}`).focus({ preventScroll: true });
    return;
  }
  const key = exists ? hash : null;
  if (kind === "scope" && exists && !plan.boxes.has(key)) { // a link to a part inside a closed one
    for (let s = shown[id].parent; s !== null && s !== undefined; s = shown[s].parent) state.open.add(s);
    draw();
  }
  if (key !== state.selected || changed) select(key);
}

function onKey(event) {
  const typing = event.target.closest?.("input[type=search], select, textarea, dialog");
  if (event.ctrlKey || event.metaKey || event.altKey || typing) return;
  const item = event.target.closest?.("#graph [data-key]"), pressable = event.target.closest?.("button, a, summary, input");
  const inGraph = document.body.dataset.view === "graph";
  const actions = { "?": () => $("help").showModal(), "/": () => $("search").focus(), ",": () => stepBy(-1), ".": () => stepBy(1), f: () => fit(), "+": () => zoomMiddle(1.25), "=": () => zoomMiddle(1.25), "-": () => zoomMiddle(0.8) };
  let action = actions[event.key];
  if (["f", "+", "=", "-"].includes(event.key) && !inGraph) action = null;
  if (event.key === " " && !pressable) action = () => play();
  if (event.key === "Escape") action = () => { play(false); if (state.selected) { const last = state.selected; go("graph"); focusItem(last); } };
  if (event.key === "Enter" && item) action = () => enter(item.dataset.key);
  const onStage = item || event.target === document.body || event.target === $("panel");
  if (event.key.startsWith("Arrow") && inGraph && onStage) action = () => walk(item?.dataset.key ?? state.selected, event.key);
  if (!action) return;
  event.preventDefault();
  action();
}

// Enter on a node that is already selected goes into its panel.
function enter(key) {
  if (key.startsWith("node") && state.selected === key) $("panel").focus();
  else activate(key);
}

function walk(key, direction) {
  const known = key && (plan.boxes.has(key) || key.startsWith("node")) ? key : null;
  const next = known ? neighbour(known, direction) : [...plan.boxes.values()].filter((box) => box.key !== "scope-0").sort((a, b) => a.y - b.y)[0]?.key;
  if (!next) return;
  go(next, true);
  focusItem(next);
}

function listen() {
  listenToPointer();
  const on = (id, type, action) => $(id).addEventListener(type, action);
  on("fit", "click", () => fit());
  on("zoom-in", "click", () => zoomMiddle(1.25));
  on("zoom-out", "click", () => zoomMiddle(0.8));
  on("expand-all", "click", () => { shown.forEach((group) => state.open.add(group.index)); draw(); fit(0.6); });
  on("collapse-all", "click", () => { state.open = new Set([0]); if (state.selected) go("graph"); draw(); fit(0.6); });
  on("export", "click", exportSvg);
  on("theme", "click", toggleTheme);
  on("help-open", "click", () => $("help").showModal());
  on("play", "click", () => play());
  on("back", "click", () => stepBy(-1));
  on("forth", "click", () => stepBy(1));
  on("scrub", "input", (event) => { play(false); goStep(Number(event.target.value)); });
  on("search", "input", showResults);
  on("search", "focus", () => $("search").value.trim() && showResults());
  on("search", "blur", closeResults);
  on("search", "keydown", (event) => {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (move && found.list.length) { found.at = (found.at + move + found.list.length) % found.list.length; markResult(); event.preventDefault(); }
    if (event.key === "Enter") choose(found.at);
    if (event.key === "Escape") { event.preventDefault(); $("search").value = ""; closeResults(); $("search").blur(); }
  });
  addEventListener("keydown", onKey);
  addEventListener("hashchange", route);
  prefersDark.addEventListener("change", () => setTheme());
  new ResizeObserver(() => { // keep the middle in the middle
    if (!stage.clientWidth) return; // another view is shown
    const before = sizes.W;
    measureStage();
    if (before) state.view.x += (sizes.W - before) / 2;
    applyView();
  }).observe(stage);
}

function writeTotals() {
  const t = tape.totals ?? {}, ms = (x) => (x === null || x === undefined ? null : microseconds(1000 * x));
  const parts = [plural(t.ops ?? nodes.filter((n) => n.kind === "op").length, "op"), plural(t.leaves ?? nodes.filter((n) => n.kind === "leaf").length, "leaf").replace("leafs", "leaves"),
    `forward ${ms(t.forward_ms) ?? "not timed"}`, `backward ${ms(t.backward_ms) ?? "not timed"}`, t.saved_bytes === undefined ? null : `keeps ${bytes(t.saved_bytes)}`,
    t.peak_bytes === undefined ? null : `peak ${bytes(t.peak_bytes)}`, t.loss === null || t.loss === undefined ? null : `loss ${number(t.loss)}`].filter(Boolean);
  $("totals").replaceChildren(parts.join(" · "), flaggedNodes.length ? html("span", { class: "flagged" }, ` · ${flaggedNodes.length} flagged`) : "");
  $("totals").title = $("totals").textContent;
}

// ------------------------------------------------------------------------------------------------------------ start

let stored = null;
try { stored = localStorage.getItem("tinyvit-theme"); } catch { /* a file may have no storage */ }
setTheme(stored);
writeTotals();
if (!sweep.length) for (const id of ["play", "back", "forth", "scrub"]) $(id).disabled = true;
$("scrub").max = sweep.length;
openAtFirst();
drawMemory();
showPanel(null);
draw();
goStep(0, false);
fit(0.88);
listen();
route();
root.dataset.ready = performance.now().toFixed(0); // for the tests: milliseconds to here
})();
