// The three plots, in SVG. Each is repeated in words or a table beside it, so for a screen reader it is one image.

import { duration, isNumber, number, svg } from "./dom.js";

const FAR = 6; // a limit further off than this from every time is only pointed at
const MARGIN = { top: 26, right: 18, bottom: 42, left: 46 };

/** A plot in `node` that draws itself anew whenever its data or its width changes. */
export class Plot {
  #data = null;

  constructor(node, draw, height) {
    this.node = node;
    this.draw = draw;
    this.height = height;
    new ResizeObserver(() => this.#render()).observe(node);
  }

  show(data) {
    this.#data = data;
    this.#render();
  }

  #render() {
    const width = this.node.clientWidth;
    if (this.#data === null || width === 0) return;
    const height = Math.min(this.height, Math.max(240, width * 0.8));
    const image = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
    this.draw(image, this.#data, width, height);
    this.node.replaceChildren(image);
  }
}

/**
 * Quality over predicted time: every candidate with its whisker, the allowed region, the chosen one marked.
 * `data`: {time: "e2e" | "ttft", budget, chosen, candidates} as /v1/route gives them, with `index` in the catalog.
 */
export function decisionPlot(image, { time, budget, chosen, candidates }, width, height) {
  const limit = budget[`${time}_ms`];
  const floor = budget.min_quality;
  const median = (one) => one[`predicted_${time}_ms`];
  const bound = (one) => Math.max(one[`predicted_${time}_p95_ms`], median(one));
  const times = candidates.flatMap((one) => [median(one), bound(one)]);
  const near = isNumber(limit) && limit > Math.min(...times) / FAR && limit < Math.max(...times) * FAR;
  const x = logScale(near ? [...times, limit] : times, width, 1.35);
  const y = linearScale([...candidates.map((one) => one.quality), floor], height);
  const name = time === "ttft" ? "first token" : "end to end";
  image.setAttribute("aria-label", `Quality over predicted time, ${name}: ${candidates.length} candidates, ${chosen} chosen`);
  axes(image, x, y, width, height, `predicted time, ${name}`, "quality");
  const right = isNumber(limit) ? Math.min(Math.max(x(limit), MARGIN.left), width - MARGIN.right) : width - MARGIN.right;
  const bottom = isNumber(floor) ? y(floor) : height - MARGIN.bottom;
  image.append(svg("rect", {
    class: "allowed", x: MARGIN.left, y: MARGIN.top, width: Math.max(0, right - MARGIN.left), height: Math.max(0, bottom - MARGIN.top),
  }));
  if (isNumber(limit)) {
    image.append(
      near ? svg("line", { class: "limit", x1: right, x2: right, y1: MARGIN.top, y2: height - MARGIN.bottom }) : "",
      text(right, MARGIN.top - 8, `${near || x(limit) > right ? "" : "← "}≤ ${duration(limit)}${near || x(limit) < right ? "" : " →"}`, { class: "limit-text", "text-anchor": anchorAt(right, width) }),
    );
  }
  if (isNumber(floor)) {
    image.append(
      svg("line", { class: "limit", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }),
      text(MARGIN.left + 6, bottom + 15, `≥ ${number(floor, 2)}`, { class: "limit-text" }),
    );
  }
  const labels = new Labels(width, height);
  for (const one of [...candidates].sort((a, b) => (b.variant === chosen) - (a.variant === chosen))) {
    const [left, middle, end] = [x(median(one)), y(one.quality), x(bound(one))];
    const state = one.variant === chosen ? "chosen" : one.ruled_out ? "out" : "fits";
    const group = svg("g", { class: `candidate ${state} v${one.index % 6}` },
      svg("title", {}, `${one.variant}: ${duration(median(one))}, at most ${duration(bound(one))} with 95%${one.why ? `; ${one.why}` : ""}`),
      svg("path", { class: "whisker", d: `M${left} ${middle}H${end}M${end} ${middle - 5}v10` }),
      state === "chosen" ? svg("circle", { class: "ring", cx: left, cy: middle, r: 13 }) : null,
      mark(one.index, left, middle, state === "chosen" ? 7 : 6),
    );
    const why = state === "out" && width > 420 ? ` · ${one.why}` : "";
    group.append(labels.place(left, middle, `${state === "chosen" ? "✓ " : ""}${one.variant}`, why));
    image.append(group);
  }
}

/** Actual over predicted time of each answer, with the diagonal where both are equal. */
export function timingsPlot(image, { time, records }, width, height) {
  const shown = records.filter((one) => isNumber(one[time].predicted) && isNumber(one[time].actual));
  const values = shown.flatMap((one) => [one[time].predicted, one[time].p95, one[time].actual]);
  const x = logScale(values, width, 1.3);
  const y = logScale(values, height, 1.3, true);
  image.setAttribute("aria-label", `Actual over predicted time of ${shown.length} answers`);
  axes(image, x, y, width, height, "predicted", "actual", duration);
  const [low, high] = x.domain;
  image.append(svg("path", { class: "diagonal", d: `M${x(low)} ${y(low)}L${x(high)} ${y(high)}` }));
  image.append(
    text(MARGIN.left + 8, MARGIN.top + 14, "slower than predicted", { class: "faint" }),
    text(width - MARGIN.right - 8, height - MARGIN.bottom - 8, "faster than predicted", { class: "faint", "text-anchor": "end" }),
  );
  shown.forEach((one, i) => {
    const { predicted, p95, actual } = one[time];
    const [left, top] = [x(predicted), y(actual)];
    image.append(svg("g", { class: `candidate v${one.index % 6} ${i === shown.length - 1 ? "latest" : ""}` },
      svg("title", {}, `${one.number}: ${one.variant}, ${duration(actual)}, predicted ${duration(predicted)}`),
      isNumber(p95) ? svg("path", { class: "whisker", d: `M${left} ${top}H${x(p95)}M${x(p95)} ${top - 4}v8` }) : null,
      i === shown.length - 1 ? svg("circle", { class: "ring", cx: left, cy: top, r: 11 }) : null,
      mark(one.index, left, top, 5.5),
    ));
  });
}

/** Quality over speed or price, with the line of those that no other beats in both. */
export function catalogPlot(image, { axis, variants }, width, height) {
  const speed = axis === "speed";
  const value = (one) => (speed ? one.decode_tokens_per_s : one.usd_per_million_output_tokens);
  const shown = variants.filter((one) => value(one) > 0);
  const x = logScale(shown.map(value), width, 1.5);
  const y = linearScale(shown.map((one) => one.quality), height);
  const name = speed ? "tokens/s of one answer" : "USD per million output tokens";
  image.setAttribute("aria-label", `Quality over ${name} of ${shown.length} variants`);
  axes(image, x, y, width, height, name, "quality", (tick) => number(tick));
  const better = (a, b) => (speed ? value(a) >= value(b) : value(a) <= value(b)) && a.quality >= b.quality;
  const strictly = (a, b) => better(a, b) && !better(b, a);
  const best = shown.filter((one) => !shown.some((other) => strictly(other, one)));
  best.sort((a, b) => x(value(a)) - x(value(b)));
  image.append(svg("polyline", { class: "frontier", points: best.map((one) => `${x(value(one))},${y(one.quality)}`).join(" ") }));
  const labels = new Labels(width, height);
  for (const one of shown) {
    const [left, top] = [x(value(one)), y(one.quality)];
    image.append(svg("g", { class: `candidate ${best.includes(one) ? "fits" : "out"} v${one.index % 6}` },
      svg("title", {}, `${one.name}: quality ${number(one.quality)}, ${number(value(one))} ${name}`),
      mark(one.index, left, top, 6.5),
      labels.place(left, top, one.name, ""),
    ));
  }
}

/** The mark of a variant: a shape as well as a colour. */
export function mark(index, x, y, r) {
  const shapes = [
    () => svg("circle", { class: "mark", cx: x, cy: y, r }),
    () => svg("rect", { class: "mark", x: x - r * 0.9, y: y - r * 0.9, width: r * 1.8, height: r * 1.8, rx: 1.5 }),
    () => svg("path", { class: "mark", d: `M${x} ${y - r * 1.15}L${x + r * 1.1} ${y + r * 0.85}H${x - r * 1.1}Z` }),
    () => svg("path", { class: "mark", d: `M${x} ${y - r * 1.25}L${x + r * 1.25} ${y}L${x} ${y + r * 1.25}L${x - r * 1.25} ${y}Z` }),
  ];
  return shapes[index % shapes.length]();
}

/** A variant's mark for use in text. */
export function swatch(index) {
  return svg("svg", { class: `swatch candidate v${index % 6}`, viewBox: "0 0 16 16", width: 14, height: 14, "aria-hidden": "true" }, mark(index, 8, 8, 6));
}

/** Places names beside marks so that they do not lie on one another. */
class Labels {
  #taken = [];

  constructor(width, height) {
    this.width = width;
    this.height = height;
  }

  place(x, y, name, more) {
    const length = name.length * 7.6 + more.length * 6.1;
    const end = x + length > this.width - MARGIN.right && x - length > MARGIN.left;
    const start = end ? x - length : Math.min(x, Math.max(MARGIN.left + 4, this.width - length));
    const tries = [-17, 27, -33, 43, -49, 59];
    const free = tries.find((dy) => !this.#taken.some((box) => hits(box, start, y + dy, length)) && y + dy > 14 && y + dy < this.height - MARGIN.bottom - 2);
    const at = y + (free ?? -17);
    this.#taken.push([start, at, length]);
    return svg("text", { class: "name", x: start, y: at }, name, more ? svg("tspan", { class: "why" }, more) : null);
  }
}

const hits = ([left, top, length], x, y, own) => x < left + length && left < x + own && Math.abs(top - y) < 15;

const text = (x, y, words, attributes) => svg("text", { x, y, ...attributes }, words);

const anchorAt = (x, width) => (x > width * 0.8 ? "end" : x < width * 0.2 ? "start" : "middle");

function logScale(values, size, room, vertical = false) {
  const known = values.filter((value) => isNumber(value) && value > 0);
  let [low, high] = known.length ? [Math.min(...known) / room, Math.max(...known) * room] : [1, 10];
  if (high / low < 4) [low, high] = [low / Math.sqrt((4 * low) / high), high * Math.sqrt((4 * low) / high)];
  const share = (value) => Math.log(value / low) / Math.log(high / low);
  const scale = vertical
    ? (value) => size - MARGIN.bottom - share(value) * (size - MARGIN.top - MARGIN.bottom)
    : (value) => MARGIN.left + share(value) * (size - MARGIN.left - MARGIN.right);
  scale.domain = [low, high];
  scale.ticks = logTicks(low, high, Math.max(3, Math.floor(size / 80)));
  return scale;
}

function logTicks(low, high, most) {
  for (const steps of [[1, 2, 5], [1, 3], [1]]) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      found.push(...steps.map((step) => step * 10 ** power).filter((tick) => tick >= low && tick <= high));
    }
    if (found.length <= most) return found;
  }
  const first = Math.ceil(Math.log10(low));
  const every = Math.ceil((Math.log10(high) - first + 1) / most);
  return Array.from({ length: most }, (_, i) => 10 ** (first + i * every)).filter((tick) => tick <= high);
}

function linearScale(values, size) {
  const known = values.filter(isNumber);
  const high = Math.max(...known, 0);
  const low = Math.min(...known, high - 0.05);
  const room = (high - low) * 0.22;
  const [bottom, top] = [Math.max(0, low - room), high + room];
  const scale = (value) => size - MARGIN.bottom - ((value - bottom) / (top - bottom)) * (size - MARGIN.top - MARGIN.bottom);
  const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5].find((one) => (top - bottom) / one <= 6) ?? 1;
  scale.ticks = [];
  for (let i = Math.ceil(bottom / step); i * step <= Math.min(top, 1.0001); i += 1) scale.ticks.push(Number((i * step).toFixed(4)));
  return scale;
}

function axes(image, x, y, width, height, below, beside, format = null) {
  const bottom = height - MARGIN.bottom;
  for (const tick of y.ticks) {
    image.append(
      svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }),
      text(MARGIN.left - 7, y(tick) + 4, format === duration ? short(tick) : tick.toFixed(2), { class: "tick", "text-anchor": "end" }),
    );
  }
  for (const tick of x.ticks) {
    image.append(
      svg("line", { class: "grid", x1: x(tick), x2: x(tick), y1: MARGIN.top, y2: bottom }),
      text(x(tick), bottom + 16, format && format !== duration ? format(tick) : short(tick), { class: "tick", "text-anchor": "middle" }),
    );
  }
  image.append(
    svg("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }),
    text(width - MARGIN.right, height - 6, `${below} →`, { class: "axis-name", "text-anchor": "end" }),
    text(4, 14, `↑ ${beside}`, { class: "axis-name" }),
  );
}

/** A round duration without a space, for ticks. */
const short = (ms) => (ms < 1000 ? `${number(ms)}ms` : ms < 60_000 ? `${number(ms / 1000)}s` : `${number(ms / 60_000, 2)}min`);
