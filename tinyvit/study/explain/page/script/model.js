// Where each node is shown, and when the sweep passes it: what the facts do not say in so many words.

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
for (const node of nodes) Object.assign(node, { passed: Infinity, arrivals: [], given: [] });
sweep.forEach((event, index) => {
  nodes[event.node].passed = index + 1;
  for (const gift of event.gives) {
    nodes[gift.to].arrivals.push(index + 1);
    nodes[gift.to].given.push({ ...gift, from: event.node, step: index + 1 });
    nodes[gift.to].sums ||= gift.adds; // the parts of a split arrive several times too, each in its own place
  }
});
if (sweep.length) nodes[sweep[0].node].arrivals.unshift(0); // the loss has its gradient, 1, from the start
// Progress counts ops: leaves were made first, so their turn comes at the very end.
for (const group of shown) group.passes = group.all.filter((node) => !group.ops || node.kind !== "leaf").map((node) => node.passed).filter(Number.isFinite).sort((a, b) => a - b);

const state = { selected: null, step: 0, open: new Set(), view: { x: 0, y: 0, k: 1 }, matches: new Set(), wrong: null };

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
