"use strict";
// Draws a subject's picture again, closer: everything it needs is in the page. Without it the page shows all nights.
(() => {
  const data = document.querySelector("script.data");
  const finder = document.querySelector(".find");
  if (finder) {
    const input = finder.querySelector("input"), told = finder.querySelector("output");
    const rows = [...document.querySelectorAll("tbody[data-name]")];
    finder.hidden = rows.length < 8;
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        row.hidden = !words.every((word) => row.dataset.name.includes(word));
        shown += !row.hidden;
      }
      told.textContent = words.length ? `${shown} of ${rows.length}` : "";
    });
  }
  if (!data) return;

  const past = JSON.parse(data.textContent), total = past.nights.length;
  const box = document.querySelector(".past .scroll"), bar = document.querySelector(".zoom");
  const told = document.querySelector(".told");
  const W = 760, LEVELS = 150, RATIOS = 190, GAP = 34, LEFT = 74, RIGHT = 12, TOP = 22, BOTTOM = 26, MOST = 180;
  const BELOW = TOP + LEVELS + GAP, END = BELOW + RATIOS, H = END + BOTTOM;
  let begin = 0, end = total, at = -1;

  const make = (name, given, text) => {
    const one = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in given) one.setAttribute(key, given[key]);
    if (text !== undefined) one.textContent = text;
    return one;
  };
  const x = (row) => LEFT + (row - begin + 0.5) * (W - LEFT - RIGHT) / Math.max(1, end - begin);
  const quantile = (sorted, q) => sorted[Math.min(sorted.length - 1, Math.max(0, Math.round(q * (sorted.length - 1))))];
  const range = (values) => {
    const sorted = values.slice().sort((a, b) => a - b);
    const low = quantile(sorted, 0.02), high = quantile(sorted, 0.98), spread = Math.max(high - low, 0.04);
    const first = Math.max(sorted[0], low - spread), last = Math.min(sorted[sorted.length - 1], high + spread);
    const pad = Math.max(0.02, 0.08 * (last - first));
    return [first - pad, last + pad];
  };
  const ticks = (low, high) => {
    const first = Math.exp(low), last = Math.exp(high);
    let step = 10 ** Math.floor(Math.log10((last - first) / 3));
    step *= [1, 2, 5, 10].find((factor) => (last - first) / (step * factor) <= 5) || 10;
    const found = [];
    for (let n = Math.ceil(first / step); n * step <= last; n += 1) if (n > 0) found.push(n * step);
    return found;
  };
  const number = (value) => Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });
  const scaled = (value) => {
    const steps = past.unit === "s" ? [[1, "s"], [1e-3, "ms"], [1e-6, "µs"], [1e-9, "ns"]]
      : past.unit === "B" ? [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"], [1, "B"]] : [[1, past.unit]];
    const [size, unit] = steps.find(([one]) => value >= one) || steps[steps.length - 1];
    return unit.startsWith("1/") ? `${number(value / size)}${unit.slice(1)}` : `${number(value / size)} ${unit}`;
  };

  const panel = (svg, key, top, height) => {
    const shown = past.lines.map((line) => line[key].slice(begin, end));
    const values = shown.flat().filter((value) => value !== null);
    if (!values.length) return;
    const [low, high] = range(values);
    const y = (log) => top + height * (high - Math.min(high, Math.max(low, log))) / (high - low);
    for (const tick of ticks(low, high)) {
      const place = y(Math.log(tick));
      svg.append(make("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: place, y2: place }));
      const label = key === "ratio" ? `${number(tick)}×` : scaled(tick);
      svg.append(make("text", { class: "tick", x: LEFT - 6, y: place + 3.5, "text-anchor": "end" }, label));
    }
    svg.append(make("text", { class: "panel", x: LEFT, y: key === "ratio" ? top - 10 : top + 11 },
      key === "ratio" ? "ratio to bare metal" : "level"));
    const size = Math.max(1, Math.ceil((end - begin) / MOST));
    past.lines.forEach((line, index) => {
      const points = [], upper = [], lower = [];
      for (let row = begin; row < end; row += size) {
        const last = Math.min(end, row + size);
        const group = shown[index].slice(row - begin, last - begin).filter((value) => value !== null).sort((a, b) => a - b);
        if (!group.length) continue;
        const place = x((row + last - 1) / 2), half = group.length >> 1;
        points.push([place, y(group.length % 2 ? group[half] : (group[half - 1] + group[half]) / 2)]);
        upper.push([place, y(group[group.length - 1])]);
        lower.unshift([place, y(group[0])]);
      }
      if (!points.length) return;
      const joined = (list) => list.map((one) => one.map((value) => value.toFixed(1)).join(",")).join(" ");
      const colour = `b${line.place % 6}`;
      if (size > 1) svg.append(make("polygon", { class: `range ${colour}`, points: joined(upper.concat(lower)) }));
      svg.append(make("polyline", { class: `line ${colour}`, points: joined(points) }));
      if (end - begin <= 90) for (const [cx, cy] of points) svg.append(make("circle", { class: `dot ${colour}`, cx, cy, r: 2 }));
    });
  };

  const draw = () => {
    const svg = make("svg", { class: "history", viewBox: `0 0 ${W} ${H}`, "aria-hidden": "true", focusable: "false" });
    past.epochs.forEach(([from, to, name], index) => {
      if (to <= begin || from >= end) return;
      const left = x(Math.max(from, begin) - 0.5), right = x(Math.min(to, end) - 0.5);
      if (index % 2) svg.append(make("rect", { class: "epoch", x: left, y: TOP - 6, width: right - left, height: END - TOP + 6 }));
      if (!index || from < begin) return;
      svg.append(make("line", { class: "change", x1: left, x2: left, y1: TOP - 6, y2: END }));
      const text = name || "conditions changed";
      svg.append(make("text", { class: "note", x: left, y: TOP - 10, "text-anchor": left > W * 0.6 ? "end" : "start" },
        text.length < 42 ? text : `${text.slice(0, 40)}…`));
    });
    panel(svg, "level", TOP, LEVELS);
    panel(svg, "ratio", BELOW, RATIOS);
    for (const [row, place, title] of past.marks) {
      if (row < begin || row >= end) continue;
      const left = x(row - 0.5);
      svg.append(make("line", { class: "finding", x1: left, x2: left, y1: TOP, y2: END }));
      const mark = make("path", { class: `finding b${place % 6}`, d: `M${left},${BELOW - 2}l5,-9h-10z` });
      mark.append(make("title", {}, title));
      svg.append(mark);
    }
    for (const [row, side] of [[begin, "start"], [(begin + end) >> 1, "middle"], [end - 1, "end"]])
      svg.append(make("text", { class: "tick", x: x(row), y: H - 8, "text-anchor": side }, past.nights[row]));
    if (at >= begin && at < end) svg.append(make("line", { class: "cursor", x1: x(at), x2: x(at), y1: TOP, y2: END }));
    box.replaceChildren(svg);
  };

  const say = () => {
    told.replaceChildren();
    if (at < 0) return;
    const name = past.reports[at] ? document.createElement("a") : document.createElement("bdi");
    if (past.reports[at]) name.href = past.reports[at];
    name.textContent = past.runs[at];
    const values = past.lines.filter((line) => line.level[at] !== null).map((line) => {
      const ratio = line.ratio[at] === null ? "" : ` (${number(Math.exp(line.ratio[at]))}×)`;
      return `${line.name} ${scaled(Math.exp(line.level[at]))}${ratio}`;
    });
    told.append(`${past.nights[at]}, `, name, `: ${values.join("; ") || "not measured"}`);
  };
  const point = (row) => { at = Math.min(end - 1, Math.max(begin, row)); draw(); say(); };
  box.addEventListener("pointermove", (event) => {
    const svg = box.firstElementChild.getBoundingClientRect();
    const place = (event.clientX - svg.left) * W / svg.width;
    const row = Math.round(begin + (place - LEFT) * (end - begin) / (W - LEFT - RIGHT) - 0.5);
    if (row !== at) point(row);
  });
  box.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -total, End: total };
    if (!(event.key in steps)) return;
    event.preventDefault();
    point((at < 0 ? end - 1 : at) + steps[event.key]);
  });

  const buttons = [];
  const button = (text, act) => {
    const one = document.createElement("button");
    one.type = "button";
    one.textContent = text;
    one.addEventListener("click", act);
    bar.append(one);
    return one;
  };
  let earlier, later;
  const show = (from, to) => {
    begin = Math.max(0, Math.min(from, total - 1));
    end = Math.min(total, Math.max(to, begin + 1));
    at = -1;
    draw();
    say();
    for (const [one, size] of buttons) one.setAttribute("aria-pressed", String(end - begin === Math.min(size, total)));
    if (earlier) earlier.disabled = begin === 0;
    if (later) later.disabled = end === total;
  };
  for (const size of [30, 90, 365].filter((size) => size < total)) buttons.push([button(`${size} nights`, () => show(end - size, end)), size]);
  if (!buttons.length) { bar.hidden = true; show(0, total); return; }
  buttons.push([button("All", () => show(0, total)), total]);
  earlier = button("Earlier", () => { const size = end - begin; show(begin - (size >> 1), begin - (size >> 1) + size); });
  later = button("Later", () => { const size = end - begin, to = Math.min(total, end + (size >> 1)); show(to - size, to); });
  bar.hidden = false;
  show(0, total);
})();
