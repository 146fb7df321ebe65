// The tape as a table, search, export, light and dark.

// ---------------------------------------------------------------------------------------------------------------- table

// One number, or the norm of many.
function sizeCell(value) {
  if (!value || value.text !== undefined) return ["–", "right"];
  const bad = value.nonfinite ? `, ${value.nonfinite.toLocaleString("en")} not finite` : "", one = value.size > 1 ? null : [value.numbers].flat(Infinity)[0];
  return [one === null ? `‖ ${number(value.norm)} ‖${bad}` : number(one), bad || typeof one === "string" ? "right flagged" : "right"];
}

function buildTable() {
  const head = ["#", "what", "where", "shape", "dtype", "value", "gradient", "computed from", "keeps", "forward", "backward", "step", "flags", "line"];
  const row = (node) => {
    const line = lineOf(node), cell = (content, name) => html("td", { class: name }, content), from = node.parents.map((p) => html("a", { href: `#node-${p.id}` }, `#${p.id}`));
    return html("tr", {}, cell(html("a", { href: `#node-${node.id}` }, `#${node.id}`), "right"), html("th", { scope: "row" }, titleOf(node)), cell(scopes[node.scope].path || scopes[node.scope].label), cell(shapeOf(node.shape)), cell(node.dtype),
      cell(...sizeCell(node.value)), cell(...sizeCell(node.gradient)), cell(from.length ? listed(from) : "–"), cell(node.saved_bytes ? bytes(node.saved_bytes) : "–", "right"), cell(node.forward_us === null || node.forward_us === undefined ? "–" : microseconds(node.forward_us), "right"),
      cell(node.kind === "leaf" || node.backward_us === null || node.backward_us === undefined ? "–" : microseconds(node.backward_us), "right"), cell(Number.isFinite(node.passed) ? node.passed : "–", "right"), cell(node.flags.join(", ") || "–", node.flags.length ? "flagged" : null), cell(line ? lineName(line) : "–"));
  };
  $("view-table").replaceChildren(html("table", { class: "tape-table" }, html("caption", {}, `The tape in the order of its creation, ${plural(nodes.length, "node")}. The column “step” is the node’s place in the backward sweep, “keeps” the bytes it keeps for it; “value” and “gradient” are the number itself, or the norm ‖ ‖ of many. A dash: nothing, or not recorded.`),
    html("thead", {}, html("tr", {}, head.map((t) => html("th", { scope: "col" }, t)))), html("tbody", {}, nodes.map(row))));
}

// --------------------------------------------------------------------------------------------------------------- search

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

// ----------------------------------------------------------------------------------------------------- export and theme

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
