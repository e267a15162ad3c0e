// The page put together: the key, the theme, what the platform has, and which part is notified of which event.

import { Api, ApiError } from "./api.js";
import { Budget } from "./budget.js";
import { Catalog } from "./catalog.js";
import { Chat } from "./chat.js";
import { Decision } from "./decision.js";
import { byId, el } from "./dom.js";
import { Timings } from "./timings.js";

const REFRESH_MS = 5000;
const THEMES = { "": "Theme: system", light: "Theme: light", dark: "Theme: dark" };

const api = new Api((error) => askForKey(error));
const budget = new Budget();
const catalog = new Catalog(api);
const indexOf = (variant) => catalog.indexOf(variant);
const timings = new Timings(indexOf);
const decision = new Decision(api, () => ({ ...request(), messages: chat.messages }), indexOf);
const chat = new Chat(api, {
  ready: async () => {
    if (model === null) await begin(); // which asks for what is missing
    return model !== null;
  },
  request,
  answered: (gearbox) => timings.add(gearbox),
  changed: () => changed(),
  indexOf,
});
let model = null; // its name; null until the platform said it

function request() {
  const retrieval = byId("grounded").checked ? grounding() : alwaysGrounded ? false : undefined;
  return { ...budget.request(model), retrieval };
}

function grounding() {
  const collection = byId("collection").value.trim();
  return collection ? { collection } : true;
}

function changed() {
  if (model !== null) decision.changed();
}

// ---------------------------------------------------------------------------------------------------------------- start

/** Learn what the platform has, with the key there is. Returns what was in the way, else null. */
async function begin() {
  const notice = byId("notice");
  notice.hidden = true;
  let found;
  try {
    found = (await api.get("v1/models")).data;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status !== 401) {
      const retry = el("button", { type: "button" }, "Retry");
      retry.addEventListener("click", begin);
      notice.replaceChildren(error.words, " ", retry);
      notice.hidden = false;
    }
    showAccess(error.status === 401);
    return error;
  }
  const { id, gearbox } = found[0];
  model = id;
  byId("model").textContent = id;
  byId("model").hidden = false;
  const named = new Map(found.map((one) => [one.id, one.gearbox]));
  catalog.summaries = new Map(gearbox.variants.map((name) => [name, named.get(`${id}:${name}`)]));
  profiles = new Map(gearbox.profiles.map((name) => [name, named.get(`${id}@${name}`)?.budget]));
  options("profile", [["", api.key ? "the key’s own" : "the default"], ...gearbox.profiles.map((name) => [name, name])]);
  options("pinned", [["", "routed by the budget"], ...gearbox.variants.map((name) => [name, `always ${name}`])]);
  showAccess(false);
  await Promise.all([takeProfile(), catalog.refresh()]);
  return null;
}

let profiles = new Map();
let alwaysGrounded = false; // whether the platform grounds what does not decline

function options(id, choices) {
  const select = byId(id);
  const chosen = select.value;
  select.replaceChildren(...choices.map(([value, text]) => el("option", { value }, text)));
  select.value = choices.some(([value]) => value === chosen) ? chosen : "";
}

/** Set the sliders to the chosen profile; which one is the key's own, only the platform knows. */
async function takeProfile() {
  const { profile } = budget;
  const known = profile ? profiles.get(profile) : await ownBudget();
  if (budget.profile === profile) budget.base = known ?? {};
}

async function ownBudget() {
  const body = { model, messages: [{ role: "user", content: "" }] };
  try {
    const dryRun = await api.post("v1/route", body);
    alwaysGrounded = "retrieval" in dryRun;
    if (alwaysGrounded) showGrounded(true);
    return dryRun.budget;
  } catch (error) {
    if (error.code !== "impossible_budget" && error.code !== "budget_under_load") return {};
  }
  const dryRun = await api.post("v1/route", { ...body, budget: { on_no_candidate: "degrade" } }).catch(() => null);
  return { ...dryRun?.budget, on_no_candidate: "reject" };
}

byId("profile").addEventListener("change", takeProfile);
budget.addEventListener("change", changed);
for (const time of ["ttft", "e2e"]) { // who limits a time sees that time
  byId(`slider-${time}_ms`).addEventListener("input", () => decision.plotTime(time));
}

// --------------------------------------------------------------------------------------------------------------- access

const dialog = byId("key-dialog");

function askForKey(error = null) {
  byId("key-error").textContent = error && error.code !== "missing_api_key" ? error.words : "";
  if (!dialog.open) {
    byId("key").value = "";
    dialog.showModal();
  }
}

function showAccess(needed) {
  const button = byId("key-button");
  button.hidden = false;
  button.textContent = api.key ? "Forget key" : needed ? "Enter key" : "Use a key";
  byId("access").textContent = api.key ? "" : needed ? "a key is needed" : "anonymous access";
}

byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const key = byId("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) {
    byId("key-error").textContent = "A key has only letters, digits and punctuation.";
    return;
  }
  api.key = key;
  const failure = await begin();
  if (failure === null) {
    dialog.close();
    byId("draft").focus();
  } else {
    api.key = null;
    showAccess(true);
    byId("key-error").textContent = failure.words;
    byId("key").select();
  }
});

byId("key-cancel").addEventListener("click", () => dialog.close());

byId("key-button").addEventListener("click", () => {
  if (!api.key) {
    askForKey();
    return;
  }
  api.key = null;
  model = null;
  chat.reset();
  timings.clear();
  catalog.clear();
  begin();
});

// ------------------------------------------------------------------------------------------------------------ documents

function showGrounded(on) {
  byId("grounded").checked = on;
  byId("collection-field").hidden = !on;
}

byId("grounded").addEventListener("change", async () => {
  const help = byId("grounded-help");
  help.textContent = "";
  const on = byId("grounded").checked;
  showGrounded(on);
  if (on) {
    try {
      const { data } = await api.get("v1/documents?limit=1000");
      byId("collections").replaceChildren(...data.map((one) => el("option", { value: one.collection })));
      if (data.length === 0) help.textContent = "There are no documents yet.";
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      help.textContent = error.words;
      showGrounded(error.status !== 400 && error.status !== 404);
    }
  }
  changed();
});
byId("collection").addEventListener("input", changed);

// ---------------------------------------------------------------------------------------------------------------- theme

function showTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = THEMES[theme];
}

byId("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
  localStorage.setItem("gearbox-theme", next);
  showTheme(next);
});

const theme = localStorage.getItem("gearbox-theme");
showTheme(Object.hasOwn(THEMES, theme) ? theme : "");

// ----------------------------------------------------------------------------------------------------------------- live

function refresh() {
  if (document.hidden || model === null || dialog.open) return;
  catalog.refresh();
  changed();
}

setInterval(refresh, REFRESH_MS);
document.addEventListener("visibilitychange", refresh);

begin();
