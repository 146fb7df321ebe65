// Elements, numbers and code as they are shown. Strings become text nodes: no data is ever parsed as HTML.

const tape = JSON.parse(document.getElementById("tape").textContent);
const { nodes, scopes, lines, sweep } = tape;
const $ = (id) => document.getElementById(id);
const root = document.documentElement;

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
  if (!Number.isFinite(x)) return String(x).toLowerCase().replace("infinity", "inf").replace("-", "−"); // a sum made here
  if (x === 0) return "0";
  const size = Math.abs(x);
  let text = size >= 1e6 || size < 1e-4 ? x.toExponential(digits - 2) : x.toPrecision(digits);
  if (!text.includes("e") && text.includes(".")) text = text.replace(/\.?0+$/, "");
  return text.replace("e+", "e").replaceAll("-", "−");
}

// Enough of Python's grammar to tint a rule of a few lines.
const PYTHON = /(#[^\n]*)|("""[^]*?"""|'''[^]*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|\b(and|as|assert|class|def|del|elif|else|False|for|from|if|import|in|is|lambda|None|not|or|raise|return|True|while|with|yield)\b|\b(\d[\w.]*)/g;
function python(source) {
  const pre = html("pre", { tabindex: "0" });
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
