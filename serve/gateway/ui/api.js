// The platform's API as this page uses it. The key lives in this tab's session storage and in the header, nowhere else.

const KEY = "gearbox-key";

/** What went wrong, in words. `status` 0: nobody answered; -1: the stream broke off. */
export class ApiError extends Error {
  constructor(status, message, code = null, retryAfter = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }

  /** The message as a sentence, with when to try again. */
  get words() {
    const text = this.message.charAt(0).toUpperCase() + this.message.slice(1);
    const sentence = /[.!?:…]$/.test(text) ? text : `${text}.`;
    return this.retryAfter ? `${sentence} Try again in ${this.retryAfter} s.` : sentence;
  }
}

export class Api {
  /** `refused` is called on every 401. */
  constructor(refused) {
    this.refused = refused;
  }

  get key() {
    return sessionStorage.getItem(KEY);
  }

  set key(value) {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  }

  get(path, signal) {
    return this.#json(path, { signal });
  }

  post(path, body, signal) {
    return this.#json(path, { method: "POST", body: JSON.stringify(body), signal });
  }

  /** The response's headers, then the stream's documents as an async generator; ends only after `[DONE]`. */
  async stream(path, body, signal) {
    const response = await this.#fetch(path, { method: "POST", body: JSON.stringify(body), signal });
    return { headers: response.headers, documents: documents(response, signal) };
  }

  async #json(path, options) {
    const response = await this.#fetch(path, options);
    try {
      return await response.json();
    } catch (error) {
      throw reworded(error, options.signal, "the answer could not be read");
    }
  }

  async #fetch(path, options) {
    const headers = options.body ? { "content-type": "application/json" } : {};
    if (this.key) headers.authorization = `Bearer ${this.key}`;
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit", redirect: "error" });
    } catch (error) {
      throw reworded(error, options.signal, "the platform can’t be reached", 0);
    }
    if (response.ok) return response;
    const failure = await failureOf(response);
    if (response.status === 401) this.refused(failure);
    throw failure;
  }
}

async function failureOf(response) {
  const retryAfter = Number(response.headers.get("retry-after")) || null;
  try {
    const { error } = await response.json();
    return new ApiError(response.status, String(error.message), error.code, retryAfter);
  } catch {
    return new ApiError(response.status, `the platform answered ${response.status}`, null, retryAfter);
  }
}

async function* documents(response, signal) {
  try {
    for await (const { event, data } of events(response.body)) {
      if (data === "[DONE]") return;
      const document = JSON.parse(data);
      if (event === "error" || document.error) {
        throw new ApiError(-1, document.error?.message ?? "the answer broke off", document.error?.code);
      }
      yield document;
    }
  } catch (error) {
    throw reworded(error, signal, "the connection broke; what came so far is incomplete");
  }
  throw new ApiError(-1, "the answer broke off; what came so far is incomplete");
}

/** The events of a text/event-stream body. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const found = parsed(block);
        if (found.data) yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it may be broken already
  }
}

function parsed(block) {
  let event = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (field === "event") event = value;
    if (field === "data") data.push(value);
  }
  return { event, data: data.join("\n") };
}

/** Errors of our own and of cancelling stay what they are. */
function reworded(error, signal, message, status = -1) {
  return error instanceof ApiError || signal?.aborted ? error : new ApiError(status, message);
}
