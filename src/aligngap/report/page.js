// Draws the charts of a report from the JSON beside it, and hands out charts and tables as files. No library, no network.
(() => {
  "use strict";
  const { texts, charts, data } = JSON.parse(document.getElementById("charts").textContent);
  const study = document.body.dataset.study, hidden = {}, ruler = document.createElement("canvas").getContext("2d");
  const family = getComputedStyle(document.body).fontFamily;
  const SCALES = { linear: (v) => v, log: Math.log10, log2: Math.log2, sqrt: (v) => Math.sqrt(Math.max(v, 0)) };
  const MARKS = {
    o: (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
    s: (r) => `M${-r * 0.9},${-r * 0.9}h${r * 1.8}v${r * 1.8}h${-r * 1.8}Z`,
    "^": (r) => `M0,${-1.2 * r}L${1.1 * r},${0.8 * r}H${-1.1 * r}Z`,
    v: (r) => `M0,${1.2 * r}L${1.1 * r},${-0.8 * r}H${-1.1 * r}Z`,
    D: (r) => `M0,${-1.25 * r}L${1.25 * r},0L0,${1.25 * r}L${-1.25 * r},0Z`,
    P: (r) => { const a = 0.4 * r, b = 1.15 * r; return `M${-a},${-b}H${a}V${-a}H${b}V${a}H${a}V${b}H${-a}V${a}H${-b}V${-a}H${-a}Z`; },
    X: (r) => { const a = 0.95 * r, b = 0.5 * r; return `M0,${-b}L${b},${-a}L${a},${-b}L${b},0L${a},${b}L${b},${a}L0,${b}L${-b},${a}L${-a},${b}L${-b},0L${-a},${-b}L${-b},${-a}Z`; },
  };

  function add(parent, name, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    return parent.appendChild(node);
  }
  function html(parent, name, attributes, text) {
    const node = parent.appendChild(document.createElement(name));
    Object.assign(node, attributes);
    if (text !== undefined) node.textContent = text;
    return node;
  }
  const format = (v, digits = 3) => String(parseFloat(v.toPrecision(digits))).replace("-", "−");
  const known = (v) => v !== null && v !== undefined;
  const visible = (name, panel) => panel.series.filter((s) => !(hidden[name] || new Set()).has(s.name));

  function ticks(axis, low, high, most) {  // places and their names, in the axis's own units
    const inside = (list) => list.filter(([v]) => { const t = SCALES[axis.scale](v); return t >= low - 1e-9 && t <= high + 1e-9; });
    if (axis.names.length) return inside(axis.names);
    const label = (v) => [v, format(v, 6)];
    let list = [];
    if (axis.scale === "linear") {
      const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
      const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
      for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9; k++) list.push(label(k * step));
      return list;
    }
    if (axis.scale === "sqrt") list = [0, 0.25, 1, 4, 9, 16, 25, 49, 100, 225];
    for (let e = -12; e <= 12 && axis.scale !== "sqrt"; e++) list.push(...(axis.scale === "log2" ? [2 ** e] : [10 ** e, 2 * 10 ** e, 5 * 10 ** e]));
    list = inside(list.map(label));
    if (list.length > most && axis.scale === "log") list = list.filter(([v]) => Math.abs(Math.log10(v) % 1) < 1e-6);
    const every = Math.ceil(list.length / most);
    return list.filter((_, i) => i % every === 0);
  }

  function extent(series, axis, key, extra) {
    const to = SCALES[axis.scale];
    if (axis.limits) return axis.limits.map(to);
    let low = Infinity, high = -Infinity;
    const see = (v) => { const t = known(v) ? to(v) : NaN; if (isFinite(t)) { low = Math.min(low, t); high = Math.max(high, t); } };
    for (const s of series) {
      const d = data[s.data];
      d[key].forEach(see);
      for (const pair of key === "y" ? [d.band, d.bars] : [d.xbars]) if (pair) pair.forEach((side) => side.forEach(see));
    }
    extra.forEach(see);
    if (low > high) [low, high] = [0, 1];
    const room = 0.04 * (high - low || Math.abs(high) || 1);
    return [axis.scale === "sqrt" ? 0 : low - room, high + room];
  }

  function draw(div, width = div.clientWidth) {
    const name = div.dataset.chart, chart = charts[name], panels = chart.panels, tall = panels.length === 1;
    div.dataset.drawn = width;
    if (!width) return;
    div.querySelectorAll("svg,.tip").forEach((old) => old.remove());
    const size = width < 520 ? 11.5 : 12.5, columns = tall ? 1 : Math.max(1, Math.min(chart.columns, panels.length, Math.floor(width / 250)));
    const w = (width - 14 * (columns - 1)) / columns, h = tall ? Math.min(460, Math.max(310, width * 0.56)) : Math.min(250, Math.max(190, w * 0.72));
    ruler.font = `${size}px ${family}`;
    const svg = add(div, "svg", { width, "font-size": size, fill: "currentColor", role: "img", "aria-label": div.getAttribute("aria-label") || name });
    const top = legend(svg, div, name, chart, width);
    const rows = Math.ceil(panels.length / columns), places = [];
    svg.setAttribute("height", top + rows * h + (rows - 1) * 8);
    const common = chart.shared && extent(panels.flatMap((p) => visible(name, p)), panels[0].y, "y", panels.flatMap((p) => p.rules.map((r) => r[0])));
    panels.forEach((panel, i) => {
      const box = { left: (i % columns) * (w + 14), top: top + Math.floor(i / columns) * (h + 8), w, h };
      places.push(drawPanel(svg, name, panel, box, size, common));
    });
    listen(div, svg, name, places);
  }

  function legend(svg, div, name, chart, width) {
    const entries = new Map();
    for (const panel of chart.panels) for (const s of panel.series) {
      const old = entries.get(s.name) || { ...s };
      entries.set(s.name, { ...old, line: old.line || s.line, points: old.points || s.points, dash: old.dash || s.dash });
    }
    let x = 0, y = 9;
    const off = (hidden[name] = hidden[name] || new Set());
    for (const [label, s] of entries) {
      const wide = ruler.measureText(label).width + 46;
      if (x && x + wide > width) { x = 0; y += 19; }
      const key = add(svg, "g", { class: "key", transform: `translate(${x},${y})`, tabindex: 0, role: "button", opacity: off.has(label) ? 0.35 : 1, "aria-pressed": !off.has(label) });
      add(key, "title", {}, "click: hide or show");
      add(key, "rect", { x: 0, y: -9, width: wide - 6, height: 18, fill: "transparent" });
      const mark = add(key, "g", { class: "marks" });
      if (s.line) add(mark, "path", { d: "M0,0H26", stroke: s.colour, "stroke-width": 2.2, "stroke-dasharray": (s.dash || []).map((v) => 2.2 * v).join(" ") });
      if (s.points) add(mark, "path", { d: MARKS[s.marker](4), transform: "translate(13,0)", fill: s.colour });
      if (!s.line && !s.points) add(mark, "rect", { x: 2, y: -5, width: 22, height: 10, fill: s.colour, "fill-opacity": s.opacity + 0.1 });
      add(key, "text", { x: 31, y: 4 }, label);
      const toggle = () => { if (!off.delete(label)) off.add(label); draw(div); };
      key.addEventListener("click", toggle);
      key.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); toggle(); } });
      x += wide;
    }
    return y + 14;
  }

  function drawPanel(svg, name, panel, box, size, common) {
    const shown = visible(name, panel), sx = SCALES[panel.x.scale], sy = SCALES[panel.y.scale];
    const [x0, x1] = extent(shown, panel.x, "x", panel.xrules.map((r) => r[0])), [y0, y1] = common || extent(shown, panel.y, "y", panel.rules.map((r) => r[0]));
    const yTicks = ticks(panel.y, y0, y1, Math.max(3, Math.floor(box.h / 46)));
    const left = box.left + Math.max(...yTicks.map(([, t]) => ruler.measureText(t).width), 8) + 8 + (panel.y.label ? size + 4 : 0);
    const slanted = panel.x.names.length > 0, up = panel.title ? 20 : 6;
    const at = { left, right: box.left + box.w - 4, top: box.top + up, bottom: box.top + box.h - (slanted ? 74 : 38) };
    const px = (v) => at.left + ((sx(v) - x0) / (x1 - x0)) * (at.right - at.left), py = (v) => at.bottom - ((sy(v) - y0) / (y1 - y0)) * (at.bottom - at.top);
    const clip = `clip-${name}-${Math.round(box.left)}-${Math.round(box.top)}`;
    add(add(svg, "clipPath", { id: clip }), "rect", { x: at.left, y: at.top, width: at.right - at.left, height: at.bottom - at.top });
    if (panel.title) add(svg, "text", { x: at.left, y: box.top + 12, "font-weight": 600 }, panel.title);
    const soft = { stroke: "currentColor", "stroke-opacity": 0.12 };
    for (const [v, label] of yTicks) {
      add(svg, "path", { d: `M${at.left},${py(v)}H${at.right}`, ...soft });
      add(svg, "text", { x: at.left - 6, y: py(v) + 4, "text-anchor": "end", "fill-opacity": 0.75 }, label);
    }
    for (const [v, label] of ticks(panel.x, x0, x1, Math.max(3, Math.floor((at.right - at.left) / (panel.x.scale === "log" ? 40 : 56))))) {
      add(svg, "path", { d: `M${px(v)},${at.top}V${at.bottom}`, ...soft });
      const place = slanted ? { transform: `translate(${px(v) + 4},${at.bottom + 12}) rotate(-28)`, "text-anchor": "end" } : { x: px(v), y: at.bottom + 15, "text-anchor": "middle" };
      add(svg, "text", { ...place, "fill-opacity": 0.75 }, label);
    }
    add(svg, "text", { x: (at.left + at.right) / 2, y: box.top + box.h - 4, "text-anchor": "middle", "fill-opacity": 0.75 }, panel.x.label);
    if (panel.y.label) add(svg, "text", { transform: `translate(${box.left + size - 2},${(at.top + at.bottom) / 2}) rotate(-90)`, "text-anchor": "middle", "fill-opacity": 0.75 }, panel.y.label);
    add(svg, "path", { d: `M${at.left},${at.bottom}H${at.right}`, stroke: "currentColor", "stroke-opacity": 0.5 });
    for (const [v, label] of panel.rules) {
      add(svg, "path", { d: `M${at.left},${py(v)}H${at.right}`, stroke: "currentColor", "stroke-opacity": 0.55, "stroke-dasharray": label ? "5 4" : "" });
      if (label) add(svg, "text", { x: at.right - 2, y: py(v) - 4, "text-anchor": "end", "fill-opacity": 0.75, "font-size": size - 1.5 }, label);
    }
    for (const [v, label] of panel.xrules) {
      add(svg, "path", { d: `M${px(v)},${at.top}V${at.bottom}`, stroke: "currentColor", "stroke-opacity": 0.55, "stroke-dasharray": label ? "5 4" : "" });
      add(svg, "text", { transform: `translate(${px(v) + size},${at.top + 4}) rotate(-90)`, "text-anchor": "end", "fill-opacity": 0.75, "font-size": size - 1.5 }, label);
    }
    const marks = add(svg, "g", { class: "marks", "clip-path": `url(#${clip})` }), points = [], lines = [];
    const path = (xs, ys) => { let open = false; return xs.map((x, i) => { const ok = known(ys[i]) && isFinite(sx(x)); const step = ok ? `${open ? "L" : "M"}${px(x).toFixed(1)},${py(ys[i]).toFixed(1)}` : ""; open = ok; return step; }).join(""); };
    for (const s of shown) {
      const d = data[s.data];
      if (!d.band) continue;
      const on = d.x.map((_, i) => i).filter((i) => known(d.band[0][i]) && known(d.band[1][i])), back = [...on].reverse();
      const outline = path([...on, ...back].map((i) => d.x[i]), [...on.map((i) => d.band[1][i]), ...back.map((i) => d.band[0][i])]);
      add(marks, "path", { d: outline, fill: s.colour, "fill-opacity": s.opacity });
    }
    for (const s of shown) {
      const d = data[s.data];
      const bar = (d1) => add(marks, "path", { d: d1, stroke: s.colour, "stroke-width": 1.3, "stroke-opacity": 0.8 });
      if (d.bars) d.x.forEach((x, i) => { if (known(d.bars[0][i])) bar(`M${px(x)},${py(d.bars[0][i])}V${py(d.bars[1][i])}`); });
      if (d.xbars) d.y.forEach((y, i) => { if (known(d.xbars[0][i])) bar(`M${px(d.xbars[0][i])},${py(y)}H${px(d.xbars[1][i])}`); });
      if (s.line) {
        add(marks, "path", { d: path(d.x, d.y), fill: "none", stroke: s.colour, "stroke-width": 2.2, "stroke-linejoin": "round", "stroke-dasharray": (s.dash || []).map((v) => 2.2 * v).join(" ") });
        lines.push({ s, d });
      }
    }
    for (const s of [...shown].sort((a, b) => (a.points === "hollow") - (b.points === "hollow"))) {
      if (!s.points) continue;
      const d = data[s.data], hollow = s.points === "hollow", r = hollow ? (s.line ? 4 : 6.5) : s.points === "full" ? 4.5 : 3.4;
      const look = hollow ? { fill: "var(--bg)", stroke: s.colour, "stroke-width": 2.2 } : { fill: s.colour, "fill-opacity": s.points === "faint" ? 0.45 : 0.9 };
      const group = add(marks, "g", look);
      d.x.forEach((x, i) => {
        if (!known(d.y[i]) || !isFinite(sx(x))) return;
        add(group, "path", { d: MARKS[s.marker](r), transform: `translate(${px(x).toFixed(1)},${py(d.y[i]).toFixed(1)})` });
        points.push({ s, d, i, x: px(x), y: py(d.y[i]) });
      });
    }
    const cursor = add(svg, "g", { "pointer-events": "none" });
    return { panel, at, px, py, points, lines, cursor, box };
  }

  function describe(place, x, y, reach) {  // what lies under the pointer: a point, or every line at that x
    let best = null, near = reach;
    for (const p of place.points) { const far = Math.hypot(p.x - x, p.y - y); if (far < near) [best, near] = [p, far]; }
    const { panel } = place, unit = (d, i) => (d ? ` (${format(d[0][i])} to ${format(d[1][i])})` : "");
    if (best) {
      const { s, d, i } = best, note = d.notes ? texts[d.notes[i]] : "";
      const own = note.includes("\n") ? note.split("\n") : [note || s.name, ...(note && note !== s.name ? [s.name] : []), `${panel.y.label || panel.title}: ${format(d.y[i])}${unit(d.bars, i)}`];
      if (!note.includes("\n") && !panel.x.names.length) own.push(`${panel.x.label}: ${format(d.x[i])}${unit(d.xbars, i)}`);
      return { x: best.x, y: best.y, ring: true, rows: own.map((text, k) => ({ text, colour: k ? "" : s.colour })) };
    }
    const rows = [];
    let at = null;
    for (const { s, d } of place.lines) {
      const on = d.x.findIndex((v, i) => i && place.px(v) >= x && place.px(d.x[i - 1]) <= x);
      if (on < 1 || !known(d.y[on]) || panel.x.names.length) continue;
      const near2 = Math.abs(place.px(d.x[on - 1]) - x) < Math.abs(place.px(d.x[on]) - x) ? on - 1 : on;
      if (!known(d.y[near2])) continue;
      at = at === null ? d.x[near2] : at;
      rows.push({ value: d.y[near2], colour: s.colour, text: `${s.name}  ${format(d.y[near2])}${d.band && known(d.band[0][near2]) ? unit(d.band, near2) : ""}` });
    }
    if (!rows.length) return null;
    rows.sort((a, b) => b.value - a.value);
    return { x, y: null, rows: [{ text: `${panel.x.label}: ${format(at)}`, colour: "" }, ...rows] };
  }

  function listen(div, svg, name, places) {
    let pinned = false;
    const tip = html(div, "div", { className: "tip", hidden: true });
    const clear = () => { tip.hidden = true; places.forEach((p) => p.cursor.replaceChildren()); };
    const show = (event, reach) => {
      const area = svg.getBoundingClientRect(), x = event.clientX - area.left, y = event.clientY - area.top;
      const place = places.find((p) => x >= p.at.left && x <= p.at.right && y >= p.at.top - 8 && y <= p.at.bottom + 8);
      const found = place && describe(place, x, y, reach);
      clear();
      if (!found) return false;
      if (found.ring) add(place.cursor, "circle", { cx: found.x, cy: found.y, r: 9, fill: "none", stroke: "currentColor", "stroke-width": 1.5 });
      else add(place.cursor, "path", { d: `M${found.x},${place.at.top}V${place.at.bottom}`, stroke: "currentColor", "stroke-opacity": 0.45 });
      tip.replaceChildren();
      for (const row of found.rows) {
        const line = html(tip, "div", {});
        if (row.colour) html(line, "i", {}).style.background = row.colour;
        line.append(row.text);
      }
      tip.hidden = false;
      const wide = tip.offsetWidth, tall = tip.offsetHeight, down = found.y === null ? y : found.y;
      tip.style.left = `${Math.max(0, Math.min(found.x + 14 + wide > area.width ? found.x - wide - 14 : found.x + 14, area.width - wide))}px`;
      tip.style.top = `${Math.max(0, Math.min(down - tall / 2, area.height - tall))}px`;
      return true;
    };
    svg.addEventListener("pointermove", (e) => { if (!pinned && e.pointerType !== "touch") show(e, 12); });
    svg.addEventListener("pointerleave", () => { if (!pinned) clear(); });
    svg.addEventListener("click", (e) => { if (!e.target.closest(".key")) { pinned = show(e, 26); tip.classList.toggle("pinned", pinned); } });
    document.addEventListener("keydown", (e) => { if (e.key === "Escape" && pinned) { pinned = false; clear(); } });
  }

  function save(blob, file) {
    const link = html(document.body, "a", { href: URL.createObjectURL(blob), download: file });
    link.click();
    link.remove();
  }
  const quote = (v) => (/[",\r\n]/.test(v) ? `"${v.replaceAll('"', '""')}"` : v);
  const csv = (rows) => rows.map((row) => row.map((v) => quote(String(v ?? ""))).join(",")).join("\r\n") + "\r\n";
  function chartRows(name) {
    const rows = [["panel", "series", "x", "y", "lower", "upper", "x lower", "x upper", "note"]];
    for (const panel of charts[name].panels) for (const s of panel.series) {
      const d = data[s.data], range = d.band || d.bars || [[], []], beside = d.xbars || [[], []];
      d.x.forEach((x, i) => rows.push([panel.title, s.name, x, d.y[i], range[0][i], range[1][i], beside[0][i], beside[1][i], d.notes ? texts[d.notes[i]].replaceAll("\n", "; ") : ""]));
    }
    return rows;
  }
  function standalone(div) {  // the chart as an SVG file of its own, in the colours of paper
    const svg = div.querySelector("svg").cloneNode(true), size = [svg.getAttribute("width"), svg.getAttribute("height")];
    svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    svg.setAttribute("viewBox", `-10 -6 ${+size[0] + 20} ${+size[1] + 12}`);
    svg.setAttribute("style", "color:#1d1c1a;background:#fff;font-family:Helvetica,Arial,sans-serif");
    return { size, text: svg.outerHTML.replaceAll("var(--bg)", "#fff") };
  }
  function picture(div, then) {
    const { size, text } = standalone(div), image = new Image(), canvas = document.createElement("canvas");
    image.onload = () => {
      [canvas.width, canvas.height] = size.map((v) => Math.round(3 * v));
      const pen = canvas.getContext("2d");
      pen.fillStyle = "#fff";
      pen.fillRect(0, 0, canvas.width, canvas.height);
      pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob(then, "image/png");
    };
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
  }
  function tools(before, buttons) {
    const bar = document.createElement("div");
    bar.className = "tools";
    before.before(bar);
    for (const label in buttons) html(bar, "button", { type: "button", onclick: (e) => buttons[label](e.target) }, label);
  }
  function copy(button, text) {
    navigator.clipboard.writeText(text).then(() => { button.textContent = "copied"; }, () => { button.textContent = "not allowed here"; });
  }

  document.querySelectorAll("[data-chart]").forEach((div) => {
    const name = div.dataset.chart, file = `${study}-${name}`;
    tools(div, {
      csv: () => save(new Blob([csv(chartRows(name))], { type: "text/csv" }), `${file}.csv`),
      svg: () => save(new Blob([standalone(div).text], { type: "image/svg+xml" }), `${file}.svg`),
      png: () => picture(div, (blob) => save(blob, `${file}.png`)),
    });
  });
  document.querySelectorAll("table").forEach((table, i) => {
    const read = () => [...table.rows].map((row) => [...row.cells].map((cell) => cell.innerText.trim()));
    tools(table.closest(".scroll") || table, {
      copy: (button) => copy(button, read().map((row) => row.join("\t")).join("\n")),
      csv: () => save(new Blob([csv(read())], { type: "text/csv" }), `${study}-${table.id || `table-${i + 1}`}.csv`),
    });
  });

  const every = document.querySelectorAll("[data-chart]");
  const folded = (div) => div.closest("details:not([open])");  // drawn when it is opened
  const fit = (div) => { if (!folded(div) && Math.abs((div.dataset.drawn || 0) - div.clientWidth) > 1) draw(div); };
  const resized = new ResizeObserver((seen) => requestAnimationFrame(() => seen.forEach((entry) => fit(entry.target))));
  const widths = [...every].map((div) => div.clientWidth);  // all before the first is drawn: else each is laid out anew
  every.forEach((div, i) => { if (!folded(div)) draw(div, widths[i]); resized.observe(div); });
  document.querySelectorAll("details").forEach((d) => d.addEventListener("toggle", () => d.querySelectorAll("[data-chart]").forEach(fit)));
  const sections = [...document.querySelectorAll("details.why")];
  let closed = [];
  window.addEventListener("beforeprint", () => { closed = sections.filter((d) => !d.open); closed.forEach((d) => { d.open = true; }); every.forEach((div) => draw(div)); });
  window.addEventListener("afterprint", () => { closed.forEach((d) => { d.open = false; }); every.forEach(fit); });
  document.body.dataset.drawnIn = Math.round(performance.now());  // milliseconds since the page was asked for
})();
