// Where the patches of an image look, in every layer and head.

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

$("to-attention").hidden = !tape.attention?.images?.length;

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
