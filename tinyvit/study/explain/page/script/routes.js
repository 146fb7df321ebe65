// Addresses, keys and the pointer; and the start.

// --------------------------------------------------------------------------------------------------------------- routes

// What is shown follows from the address, so that links, "back" and reloading all work. Arrow keys replace the
// address instead of adding to it: "back" should not walk each of their steps again.
function go(hash, replace = false) {
  if (location.hash !== `#${hash}`) history[replace ? "replaceState" : "pushState"](null, "", `#${hash}`);
  route();
}

function route() {
  const hash = location.hash.slice(1), [, kind, id] = hash.match(/^(node|scope)-(\d+)$/) ?? [];
  const exists = kind === "node" ? nodes[id] : kind === "scope" ? scopes[id] && id !== "0" && !shown[id].flat : null;
  document.body.dataset.at = hash; // for the tests: the address that is shown, which follows a link a moment later
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
  const key = exists ? hash : null, wrong = kind && !(kind === "node" ? nodes : scopes)[id] ? wrongAddress(kind, id) : null;
  if (kind === "scope" && exists && !plan.boxes.has(key)) { // a link to a part inside a closed one
    for (let s = shown[id].parent; s !== null && s !== undefined; s = shown[s].parent) state.open.add(s);
    draw();
  }
  const news = wrong !== state.wrong;
  state.wrong = wrong;
  if (key !== state.selected || changed || news) select(key);
}

function wrongAddress(kind, id) {
  return kind === "node" ? `There is no node #${id} in this tape: its nodes are #0 to #${nodes.length - 1}.` : `There is no part ${id} in this tape: its parts are scope-0 to scope-${scopes.length - 1}.`;
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
  addEventListener("resize", markWide);
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

// ---------------------------------------------------------------------------------------------------------------- start

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
