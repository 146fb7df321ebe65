// Where the cards lie, and how the edges run.

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
