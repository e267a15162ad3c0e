// What was predicted for the last answers of this tab, and what came.

import { byId, duration, el, isNumber, onChoice, percent } from "./dom.js";
import { Plot, swatch, timingsPlot } from "./plots.js";

const KEPT = 20;
const NAMES = { ttft: "first token", tpot: "time per token", e2e: "end to end" };

export class Timings {
  #plot = new Plot(byId("timings-plot"), timingsPlot, 320);
  #records = [];
  #time = "ttft";
  #number = 0;

  constructor(indexOf) {
    this.indexOf = indexOf;
    onChoice("timings-time", (value) => {
      this.#time = value;
      this.#show();
    });
  }

  /** Keep an answer's `gearbox` object. One that no variant gave has no prediction to compare with. */
  add(gearbox) {
    if (!gearbox.variant || !gearbox.predicted) return;
    const of = (name) => ({
      actual: gearbox[`${name}_ms`], predicted: gearbox.predicted[`${name}_ms`], p95: gearbox.predicted[`${name}_p95_ms`],
    });
    this.#number += 1;
    const index = this.indexOf(gearbox.variant);
    this.#records.push({ number: this.#number, variant: gearbox.variant, index, ttft: of("ttft"), tpot: of("tpot"), e2e: of("e2e") });
    this.#records = this.#records.slice(-KEPT);
    this.#show();
  }

  clear() {
    this.#records = [];
    this.#number = 0;
    this.#show();
  }

  #show() {
    const none = this.#records.length === 0;
    byId("timings-plot").hidden = byId("timings-more").hidden = none;
    byId("timings-summary").textContent = none ? "The last 20 answers of this tab appear here." : this.#words();
    const rows = this.#records.map((one) => el("tr", {},
      el("td", { class: "n" }, String(one.number)),
      el("th", { scope: "row" }, swatch(one.index), one.variant),
      ...["ttft", "tpot", "e2e"].flatMap((name) => [
        el("td", { class: "n" }, duration(one[name].actual)),
        el("td", { class: "n quiet" }, duration(one[name].predicted)),
      ]),
    ));
    byId("timings-table").tBodies[0].replaceChildren(...rows.reverse());
    if (!none) this.#plot.show({ time: this.#time, records: this.#records });
  }

  #words() {
    const pairs = this.#records.map((one) => one[this.#time]).filter((one) => isNumber(one.actual) && one.predicted > 0);
    if (pairs.length === 0) return `None of the last answers has a ${NAMES[this.#time]}.`;
    const off = pairs.map((one) => Math.abs(one.actual / one.predicted - 1)).sort((a, b) => a - b);
    const within = pairs.filter((one) => one.actual <= one.p95).length;
    return `${NAMES[this.#time][0].toUpperCase()}${NAMES[this.#time].slice(1)}, ${pairs.length} ${pairs.length === 1 ? "answer" : "answers"}: `
      + `${within} within the 95% bound; half are within ${percent(off[Math.floor(off.length / 2)])} of the median predicted.`;
  }
}
