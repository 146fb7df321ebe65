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
  const cell = (x) => html("td", { class: Number.isFinite(x) ? null : "bad" }, number(x));
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

const asIts = (argument) => (argument ? [" as its ", html("code", {}, argument)] : "");

function linksOf(node) {
  const argument = (name) => (name ? html("code", {}, `${name} `) : "");
  const inputs = node.parents.map((p) => html("li", {}, argument(p.argument), nodeLink(p.id), html("span", { class: "muted" }, ` ${shapeOf(nodes[p.id].shape)}`)));
  const constants = (node.constants ?? []).map((c) => html("li", {}, argument(c.argument),
    c.value?.text !== undefined ? html("code", {}, c.value.text.replace(`${c.argument}=`, "")) : [`constant ${shapeOf(c.shape ?? [])} ${c.dtype ?? ""}`, c.value ? html("details", {}, html("summary", {}, "its numbers"), valueBlock(c.value, "")) : ""]));
  const users = node.users.map((u) => html("li", {}, nodeLink(u.id), html("span", { class: "muted" }, asIts(u.argument), ` → ${shapeOf(nodes[u.id].shape)}`)));
  return [...(node.kind === "leaf" ? [] : section("Computed from", html("ul", { class: "links inputs" }, inputs, constants))),
    ...section("Used by", users.length ? html("ul", { class: "links outputs" }, users) : missing("Nothing: the sweep starts here, or nothing needed it."))];
}

function sweepBlock(node) {
  if (!Number.isFinite(node.passed)) return missing("The backward sweep does not pass here.");
  const event = sweep[node.passed - 1];
  const given = event.gives.map((g) => [g.argument ? html("code", {}, `${g.argument} `) : "", nodeLink(g.to), g.adds ? html("b", {}, " ⊕ added to what is there") : ""]);
  return [html("p", {}, html("button", { type: "button", onclick: () => { play(false); goStep(node.passed); } }, `Go to step ${node.passed} of ${sweep.length}`)),
    given.length ? html("p", {}, "It passes back to ", ...listed(given), ".") : node.kind === "leaf" ? html("p", {}, "The sweep comes to this leaf at this step; its gradient was complete before, and is kept.") : "",
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

// An op such as `linear` stands in many equations. Those meant in the innermost layer around this node come first, and
// of them those of its part: `qkv` and `proj` are both a `linear` of one layer. Where the data do not name the parts
// and the rules that an equation is of (`parts`, `rules`), its title tells.
const PARTS = { qkv: /quer|keys|values|attention's input/i, proj: /projection|heads' outputs/i, fc1: /first/i, fc2: /second/i };
function isOfPart(e, part) {
  if (e.parts?.length) return e.parts.includes(part) || !Object.hasOwn(PARTS, part);
  if (!Object.hasOwn(PARTS, part) || PARTS[part].test(e.title)) return true;
  return !Object.values(PARTS).some((words) => words.test(e.title));
}

function isOfArgument(e, argument, op) {
  if (e.rules) return e.rules.includes(argument);
  if (!/^gradient/i.test(e.title)) return false;
  const named = { weight: /weight|scale/i, bias: /bias|shift/i }, own = Object.keys(named).filter((name) => op.signature?.includes(name));
  const said = own.find((name) => named[name].test(e.title));
  return !own.length || (said ?? "") === (own.includes(argument) ? argument : "");
}

function equationsFor(op, node) {
  for (let s = node.scope; s !== null && s !== undefined; s = scopes[s].parent) {
    const inLayer = (e) => e.layers?.includes(scopes[s].type), meant = (e) => inLayer(e) && isOfPart(e, scopes[node.scope].label);
    if (op.equations.some(meant)) return [op.equations.filter(meant), op.equations.filter((e) => !meant(e)).sort((a, b) => inLayer(b) - inLayer(a))];
  }
  return [[], op.equations]; // outside of a model none is meant more than another
}

// A formula wider than the panel scrolls in a box of its own, which says so.
const formula = (source) => html("div", { class: "holder" }, html("div", { class: "formula" }, mathml(source)));
function markWide() {
  for (const box of $("panel").querySelectorAll(".formula")) {
    const wide = box.scrollWidth > box.clientWidth + 1;
    box.parentNode.classList.toggle("wide", wide);
    for (const [name, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", "Formula, scrolls sideways"]]) {
      if (wide) box.setAttribute(name, value);
      else box.removeAttribute(name);
    }
  }
}

const drawEquation = (e) => html("div", { class: "equation" }, html("p", { class: "title" }, html("b", {}, `(${e.number}) `), e.title ?? ""), e.mathml ? formula(e.mathml) : "",
  e.holds ? [html("p", { class: "note" }, "As it holds here:"), formula(e.holds)] : "", e.note ? html("p", { class: "note" }, e.note) : "");

// A leaf has no op; what the tutorial says of its gradient stands with the ops that use it.
function leafEquations(leaf) {
  const here = new Map(), elsewhere = new Map();
  for (const { id, argument } of leaf.users) {
    const user = nodes[id], op = tape.ops?.[user.op];
    for (const e of op?.equations ?? []) {
      if (isOfArgument(e, argument, op)) (equationsFor(op, user)[0].includes(e) && isAround(e, user) ? here : elsewhere).set(e.number, e);
    }
  }
  if (!here.size && !elsewhere.size) return missing("The tutorial has no numbered equation for this gradient; the rule above is the formula.");
  const ops = [...new Set(leaf.users.map(({ id }) => nodes[id].op))].join(", ");
  return [[...here.values()].map(drawEquation), folded([...elsewhere.values()].filter((e) => !here.has(e.number)), here.size ? "other equation" : "equation", `of ${ops}, elsewhere in the tutorial`)];
}

function isAround(e, node) {
  for (let s = node.scope; s !== null && s !== undefined; s = scopes[s].parent) if (e.layers?.includes(scopes[s].type)) return true;
  return false;
}

const folded = (equations, what, where) => (equations.length ? html("details", { ontoggle: markWide }, html("summary", {}, `${plural(equations.length, what)} ${where}`), equations.map(drawEquation)) : "");

function equationBlock(op, node) {
  if (!op?.equations?.length) return missing("The tutorial has no numbered equation for this op; its rule above is the formula.");
  const [here, elsewhere] = equationsFor(op, node);
  return [here.map(drawEquation), folded(elsewhere, here.length ? "other equation" : "equation", `of ${node.op}`)];
}

// ------------------------------------------------------------------------------------------------ where a gradient comes from

// The pieces of a Python expression between the commas that are in no bracket; it ends where its own bracket would.
function pieces(code) {
  const found = [""];
  let depth = 0;
  for (const c of code) {
    if (")]}".includes(c) && --depth < 0) break;
    if ("([{".includes(c)) depth++;
    if (c === "," && depth === 0) found.push("");
    else found[found.length - 1] += c;
  }
  return found.map((piece) => piece.trim()).filter(Boolean);
}

// Which result of a joint rule is an argument's: the place of its name, or the number in `arrays[1]`.
function placeOf(op, argument) {
  const inside = op.signature?.slice(op.signature.indexOf("(") + 1) ?? "", many = argument.match(/\[(\d+)\]$/);
  return many ? Number(many[1]) : pieces(inside).findIndex((name) => name.split("=")[0] === argument);
}

// The rule by which a user makes the gradient of one argument: {code, whole, short}. `code` is the expression alone, with
// what the source says beside it; `short` is it where a sentence has room for it; `whole` the rule as it is written.
function ruleFor(user, argument) {
  const op = user.kind === "op" ? tape.ops?.[user.op] : null, rule = op?.rules?.find((r) => r.argument === argument) ?? op?.rules?.find((r) => r.argument === "*");
  if (!rule?.code) return null;
  rule.of ??= new Map();
  if (!rule.of.has(argument)) rule.of.set(argument, cutRule(op, rule, argument));
  return rule.of.get(argument);
}

function cutRule(op, rule, argument) {
  const bare = rule.code.replace(/^\s*#.*\n/gm, ""), remark = bare.match(/ {2}# (.*)$/)?.[1];
  const short = (code) => (code.length <= 32 && !code.includes("\n") ? code : null);
  const lambda = bare.replace(/ {2}#.*$/gm, "").match(/lambda[^:]*:\s*([^]*)$/);
  if (lambda) {
    const code = pieces(lambda[1])[0] ?? lambda[1];
    return { code: code + (remark ? `  # ${remark}` : ""), short: short(code), whole: null };
  }
  const head = bare.match(/def (\w+\([^)]*\))/)?.[1], returns = [...bare.matchAll(/\breturn\b\s*/g)], said = bare.match(/"""([^\n]*?)("""|\n)/)?.[1];
  if (!head) return { code: rule.code, short: null, whole: null };
  const remarks = said ? `\n# ${said}` : "";
  if (returns.length !== 1) return { code: `${head}${remarks}`, short: null, whole: rule.code };
  const given = bare.slice(returns[0].index + returns[0][0].length).trim();
  if (rule.argument !== "*") return { code: `${given}\n# returned by ${head}${remarks}`, short: null, whole: rule.code };
  const place = placeOf(op, argument), tuple = pieces(given).length > 1 ? pieces(given) : /^\(.*,\)$/s.test(given) ? pieces(given.slice(1)) : null;
  const name = place < 0 ? given : tuple ? tuple[place] ?? given : `${given}[${place}]`;
  const code = bare.match(new RegExp(`^\\s+${name.replace(/\W/g, "\\$&")} = (.*)$`, "m"))?.[1] ?? name; // the line that made it
  return { code: `${code}\n# result ${place + 1} of ${head}${remarks}`, short: code === "gy" ? code : null, whole: rule.code };
}

const added = (a, b) => (Array.isArray(a) ? a.map((x, i) => added(x, b[i])) : Number(spelled(a)) + Number(spelled(b)));
const spelled = (x) => (typeof x === "string" ? x.replace("inf", "Infinity") : x); // as JavaScript reads it

function amount(value) {
  if (!value) return missing("Its numbers were not kept in this page.");
  if (value.numbers !== undefined && value.numbers !== null) return numberTable(value.numbers, "");
  return html("p", { class: "stats" }, "norm ", html("b", {}, number(value.norm)), `, from ${number(value.min)} to ${number(value.max)}`);
}

// A rule may give the gradient in the shape of the result; the engine then sums over what was broadcast.
function summed(gift) {
  return gift.summed ? html("p", { class: "muted" }, `summed over what was broadcast: ${shapeOf(gift.summed)} → ${shapeOf(nodes[gift.to].shape)}`) : "";
}

function contribution(gift, alone) {
  const user = nodes[gift.from], rule = ruleFor(user, gift.argument), { step } = state, later = step > 0 && gift.step > step;
  return html("li", { class: later ? "later" : gift.step === step ? "arriving" : null },
    html("span", { class: "step" }, later ? `arrives at step ${gift.step}` : `step ${gift.step}`), "from ", nodeLink(gift.from), asIts(gift.argument),
    user.kind === "part" ? html("p", { class: "muted" }, "in its own place") : rule ? [python(rule.code), summed(gift), rule.whole && html("details", {}, html("summary", {}, "the whole rule"), python(rule.whole))] : missing("The source of its rule is not at hand."),
    later || alone ? "" : amount(gift.value));
}

// How much of the gradient is there at the present step. Before the sweep nothing is: then all of it is shown.
function soFar(node) {
  const { given } = node, { step } = state, last = given.at(-1)?.step ?? 0, here = given.filter((gift) => gift.step <= step).length;
  const count = [html("b", {}, `${here} of ${given.length}`), ` ${given.length === 1 ? "contribution has" : "contributions have"} arrived`];
  if (!given.length) return `The sweep starts here, with ${node.gradient?.numbers === 1 ? "a gradient of one" : "this gradient"}.`;
  if (step === 0) return `As it is from step ${last} of the sweep on. Move the slider to see it arrive.`;
  if (here < given.length) return ["So far ", count, `; complete at step ${last}.`];
  return ["So far ", count, `: complete since step ${last}`, step < node.passed ? "." : node.kind === "leaf" ? `, kept at step ${node.passed}.` : `, passed back at step ${node.passed}.`];
}

const MANY = 8; // contributions; more are folded away
function gradientNow(node) {
  const { given } = node, { step } = state, here = step === 0 ? given : given.filter((gift) => gift.step <= step), alone = given.length === 1;
  const lines = given.map((gift) => contribution(gift, alone && node.gradient)), complete = here.length === given.length;
  const sum = !complete && here.length > 1 && node.sums && here.every((gift) => gift.value?.numbers !== undefined && gift.value?.numbers !== null) ? here.map((gift) => gift.value.numbers).reduce(added) : null;
  return [html("p", { class: "so-far" }, soFar(node)),
    html("ol", { class: "arrivals" }, lines.slice(0, MANY)),
    lines.length > MANY ? html("details", {}, html("summary", {}, `${lines.length - MANY} more`), html("ol", { class: "arrivals" }, lines.slice(MANY))) : "",
    given.some((gift) => ruleFor(nodes[gift.from], gift.argument)) ? html("p", { class: "place" }, html("code", {}, "gy"), " is the gradient of the user’s own result, ", html("code", {}, "y"), " that result.") : "",
    sum !== null ? [html("p", { class: "sum-of" }, "= sum so far"), numberTable(sum, "")] : "",
    complete ? [given.length ? html("p", { class: "sum-of" }, alone ? "= its gradient" : node.sums ? "= sum" : "= its gradient, each part in its own place") : "", valueBlock(node.gradient, node.op && Array.isArray(node.shape[0]) ? "It has several results; the gradient of each stands at its part." : "Its gradient was not kept in this page.", true)] : ""];
}

function gradientBlock(node) {
  if (!Number.isFinite(node.passed)) return missing("No gradient reaches it.");
  return html("div", { id: "gradient-now" }, gradientNow(node));
}

// What the block depends on: a step at which nothing arrives or goes on leaves it, and what is unfolded in it, alone.
const gradientState = ({ given, passed }) => [state.step === 0, given.map((gift) => Math.sign(gift.step - state.step)), passed <= state.step].join();
function gradientBlock(node) {
  if (!Number.isFinite(node.passed)) return missing("No gradient reaches it.");
  return html("div", { id: "gradient-now", "data-state": gradientState(node) }, gradientNow(node));
}

function refreshGradient() {
  const block = $("gradient-now"), node = block && nodes[state.selected.split("-")[1]];
  if (block && block.dataset.state !== gradientState(node)) block.replaceWith(gradientBlock(node));
}

function ruleBlock(op) {
  if (!op?.rules?.length) return missing("The source of its backward rule is not at hand.");
  return op.rules.map((rule) => [html("p", { class: "rule-of" }, rule.argument === "*" ? "all arguments together" : ["for ", html("code", {}, rule.argument)], html("span", { class: "muted" }, op.file ? ` — ${op.file}:${rule.line ?? op.line}` : "")), python(rule.code)]);
}

function lineBlock(node) {
  const line = lineOf(node);
  if (!line) return missing(node.kind === "leaf" ? "A leaf was there before the tape began." : "The line that made it was not recorded.");
  return [html("p", { class: "place" }, lineName(line), line.function ? ` in ${line.function}` : ""), python(line.code)];
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
  const value = valueBlock(node.value, tape.watched === false ? "Its numbers were not recorded: no rule needed them, and the tape was not watched while it was made." : "Its numbers were not kept in this page.");
  return [...part, ...section("Value", value), ...section("Gradient", gradientBlock(node)),
    ...(leaf ? section("Equation", leafEquations(node)) : [...section("Backward rule", ruleBlock(op)), ...section("Equation", equationBlock(op, node))]),
    ...linksOf(node), ...section("Made by", lineBlock(node)), !leaf && op?.forward ? html("details", {}, html("summary", {}, `The forward: ${op.signature ?? node.op}`), python(op.forward)) : "",
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
  const keeping = [...nodes].sort((a, b) => b.saved_bytes - a.saved_bytes).slice(0, 5).filter((n) => n.saved_bytes);
  return [state.wrong ? html("p", { class: "wrong", role: "status" }, state.wrong) : "", html("h2", {}, tape.title), html("p", { class: "crumbs" }, tape.made_by ?? ""),
    tape.watched === false ? missing("This tape was not watched while it was made: lines, layers, forward times, and values that no rule saved are not known.") : "",
    html("p", {}, "Select a node to see its numbers, its backward rule and the equation behind it. Open a part of the model with a click or Enter. Play the slider below to watch the gradients being passed back."),
    ...(flaggedNodes.length ? section("Flagged", html("ul", { class: "links" }, flaggedNodes.slice(0, 60).map((n) => html("li", {}, nodeLink(n.id), ` ${n.flags.join(", ")}`)))) : section("Flagged", missing("Nothing: every value and gradient is finite, and no gradient is zero."))),
    ...(keeping.length ? section("What keeps most", html("ul", { class: "links" }, keeping.map((n) => html("li", {}, nodeLink(n.id), html("span", { class: "muted" }, ` ${bytes(n.saved_bytes)}`))))) : [])];
}

function showPanel(key) {
  const panel = $("panel"), [kind, id] = (key ?? "-").split("-");
  const content = kind === "node" ? nodePanel(nodes[id]) : kind === "scope" ? scopePanel(Number(id)) : overviewPanel();
  const close = key ? html("button", { class: "close", type: "button", "aria-label": "Close the panel", title: "Close (Esc)", onclick: () => go("graph") }, "×") : "";
  panel.classList.toggle("empty", !key && !state.wrong);
  panel.replaceChildren(...[close, ...content].flat(Infinity).filter((part) => part !== "" && part !== null && part !== undefined && part !== false));
  panel.scrollTop = 0;
  markWide();
  measureStage();
}
