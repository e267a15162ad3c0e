// Where the draft would go now: requested from /v1/route on every change, drawn and put into words.

import { byId, cost, duration, el, fixed, number, onChoice, percent } from "./dom.js";
import { ApiError } from "./api.js";
import { decisionPlot, Plot, swatch } from "./plots.js";

const WAIT_MS = 200; // after the last change
const SAY_MS = 1200; // before it is said aloud

const REASONS = {
  pinned: "pinned by you",
  quality: "the highest quality that fits",
  cost: "the cheapest that fits",
  latency: "the fastest that fits",
  explore: "tried now and then, to learn how fast it is",
  nearest_miss: "nothing fits; this one misses the limits by least",
};

const NO_VARIANT = "No variant is used: the answer is computed.";

export class Decision {
  #plot = new Plot(byId("decision-plot"), decisionPlot, 300);
  #time = "e2e";
  #shown = null;
  #waiting = null;
  #saying = null;
  #pending = null;

  /** `request()` makes the request's body; `indexOf(variant)` is its place in the catalog. */
  constructor(api, request, indexOf) {
    this.api = api;
    this.request = request;
    this.indexOf = indexOf;
    onChoice("decision-time", (value) => this.plotTime(value));
  }

  /** Plot the other time: "e2e" or "ttft". */
  plotTime(time) {
    this.#time = time;
    for (const input of document.querySelectorAll('input[name="decision-time"]')) input.checked = input.value === time;
    this.#draw();
  }

  /** Request the decision soon. */
  changed() {
    clearTimeout(this.#waiting);
    this.#waiting = setTimeout(() => this.refresh(), WAIT_MS);
  }

  async refresh() {
    this.#pending?.abort();
    const { signal } = (this.#pending = new AbortController());
    const body = this.request();
    try {
      this.#show(await this.api.post("v1/route", body, signal), null);
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof ApiError)) throw error;
      await this.#refused(error, body, signal);
    }
  }

  /** A budget that nothing fits is refused; what there is to choose from is shown all the same. */
  async #refused(error, body, signal) {
    let nearest = null;
    if (error.code === "impossible_budget" || error.code === "budget_under_load") {
      const degrading = { ...body, budget: { ...body.budget, on_no_candidate: "degrade" } };
      nearest = await this.api.post("v1/route", degrading, signal).catch(() => null);
      if (signal.aborted) return;
    }
    this.#show(nearest, error);
  }

  #show(decision, error) {
    this.#shown = decision;
    const refusal = byId("verdict-error");
    refusal.hidden = error === null;
    refusal.textContent = error ? `${error.status > 0 ? `Refused (${error.status}): ` : ""}${error.words}` : "";
    byId("decision").classList.toggle("refused", error !== null);
    byId("verdict").replaceChildren(...(decision && !error ? verdict(decision) : [error ? "No variant would answer this." : ""]));
    this.#say(error ? refusal.textContent : brief(decision));
    const rows = (decision?.candidates ?? []).map((one) => this.#row(one, error ? null : decision));
    byId("candidates").parentElement.hidden = rows.length === 0;
    byId("candidates").tBodies[0].replaceChildren(...rows);
    byId("decision-plot").hidden = rows.length === 0;
    this.#draw(error !== null);
  }

  #draw(refused = !byId("verdict-error").hidden) {
    if (this.#shown === null) return;
    const { budget, candidates, variant } = this.#shown;
    const known = candidates.map((one) => ({ ...one, index: this.indexOf(one.variant) }));
    this.#plot.show({ time: this.#time, budget, chosen: refused ? null : variant, candidates: known });
  }

  #row(one, decision) {
    const chosen = decision?.variant === one.variant;
    const explanation = one.why ?? (chosen ? REASONS[decision.reason] : "fits");
    const state = chosen ? "chosen" : one.ruled_out ? "ruled out" : "fits";
    return el("tr", { class: state.replace(" ", "-") },
      el("th", { scope: "row" }, swatch(this.indexOf(one.variant)), one.variant),
      el("td", {}, el("span", { class: "state" }, chosen ? `✓ ${state}` : state), explanation === state ? "" : ` ${explanation}`),
      el("td", { class: "n" }, fixed(one.quality)),
      el("td", { class: "n" }, times(one.predicted_ttft_ms, one.predicted_ttft_p95_ms)),
      el("td", { class: "n" }, times(one.predicted_e2e_ms, one.predicted_e2e_p95_ms)),
      el("td", { class: "n" }, cost(one.cost_usd)),
      el("td", { class: "n" }, percent(one.chance)),
    );
  }

  #say(words) {
    clearTimeout(this.#saying);
    this.#saying = setTimeout(() => {
      if (byId("decision-status").textContent !== words) byId("decision-status").textContent = words;
    }, SAY_MS);
  }
}

/** From the median to the bound; a unit that is the same is written once. */
function times(median, bound) {
  const [from, to] = [duration(median), duration(bound)];
  const same = from.split(" ")[1] === to.split(" ")[1];
  return `${same ? from.split(" ")[0] : from} – ${to}`;
}

/** The decision without the numbers, which change with every request. */
function brief({ variant, reason, candidates }) {
  if (variant === null) return NO_VARIANT;
  const out = candidates.filter((one) => one.ruled_out && one.variant !== variant).map((one) => one.variant);
  return `${variant}: ${REASONS[reason] ?? reason}.${out.length ? ` Ruled out: ${out.join(", ")}.` : ""}`;
}

function verdict(decision) {
  if (decision.variant === null) return [NO_VARIANT];
  const out = decision.candidates.filter((one) => one.ruled_out && one.variant !== decision.variant);
  const chosen = decision.candidates.find((one) => one.variant === decision.variant);
  const missed = chosen?.why ? ` (${chosen.why})` : "";
  const parts = [
    el("strong", {}, decision.variant), `: ${REASONS[decision.reason] ?? decision.reason}${missed}. `,
    `First token in about ${duration(decision.predicted_ttft_ms)}, the whole answer in ${duration(decision.predicted_e2e_ms)}, for ${cost(decision.cost_usd)}.`,
  ];
  if (out.length) parts.push(` Ruled out: ${out.map((one) => `${one.variant} (${one.why})`).join(", ")}.`);
  if (decision.retrieval) {
    const { top_k: sources, more_chars: chars } = decision.retrieval;
    parts.push(sources ? ` The budget allows ${sources} ${sources === 1 ? "source" : "sources"}, about ${number(chars)} characters.` : " The budget allows no sources.");
  }
  return parts;
}
