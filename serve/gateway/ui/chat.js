// The conversation: sending, streaming, stopping, and what is said under each answer.

import { byId, cost, duration, el, number } from "./dom.js";
import { ApiError } from "./api.js";
import { swatch } from "./plots.js";

const OUTCOMES = {
  used: "answered from sources",
  shrunk: "answered from fewer sources than requested",
  skipped: "answered without sources",
  abstained: "abstained: no document supports an answer",
  unsupported: "answered although no document supports it",
  computed: "computed exactly",
  agent: "answered with tools",
  off: "not grounded",
};

export class Chat {
  #turns = []; // what the next request carries: {role, content}
  #running = null;
  #count = 0;

  /**
   * `ready()` comes to know whether a request can be made, and sees to it where not; `request()` makes the body but for the
   * messages; `answered(gearbox)` is called with each answer's facts, `changed()` when the conversation changes,
   * `indexOf(variant)` is its place in the catalog.
   */
  constructor(api, { ready, request, answered, changed, indexOf }) {
    Object.assign(this, { api, ready, request, answered, changed, indexOf });
    this.view = byId("conversation");
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("draft").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    byId("draft").addEventListener("input", changed);
    byId("stop").addEventListener("click", () => this.stop());
    byId("reset").addEventListener("click", () => this.reset());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !byId("key-dialog").open) this.stop();
    });
  }

  /** The conversation with the draft at its end. */
  get messages() {
    return [...this.#turns, { role: "user", content: byId("draft").value }];
  }

  async send() {
    if (this.#running || !byId("draft").value.trim() || !(await this.ready())) return;
    const text = byId("draft").value;
    if (this.#running || !text.trim()) return; // sent again while it waited
    byId("draft").value = "";
    this.#exchange(text);
  }

  stop() {
    this.#running?.abort();
  }

  reset() {
    this.stop();
    this.#turns = [];
    this.view.replaceChildren(this.empty ?? "");
    byId("reset").disabled = true;
    byId("draft").focus();
    this.changed();
  }

  async #exchange(text) {
    const running = (this.#running = new AbortController());
    this.#busy(true);
    const shown = this.#begin(text);
    const messages = [...this.#turns, { role: "user", content: text }];
    const body = { ...this.request(), messages, stream: true, stream_options: { include_usage: true } };
    let answer = "";
    let gearbox = null;
    let failure = null;
    try {
      const { headers, documents } = await this.api.stream("v1/chat/completions", body, running.signal);
      shown.meta.replaceChildren(...this.#variantLine(headers.get("x-gearbox-variant"), headers.get("x-gearbox-reason")));
      for await (const document of documents) {
        const piece = document.choices?.[0]?.delta?.content ?? "";
        answer += piece;
        this.#keepingAtEnd(() => shown.text.append(piece));
        gearbox = document.gearbox ?? gearbox;
      }
    } catch (error) {
      if (!running.signal.aborted && !(error instanceof ApiError)) throw error;
      failure = running.signal.aborted ? "stopped" : error;
    } finally {
      if (this.#running === running) {
        this.#running = null;
        this.#busy(false);
      }
    }
    if (!shown.exchange.isConnected) return; // the conversation was reset meanwhile
    shown.exchange.classList.remove("streaming");
    this.#keepingAtEnd(() => this.#end(shown, text, answer, gearbox, failure));
  }

  #begin(text) {
    this.empty ??= byId("empty");
    this.empty.remove();
    this.#count += 1;
    const answer = el("p", { class: "text" });
    const meta = el("p", { class: "meta" }, el("span", { class: "wait" }, "waiting for the first token…"));
    const exchange = el("article", { class: "exchange streaming", "aria-label": `Exchange ${this.#count}` },
      el("div", { class: "message user" }, el("h3", { class: "visually-hidden" }, "You"), el("p", { class: "text" }, text)),
      el("div", { class: "message assistant" }, el("h3", { class: "visually-hidden" }, "Answer"), answer, meta),
    );
    this.view.append(exchange);
    this.view.scrollTop = this.view.scrollHeight;
    byId("reset").disabled = false;
    say("Sent.");
    return { exchange, text: answer, meta, number: this.#count };
  }

  #end(shown, text, answer, gearbox, failure) {
    if (failure === "stopped" || failure === null) {
      if (answer) this.#turns.push({ role: "user", content: text }, { role: "assistant", content: answer });
      this.changed();
    }
    if (failure === "stopped") {
      shown.meta.replaceChildren("Stopped by you.");
      say("Stopped.");
    } else if (failure !== null) {
      this.#failed(shown, text, failure);
    } else if (gearbox !== null) {
      this.#showFacts(shown, answer, gearbox);
      this.answered(gearbox);
      say(`${gearbox.variant ?? "The platform"} answered: ${answer}`);
    } else {
      say(`Answered: ${answer}`);
    }
  }

  #failed(shown, text, failure) {
    if (failure.status === 401) {
      shown.exchange.remove(); // it never reached a variant, and the page is asking for the key
      if (!byId("draft").value) byId("draft").value = text;
      this.changed();
      return;
    }
    const retry = el("button", { type: "button" }, "Retry");
    retry.addEventListener("click", () => {
      if (this.#running) return;
      shown.exchange.remove();
      byId("draft").focus();
      this.#exchange(text);
    });
    shown.meta.replaceChildren();
    shown.meta.after(el("div", { class: "notice error" }, el("p", { role: "alert" }, failure.words), retry));
  }

  #showFacts(shown, answer, gearbox) {
    const { predicted = {}, retrieval } = gearbox;
    const facts = [
      `first token ${beside(gearbox.ttft_ms, predicted.ttft_ms)}`,
      `end to end ${beside(gearbox.e2e_ms, predicted.e2e_ms)}`,
      gearbox.tpot_ms ? `${number(1000 / gearbox.tpot_ms)} tokens/s` : null,
      cost(gearbox.cost_usd),
      gearbox.attempts > 1 ? `${gearbox.attempts} attempts` : null,
      ...(gearbox.migrations ?? []).map((one) => `continued by ${one.to} after ${number(one.at_token)} tokens`),
      gearbox.missed ? `misses the budget: ${gearbox.missed}` : null,
    ];
    const line = facts.filter(Boolean).map((fact) => el("span", {}, fact));
    shown.meta.replaceChildren(...this.#variantLine(gearbox.variant, gearbox.reason), ...line);
    if (retrieval) grounding(shown, answer, gearbox);
  }

  #variantLine(variant, reason) {
    const chip = variant && variant !== "none" ? [swatch(this.indexOf(variant)), variant] : ["no variant"];
    return [el("span", { class: "chip" }, ...chip), el("span", {}, String(reason ?? "").replace("_", " "))];
  }

  #busy(busy) {
    byId("stop").hidden = !busy;
    byId("send").hidden = busy;
    this.view.setAttribute("aria-busy", String(busy));
  }

  /** Change the view; who was at its end stays there, who reads further up is not moved. */
  #keepingAtEnd(change) {
    const atEnd = this.view.scrollHeight - this.view.scrollTop - this.view.clientHeight < 60;
    change();
    if (atEnd) this.view.scrollTop = this.view.scrollHeight;
  }
}

const beside = (actual, predicted) => (predicted ? `${duration(actual)} (predicted ${duration(predicted)})` : duration(actual));

const say = (words) => byId("chat-status").replaceChildren(words);

/** Mark the answer's sentences by their support, and list what they rest on. */
function grounding(shown, answer, gearbox) {
  const { grounded, sentences, citations = [], tools = [], quoted, retrieval } = gearbox;
  if (sentences) shown.text.replaceChildren(...marked(answer, sentences, shown.number));
  const state = { true: ["✓ grounded", "good"], false: ["not grounded", "bad"], null: ["grounding not checked", ""] }[String(grounded ?? null)];
  const facts = [OUTCOMES[retrieval.outcome] ?? retrieval.outcome, retrieval.why];
  if (typeof retrieval.support === "number") facts.push(`support ${number(retrieval.support, 2)}`);
  if (retrieval.passages) facts.push(`${retrieval.passages} ${retrieval.passages === 1 ? "source" : "sources"} read in ${duration(retrieval.ms)}`);
  const parts = [el("p", { class: "meta" }, el("span", { class: `chip ${state[1]}` }, state[0]), ...facts.filter(Boolean).map((one) => el("span", {}, one)))];
  if (tools.length) {
    parts.push(el("ul", { class: "tools", "aria-label": "Tools" }, ...tools.map((one) => el("li", {}, el("code", {}, `${one.name}(${JSON.stringify(one.input)})`), ` ${typeof one.output === "string" ? one.output : JSON.stringify(one.output)}`))));
  }
  if (citations.length) {
    parts.push(el("ol", { class: "citations", "aria-label": "Sources" }, ...citations.map((one) => citation(one, quoted, shown.number))));
  }
  shown.meta.after(el("div", { class: "grounding" }, ...parts));
}

function citation(one, quoted, exchange) {
  const place = [one.heading, one.page ? `page ${one.page}` : null, one.source].filter((part) => part && part !== one.title);
  return el("li", { id: `source-${exchange}-${one.n}`, value: one.n, tabindex: "-1" },
    el("strong", {}, one.title || one.source),
    place.length ? el("span", { class: "quiet" }, ` ${place.join(" · ")}`) : null,
    el("blockquote", {}, one.quote),
    one.n === quoted ? el("span", { class: "quiet" }, "Quoted because the answer is not supported by its sources.") : null,
  );
}

/** The answer in pieces. Places are counted in code points, as Python counts them. */
function marked(answer, sentences, exchange) {
  const points = Array.from(answer);
  const parts = [];
  let at = 0;
  for (const one of [...sentences].sort((a, b) => a.start - b.start)) {
    const text = points.slice(one.start, one.end).join("");
    parts.push(points.slice(at, one.start).join(""));
    if (one.supported === false) {
      parts.push(el("mark", { class: "unsupported", title: "no source supports this" }, text, el("span", { class: "visually-hidden" }, " (no source supports this)")));
    } else {
      parts.push(text);
    }
    if (one.supported && one.source) {
      parts.push(el("sup", {}, el("a", { href: `#source-${exchange}-${one.source}`, "aria-label": `Source ${one.source}` }, `[${one.source}]`)));
    }
    at = Math.max(at, one.end);
  }
  parts.push(points.slice(at).join(""));
  return parts;
}
