// The variants: what their cards say and how they are now.

import { byId, bytes, el, fixed, isNumber, number, onChoice } from "./dom.js";
import { ApiError } from "./api.js";
import { catalogPlot, Plot, swatch } from "./plots.js";

const HEALTH = { healthy: "healthy", scaled_to_zero: "scaled to zero", unavailable: "unavailable" };

export class Catalog {
  #plot = new Plot(byId("catalog-plot"), catalogPlot, 260);
  #summaries = new Map();
  #variants = [];
  #axis = "speed";
  #drawn = "";

  constructor(api) {
    this.api = api;
    onChoice("catalog-axis", (value) => {
      this.#axis = value;
      this.#draw();
    });
  }

  /** Take what /v1/models says of the variants: name -> card in brief. */
  set summaries(summaries) {
    this.#summaries = summaries;
  }

  /** Place of a variant among all; it decides its colour and shape. */
  indexOf(variant) {
    const at = [...this.#summaries.keys()].indexOf(variant);
    return at < 0 ? this.#summaries.size : at;
  }

  async refresh() {
    try {
      const { data } = await this.api.get("v1/variants");
      this.#variants = data;
      byId("catalog-error").hidden = true;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      byId("catalog-error").hidden = false;
      byId("catalog-error").textContent = error.words;
      return;
    }
    byId("variants").replaceChildren(...this.#variants.map((one) => this.#card(one)));
    this.#draw();
  }

  clear() {
    this.#variants = [];
    this.#drawn = "";
    byId("variants").replaceChildren();
    byId("catalog-plot").hidden = true;
  }

  #draw() {
    const variants = this.#variants.map((one) => ({ name: one.name, index: this.indexOf(one.name), ...this.#summaryOf(one) }));
    const drawn = JSON.stringify([this.#axis, variants]);
    if (drawn === this.#drawn) return; // only what is live changed
    this.#drawn = drawn;
    byId("catalog-plot").hidden = variants.length === 0;
    this.#plot.show({ axis: this.#axis, variants });
  }

  #summaryOf(variant) {
    return this.#summaries.get(variant.name) ?? { quality: variant.card.quality?.quality };
  }

  #card(variant) {
    const known = this.#summaryOf(variant);
    const fact = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));
    const price = known.usd_per_million_output_tokens;
    return el("li", { class: `variant ${variant.health}` },
      el("div", { class: "variant-head" },
        el("h3", {}, swatch(this.indexOf(variant.name)), variant.name),
        el("span", { class: "health" }, HEALTH[variant.health] ?? variant.health),
      ),
      el("p", { class: "technique" }, known.technique === "none" ? "the model as it is" : known.technique),
      el("dl", {},
        fact("Quality", fixed(known.quality)),
        fact("Perplexity", number(known.perplexity)),
        fact("Weights", bytes(known.bytes_on_disk)),
        fact("Tokens/s", number(known.decode_tokens_per_s)),
        fact("Per 1M out", isNumber(price) ? `$${number(price, 2)}` : "–"),
        fact("Replicas", `${variant.replicas} of ${variant.max_replicas}${variant.ejected_replicas ? `, ${variant.ejected_replicas} ejected` : ""}`),
      ),
      el("p", { class: "quiet load" }, `${variant.running} running, ${variant.waiting} waiting, ${variant.in_flight} in flight`),
    );
  }
}
