// What is known of the node, or of the part, that is selected.

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
