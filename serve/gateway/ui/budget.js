// What a request may spend: a profile's limits, and what the sliders change of them.

import { byId, cost, duration, el, number, onChoice } from "./dom.js";

const STEPS = 120; // positions of a slider besides "no limit"
const DEFAULTS = { ttft_ms: null, tpot_ms: null, e2e_ms: null, max_cost: null, min_quality: null, objective: "quality", on_no_candidate: "degrade" };

const SLIDERS = [
  { name: "ttft_ms", label: "First token within", from: 10, to: 60_000, text: duration, none: "no limit" },
  { name: "e2e_ms", label: "Whole answer within", from: 50, to: 600_000, text: duration, none: "no limit" },
  { name: "max_cost", label: "Cost at most", from: 1e-8, to: 1e-2, text: cost, none: "no limit" },
  { name: "min_quality", label: "Quality at least", floor: true, text: (value) => number(value, 2), none: "no floor" },
  { name: "max_tokens", label: "Answer of at most", from: 8, to: 1024, text: (value) => `${value} tokens`, whole: true },
];

/** Tells of every change by a `change` event. */
export class Budget extends EventTarget {
  #base = DEFAULTS;
  #value = DEFAULTS;
  #sliders = new Map();

  constructor() {
    super();
    this.maxTokens = 128;
    for (const slider of SLIDERS) this.#add(slider);
    onChoice("objective", (value) => this.#set({ objective: value }));
    byId("reject").addEventListener("change", (event) => {
      this.#set({ on_no_candidate: event.target.checked ? "reject" : "degrade" });
    });
    byId("reset-to-profile").addEventListener("click", () => {
      this.base = this.#base;
      byId("profile").focus();
    });
    byId("pinned").addEventListener("change", () => this.#changed());
    this.#show();
  }

  get profile() {
    return byId("profile").value;
  }

  get pinned() {
    return byId("pinned").value;
  }

  /** Begin anew from a profile's budget. */
  set base(budget) {
    this.#base = this.#value = { ...DEFAULTS, ...budget };
    this.#changed();
  }

  /** The `model` and `budget` of a request. A pinned variant leaves no place for the profile: then every limit is sent. */
  request(model) {
    const changed = Object.entries(this.#value).filter(([name, value]) => this.pinned || value !== this.#base[name]);
    const suffix = this.pinned ? `:${this.pinned}` : this.profile ? `@${this.profile}` : "";
    return {
      model: model + suffix,
      max_tokens: this.maxTokens,
      ...(changed.length ? { budget: Object.fromEntries(changed) } : {}),
    };
  }

  #add(slider) {
    const id = `slider-${slider.name}`;
    const last = slider.floor ? 100 : STEPS + (slider.whole ? 0 : 1);
    const input = el("input", { id, type: "range", min: 0, max: last, step: 1, class: slider.floor ? "floor" : null });
    const output = el("output", { for: id });
    byId("sliders").lastElementChild.before(
      el("div", { class: "slider" }, el("label", { for: id }, slider.label), output, input),
    );
    this.#sliders.set(slider.name, { ...slider, input, output, last });
    input.addEventListener("input", () => {
      const value = valueAt(this.#sliders.get(slider.name), Number(input.value));
      if (slider.name === "max_tokens") {
        this.maxTokens = value;
        this.#changed();
      } else {
        this.#set({ [slider.name]: value });
      }
    });
  }

  #set(change) {
    this.#value = { ...this.#value, ...change };
    this.#changed();
  }

  #changed() {
    this.#show();
    this.dispatchEvent(new Event("change"));
  }

  #show() {
    for (const [name, slider] of this.#sliders) {
      const value = name === "max_tokens" ? this.maxTokens : this.#value[name];
      const at = positionOf(slider, value);
      const shownText = value === null ? slider.none : slider.text(value);
      if (Number(slider.input.value) !== at) slider.input.value = at;
      slider.input.setAttribute("aria-valuetext", shownText);
      slider.input.style.setProperty("--at", `${(100 * at) / slider.last}%`);
      slider.output.textContent = shownText;
    }
    for (const input of document.querySelectorAll('input[name="objective"]')) {
      input.checked = input.value === this.#value.objective;
    }
    byId("reject").checked = this.#value.on_no_candidate === "reject";
    const differs = Object.keys(this.#value).some((name) => this.#value[name] !== this.#base[name]);
    byId("changed").textContent = differs ? "changed" : "";
    byId("reset-to-profile").disabled = !differs;
  }
}

function valueAt(slider, at) {
  if (slider.floor) return at === 0 ? null : at / 100;
  if (at > STEPS) return null;
  const value = slider.from * (slider.to / slider.from) ** (at / STEPS);
  return slider.whole ? Math.round(value) : Number(value.toPrecision(2));
}

function positionOf(slider, value) {
  if (slider.floor) return Math.round((value ?? 0) * 100);
  if (value === null) return STEPS + 1;
  const at = (STEPS * Math.log(value / slider.from)) / Math.log(slider.to / slider.from);
  return Math.round(Math.min(Math.max(at, 0), STEPS));
}
