// The graph as SVG.

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
const TOOLS = 48, BELOW = 10; // the strip that the tools cover, and room below

function fit(smallest = 0) {
  const { W, H } = stageSize();
  const whole = Math.min((W - 24) / plan.w, (H - TOOLS - BELOW) / plan.h, 1.25);
  const k = Math.max(whole, Math.min(smallest, (W - 24) / plan.w));
  setView((W - plan.w * k) / 2, Math.max(TOOLS, TOOLS + (H - TOOLS - BELOW - plan.h * k) / 2), k);
}

function zoomAt(factor, cx, cy) {
  const { x, y, k } = state.view, next = clamp(k * factor, 0.05, 4);
  setView(cx - (cx - x) * next / k, cy - (cy - y) * next / k, next);
}
const zoomMiddle = (factor) => zoomAt(factor, sizes.W / 2, sizes.H / 2);

// The part of the stage that no sheet covers.
function freeHeight() {
  return sizes.H - (sizes.sheet || BELOW);
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
