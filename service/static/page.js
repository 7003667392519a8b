// The page: judges images and shows the verdicts with their evidence. It sends requests to this service only, and sets
// strings from files and from the store as text, never as markup.
"use strict";

const AT_ONCE = 4; // concurrent requests; the service batches them
const OPEN_MOST = 3; // answers of one lot that are shown with their evidence unfolded
const PATIENCE = 30; // retries of a request to a busy service
const GONE = 3; // seconds until a service that does not answer is tried again
const UNREADY = 5; // seconds until a store that cannot judge is checked again
const STRONGEST = Math.log(100); // log-likelihood ratio at the ends of the bars
const STRONGEST_PATCH = Math.log(20); // log-odds of a patch at the ends of its scale
const PARTS_OF_IMAGE = [
  ...["upper left", "top", "upper right"],
  ...["left", "middle", "right"],
  ...["lower left", "bottom", "lower right"],
];
const PARTS_ALIKE = 0.5; // log-odds by which the means of parts of an image must differ for one to be named
const ALIKE = 30; // rows of the map that are counted around an image
const TOKEN = "clipfake-token";
const STOPPED = "Stopped before it was judged.";
const WORDS = { real: "Real", fake: "Fake", unsure: "Unsure", refused: "Not judged", waiting: "Waiting …" };

const $ = (id) => document.getElementById(id);

// ---- making elements ----

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function shapeIcon(kind) {
  const space = "http://www.w3.org/2000/svg";
  const made = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#shape-${kind}`);
  made.setAttribute("class", `shape ${kind}`);
  made.setAttribute("aria-hidden", "true");
  made.append(use);
  return made;
}

function cloneTemplate(template) {
  return $(template).content.cloneNode(true);
}

/** A text with its backticked parts as <code>. */
function withCode(words) {
  return words.split("`").map((part, i) => (i % 2 ? make("code", { textContent: part }) : part));
}

/** An <img> of a blob; its object URL is revoked as soon as it has loaded. */
function image(blob, alt, unshown, loading = "eager") {
  const made = make("img", { alt, loading, decoding: "async" });
  const address = URL.createObjectURL(blob);
  const release = () => URL.revokeObjectURL(address);
  made.addEventListener("load", release, { once: true });
  const replace = () => {
    release();
    made.replaceWith(make("span", { textContent: unshown }));
  };
  made.addEventListener("error", replace, { once: true });
  made.src = address;
  return made;
}

/** A name with line break opportunities after its separators. */
function breakable(name) {
  return name.split(/(?<=[_\-/])/).flatMap((part) => [part, make("wbr")]);
}

// ---- names of unknown origin, as in core/escaping.py ----

const SHORT = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

/** A text with the characters escaped that are not seen, such as those that reverse the order of what follows. */
function escapeUnseen(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (character) => {
    const code = character.codePointAt(0).toString(16);
    const long = code.length > 4 ? `\\U${code.padStart(8, "0")}` : `\\u${code.padStart(4, "0")}`;
    return SHORT[character] ?? (code.length > 2 ? long : `\\x${code.padStart(2, "0")}`);
  });
}

/** A value with each text in it escaped. */
function escapeAll(value) {
  if (typeof value === "string") return escapeUnseen(value);
  if (Array.isArray(value)) return value.map(escapeAll);
  if (!value || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, escapeAll(part)]));
}

// ---- numbers and verdicts in words, as in show/phrasing.py ----

const count = (number) => number.toLocaleString("en-US");
const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
const signed = (number) => `${number < 0 ? "−" : "+"}${Math.abs(number).toFixed(2)}`;

/** A percentage that never claims certainty. */
function percent(share) {
  if (share < 0.001) return "< 0.1%";
  if (share > 0.999) return "> 99.9%";
  const value = 100 * share;
  return `${value < 1 || value > 99 ? value.toFixed(1) : Math.round(value)}%`;
}

/** A log-likelihood ratio in words. */
function describeRatio(score) {
  const times = Math.exp(Math.abs(score));
  if (times < 1.1) return "says next to nothing";
  const factor = times >= 1000 ? "> 1,000" : times >= 10 ? count(Math.round(times)) : times.toFixed(1);
  return `${factor}× likelier if ${score > 0 ? "fake" : "real"}`;
}

/** True if confirmed copies of known labels decided the answer. */
const isSettled = (answer) => answer.stored.some((row) => row.match !== "vector" && row.label !== "unknown");

function describeVerdict(answer) {
  if (isSettled(answer)) return sentence(escapeUnseen(answer.reasons[0]));
  const rate = percent(answer.error_rate);
  if (answer.verdict === "unsure") {
    if (answer.possible.length === 2) return "The evidence is not sufficient: neither real nor fake can be ruled out.";
    return "It is too different from the known images, real and fake, for an answer.";
  }
  const other = answer.verdict === "fake" ? "real" : "fake";
  const promise = `Of ${other} images like the known ones, at most ${rate} are called ${answer.verdict}.`;
  return answer.notice ? `${promise} ${answer.notice}` : promise;
}

function describeFamiliarity(percentile) {
  const rank = percentile < 1 ? "fewer than 1" : percentile > 99 ? "more than 99" : Math.round(percentile);
  const text = `It is nearer to a known image than ${rank} of 100 known images are to their nearest.`;
  if (percentile < 1) return `${text} Nothing like it is known; do not rely on a score.`;
  if (percentile < 10) return `${text} Little like it is known; read the answer with care.`;
  if (percentile > 99) return `${text} It is unusually close, perhaps a variant of a known one.`;
  const most = percentile < 33 ? "less familiar than most" : percentile < 67 ? "usual" : "more familiar than most";
  return `${text} That is ${most}.`;
}

function describeGenerator(answer) {
  if (isSettled(answer) && answer.generator !== "unknown") return `${answer.generator}: its copies are stored so.`;
  if (!answer.generator || answer.generator === "unknown") {
    return "An unknown generator: its nearest fakes do not agree on one, or none of them is near enough.";
  }
  return `Probably ${answer.generator}: most of its nearest fakes are from there.`;
}

// ---- requests ----

/** A problem or a failure; status 0 if there was no response. */
class Trouble extends Error {
  constructor(message, status, after = 0, kind = "") {
    super(escapeUnseen(message));
    this.status = status;
    this.after = after; // seconds until a retry, 0 for none
    this.kind = kind; // as docs/SERVICE.md lists them
  }
}

/** Send one request and read its response; throws Trouble with the service's message if it fails. */
async function request(path, options = {}, read = (response) => response.json()) {
  const token = sessionStorage.getItem(TOKEN);
  let response;
  try {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    response = await fetch(path, { ...options, headers });
    if (response.ok) return await read(response); // inside the try block: the connection may break while the body is read
  } catch (e) {
    if (e.name === "AbortError" || e instanceof SyntaxError) throw e;
    throw new Trouble("The service does not answer. Is it still running?", 0, GONE);
  }
  const problem = await response.json().catch(() => ({}));
  const message = problem.detail || problem.title || `the service answered ${response.status}`;
  if (response.status === 401) forget(token);
  const kind = (problem.type ?? "").split(":").at(-1);
  throw new Trouble(message, response.status, Number(response.headers.get("Retry-After")) || 0, kind);
}

/** Send a request until it succeeds or is refused: retry while the service is busy or gone, and request a token. */
async function requestWithRetry(path, options, read) {
  const asker = Symbol(path);
  try {
    for (let busy = 0; ; ) {
      try {
        return await request(path, options, read);
      } catch (e) {
        if (!(e instanceof Trouble)) throw e;
        if (e.status === 401) {
          await requestToken();
        } else if (e.after && (e.status === 0 || ([503, 504].includes(e.status) && ++busy <= PATIENCE))) {
          const why = e.message.replace(/; try again.*/, "");
          const own = e.status === 0 || e.kind.startsWith("engine");
          const what = own ? sentence(why) : `The service is busy: ${why}.`;
          showTrouble(`${what} Trying again in ${plural(e.after, "second")} …`, asker);
          await delay(e.after, options?.signal);
        } else {
          throw e;
        }
      }
    }
  } finally {
    showTrouble("", asker);
  }
}

function delay(seconds, signal) {
  return new Promise((done, stopped) => {
    const stop = () => {
      clearTimeout(timer);
      stopped(new DOMException("stopped", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      done();
    }, 1000 * seconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

const troubles = new Map(); // message by origin; the latest is shown

function showTrouble(message, by = "page") {
  troubles.delete(by);
  if (message) troubles.set(by, message);
  const latest = [...troubles.values()].at(-1) ?? "";
  if ($("trouble-text").textContent !== latest) $("trouble-text").textContent = latest;
  $("trouble").hidden = !latest;
}

// ---- the token ----

let tokenAsked = null; // one dialog for all requests that need the token

function requestToken() {
  if (sessionStorage.getItem(TOKEN)) return Promise.resolve(); // another request has got it meanwhile
  tokenAsked ??= new Promise((given, refused) => {
    const dialog = $("token-dialog");
    const close = () => {
      tokenAsked = null;
      dialog.close();
    };
    $("token-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(TOKEN, $("token").value.trim());
      $("forget-token").hidden = false;
      $("token-form").reset();
      close();
      given();
    };
    $("token-cancel").onclick = dialog.oncancel = (event) => {
      event.preventDefault();
      close();
      refused(new Trouble("The service requires a token, and none was entered.", 401));
    };
    dialog.showModal();
    $("token").focus();
  });
  return tokenAsked;
}

/** Drop a token that was not accepted, unless another one has been entered meanwhile. */
function forget(token) {
  $("token-wrong").hidden = !token;
  if (token && sessionStorage.getItem(TOKEN) === token) sessionStorage.removeItem(TOKEN);
  $("forget-token").hidden = !sessionStorage.getItem(TOKEN);
}

// ---- the store ----

let nextLook; // a timer
let limits = { image_bytes: Infinity };
let maps = {}; // number of a snapshot -> promise of its map
const pictures = new Map(); // key of a row -> promise of its thumbnail

async function loadStore() {
  clearTimeout(nextLook);
  let store;
  try {
    store = escapeAll(await requestWithRetry("/v1/store"));
  } catch (e) {
    $("bank-line").textContent = e.message;
    const again = { type: "button", className: "quiet", textContent: "Try again", onclick: loadStore };
    $("bank-line").append(" ", make("button", again));
    return;
  }
  limits = store.limits;
  $("notice").hidden = !store.notice;
  $("notice-text").textContent = store.notice;
  $("bank-line").textContent = store.rows
    ? `${plural(store.rows, "known image")}: ${count(store.labels.real)} real, ${count(store.labels.fake)} fake`
    : "No images are known yet";
  $("bank").hidden = !store.rows;
  $("bank-encoder").textContent = `${store.space.encoder}, ${store.space.dim} dimensions`;
  $("bank-rows").replaceChildren(...store.sources.map(sourceRow));
  $("unready").hidden = store.ready;
  const empty = "It holds no images. Index real and fake ones with `clipfake index`, then run `clipfake train`.";
  const why = store.rows ? sentence(store.why) : empty;
  const shown = $("unready-why");
  if (shown.dataset.why !== why) shown.replaceChildren(...withCode(why)); // otherwise a screen reader would repeat it every few seconds
  shown.dataset.why = why;
  $("choose").disabled = !store.ready;
  $("drop").classList.toggle("off", !store.ready);
  if (!store.ready) nextLook = setTimeout(loadStore, 1000 * UNREADY);
}

function sourceRow(source) {
  const cells = [source.real, source.fake, source.unknown];
  return make(
    "tr",
    {},
    make("th", { scope: "row", textContent: source.name }),
    ...cells.map((rows) => make("td", { className: "number", textContent: rows ? count(rows) : "–" })),
  );
}

/** The thumbnail of a row as a blob; an <img> could not send the token. */
function loadThumbnail(key) {
  if (!pictures.has(key)) {
    const path = key.split("/").map(encodeURIComponent).join("/");
    const asked = requestWithRetry(`/v1/thumbnails/${path}`, {}, (response) => response.blob());
    asked.catch(() => pictures.delete(key));
    pictures.set(key, asked);
  }
  return pictures.get(key);
}

function loadMap(snapshot) {
  if (!maps[snapshot]) {
    maps = { [snapshot]: requestWithRetry("/v1/map") };
    maps[snapshot].catch(() => delete maps[snapshot]);
  }
  return maps[snapshot];
}

// ---- queried images ----

const cases = []; // as shown, newest lot first
let waiting = []; // cases that are not being judged yet
let working = 0;
let lot = []; // the cases that were added last, together

/** One image, its answer, and its card. */
class Case {
  constructor(file, name) {
    this.file = file;
    this.name = name;
    this.shownName = escapeUnseen(name);
    this.state = "waiting"; // or a verdict, or "refused"
    this.answer = null;
    this.place = null;
    this.snapshot = null;
    this.stopper = new AbortController();
    this.card = cloneTemplate("card-template").firstElementChild;
    this.card.setAttribute("aria-label", this.shownName);
    this.find(".name").textContent = this.shownName;
    this.find(".preview").append(image(file, `Preview of ${this.shownName}`, "no preview", "lazy"));
    this.find(".toggle").onclick = () => this.unfold(this.find(".evidence").hidden);
    this.find(".retry").onclick = () => judge([this]);
    this.find(".remove").onclick = () => removeCase(this);
    this.find(".remove").setAttribute("aria-label", `Remove ${this.shownName}`);
    this.show("waiting", "");
  }

  find(selector) {
    return this.card.querySelector(selector);
  }

  show(state, message) {
    this.state = state;
    this.card.dataset.state = state;
    this.card.setAttribute("aria-busy", state === "waiting");
    this.find(".verdict use").setAttribute("href", `#shape-${state}`);
    this.find(".word").textContent = WORDS[state];
    this.find(".meaning").replaceChildren(...withCode(message));
    this.find(".by").textContent = "";
    for (const part of [".known", ".chance", ".toggle", ".retry", ".evidence"]) this.find(part).hidden = true;
  }

  refuse(error) {
    this.answer = { image: this.name, error: error.message };
    this.show("refused", sentence(error.message));
    const final = error.status >= 400 && error.status < 500; // a retry would give the same answer
    this.find(".retry").hidden = final && ![401, 408, 409].includes(error.status);
  }

  judged(answer, place, snapshot) {
    Object.assign(this, { answer, place, snapshot });
    const { generator, copy } = escapeAll(answer);
    this.show(answer.verdict, describeVerdict(answer));
    if (generator) {
      const by = isSettled(answer) ? "stored as made by" : "probably made by";
      this.find(".by").textContent = generator === "unknown" ? "by an unknown generator" : `${by} ${generator}`;
    }
    this.find(".known").hidden = !copy;
    this.find(".known").textContent = copy && sentence(copy);
    if (isSettled(answer)) this.find(".meaning").textContent += " The score and the evidence are without the copies.";
    this.find(".chance").hidden = false;
    this.find(".chance strong").textContent = percent(answer.probability);
    this.find(".chance-mark").style.left = `${100 * answer.probability}%`;
    this.find(".chance-prior").textContent = `${isSettled(answer) ? "by its signals alone, " : ""}if ${percent(answer.prior)} of the queried images are fake`;
    this.find(".toggle").hidden = false;
    this.find(".evidence").replaceChildren();
  }

  unfold(open) {
    const evidence = this.find(".evidence");
    if (open && !evidence.hasChildNodes()) showEvidence(this, evidence);
    evidence.hidden = !open;
    this.find(".toggle").setAttribute("aria-expanded", open);
    this.find(".toggle").textContent = open ? "Hide the evidence" : "Show the evidence";
  }

  /** The card in words, for screen readers. */
  summary() {
    if (this.state === "refused") return `${this.shownName}: not judged. ${this.answer.error}`;
    const likely = `${percent(this.answer.probability)} likely fake`;
    const copy = this.answer.copy && `${sentence(escapeUnseen(this.answer.copy))} `;
    return `${this.shownName}: ${copy}${WORDS[this.state]}, ${likely}. ${describeVerdict(this.answer)}`;
  }
}

const sentence = (words) => words.charAt(0).toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) ? "" : ".");

/** Take files in and judge them. */
function addFiles(files) {
  if ($("choose").disabled || !files.length) return;
  showTrouble(describeInvalidFields());
  lot = files.map((file, i) => new Case(file, file.webkitRelativePath || file.name || `pasted image ${i + 1}`));
  cases.unshift(...lot);
  $("cards").prepend(...lot.map((one) => one.card));
  document.body.classList.add("answered");
  judge(lot);
  // scroll up if the files were dropped or pasted far below
  if ($("results").getBoundingClientRect().top < 0) $("results").scrollIntoView();
}

function judge(some) {
  lot = some;
  maps = {}; // a retrained head has another map of the same rows
  for (const one of some) {
    one.stopper = new AbortController();
    one.show("waiting", "");
  }
  waiting.push(...some);
  summarise();
  announce(some.length === 1 ? `Judging ${some[0].shownName}` : `Judging ${plural(some.length, "image")}`);
  while (working < Math.min(AT_ONCE, working + waiting.length)) work();
}

async function work() {
  working += 1;
  for (let one = waiting.shift(); one; one = waiting.shift()) {
    try {
      await judgeOne(one, one.stopper.signal);
    } catch (e) {
      const stopped = e.name === "AbortError";
      one.refuse(stopped ? new Trouble(STOPPED, 0) : e);
      if (!stopped && !(e instanceof Trouble)) console.error(e);
      if (e.status === 401) for (const other of waiting.splice(0)) other.refuse(e);
      if (e.status === 409) loadStore();
    }
    summarise();
  }
  working -= 1;
  if (!working) announceResults();
}

async function judgeOne(one, signal) {
  if (one.file.size > limits.image_bytes) {
    const message = `${count(one.file.size)} bytes are more than the ${count(limits.image_bytes)} allowed for an image`;
    throw new Trouble(`${message}; send a smaller file`, 413);
  }
  one.find(".word").textContent = "Judging …";
  let content;
  try {
    content = await one.file.arrayBuffer(); // read it first, because an unreadable file would look like a missing service
  } catch {
    throw new Trouble("this file cannot be read; it may have been moved, or it is a folder", 422);
  }
  const body = new FormData();
  body.append("images", new Blob([content], { type: one.file.type }), one.name);
  const question = new URLSearchParams({ map: "true", prior: share("prior"), error: share("error") });
  const { answers, places, snapshot } = await requestWithRetry(`/v1/query?${question}`, { method: "POST", body, signal });
  if (answers[0].error) throw new Trouble(answers[0].error, 422);
  one.judged(answers[0], places?.[0], snapshot);
  if (lot.length <= OPEN_MOST && lot.includes(one)) one.unfold(true);
}

const isValid = (field) => field.checkValidity() && field.value !== "";

/** A field in per cent as a share; an invalid field counts as its default. */
function share(id) {
  const field = $(id);
  return Number(isValid(field) ? field.value : field.defaultValue) / 100;
}

/** A message on each invalid assumption and the default that replaces it; "" if all are valid. */
function describeInvalidFields() {
  return ["prior", "error"]
    .map($)
    .filter((field) => !isValid(field))
    .map(({ labels, min, max, defaultValue }) => {
      return `“${labels[0].textContent}” must be ${min} to ${max}%; ${defaultValue}% is used instead.`;
    })
    .join(" ");
}

function announceResults() {
  if (!lot.length) return; // all were removed
  const each = lot.length <= OPEN_MOST ? lot.map((one) => one.summary()) : [];
  announce([...(lot.length > 1 ? [`${$("summary").textContent}.`] : []), ...each].join(" "));
  const alone = lot.length === 1 ? lot[0] : null;
  // keep the focus if the user has moved it meanwhile
  if ([document.body, $("choose"), null].includes(document.activeElement) && cases.length) {
    (alone ? alone.card : $("summary")).focus({ preventScroll: true });
    (alone ? alone.card : $("results")).scrollIntoView({ block: "nearest" });
  }
}

function summarise() {
  const of = (state) => cases.filter((one) => one.state === state).length;
  const left = of("waiting");
  const counts = [
    [of("fake"), "fake"],
    [of("real"), "real"],
    [of("unsure"), "unsure"],
    [of("refused"), "not judged"],
  ].filter(([number]) => number);
  const tally = counts.map(([number, word]) => `${count(number)} ${word}`).join(", ");
  const done = cases.length - left;
  const all = plural(cases.length, "image");
  const ended = cases.length > 1 ? `${all}: ${tally}` : all;
  $("summary").textContent = left ? `Judging: ${count(done)} of ${all} done` : ended;
  $("results").hidden = !cases.length;
  document.body.classList.toggle("answered", cases.length > 0);
  $("stop").hidden = $("progress").hidden = !left;
  $("progress").max = cases.length || 1;
  $("progress").value = done;
  $("save").hidden = done === 0 || left > 0;
  $("judge-again").hidden = !cases.length || left > 0;
}

function announce(words) {
  $("said").textContent = words;
}

function removeCase(one) {
  const next = cases[cases.indexOf(one) + 1] ?? cases[cases.indexOf(one) - 1];
  cases.splice(cases.indexOf(one), 1);
  waiting = waiting.filter((other) => other !== one);
  lot = lot.filter((other) => other !== one);
  one.stopper.abort();
  one.card.remove();
  summarise();
  announce(`Removed ${one.shownName}`);
  (next ? next.find(".remove") : $("choose")).focus();
}

function stop() {
  for (const one of waiting.splice(0)) one.refuse(new Trouble(STOPPED, 0));
  for (const one of cases) one.stopper.abort();
  summarise();
  $("summary").focus();
}

function clear() {
  stop();
  for (const one of cases.splice(0)) one.card.remove();
  lot = [];
  pictures.clear();
  summarise();
  announce("Cleared");
  $("choose").focus();
}

/** All answers as JSON Lines, as `clipfake query --json` prints them. */
function save() {
  const lines = cases.map((one) => `${JSON.stringify(one.answer)}\n`);
  const address = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  make("a", { href: address, download: "clipfake-answers.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

// ---- evidence ----

function showEvidence(one, room) {
  room.append(cloneTemplate("evidence-template"));
  const answer = escapeAll(one.answer);
  const find = (selector) => room.querySelector(selector);
  find(".reasons").append(...answer.reasons.map((why) => make("li", { textContent: sentence(why) })));
  showSignals(answer, find(".bars"), find(".agree"));
  showNeighbors(one, find);
  find(".ruler-mark").style.left = `${Math.min(100, Math.max(0, answer.percentile))}%`;
  find(".likeness p").textContent = describeFamiliarity(answer.percentile);
  find(".made").hidden = answer.verdict !== "fake"; // other verdicts have no generator
  find(".maker").textContent = describeGenerator(answer);
  showChanges(answer, find(".change"));
  showWhere(one, answer, find(".where"));
  showMap(one, find(".map"));
}

function showSignals(answer, bars, agree) {
  const rows = [
    ["Classifier", answer.signals.svm, ""],
    ["Neighbours", answer.signals.neighbors, ""],
    ...(answer.signals.added == null ? [] : [["Added examples", answer.signals.added, ""]]),
    ["Score", answer.score, "whole"],
  ];
  const ends = ["100× real", "10×", "even", "10×", "100× fake"].map((textContent) => make("span", { textContent }));
  bars.append(
    ...rows.map(([name, score, kind]) => {
      const bar = make("span", { className: `bar ${score < 0 ? "to-real" : "to-fake"}` });
      bar.style.width = `${50 * Math.min(1, Math.abs(score) / STRONGEST)}%`;
      const track = make("span", { className: "bar-track" }, bar);
      track.setAttribute("aria-hidden", "true");
      const number = make("b", { textContent: signed(score) });
      const words = make("span", { className: "bar-words" }, number, ` ${describeRatio(score)}`);
      return make("div", { className: `bar-row ${kind}` }, make("span", { textContent: name }), track, words);
    }),
    make("div", { className: "bar-row bar-axis", ariaHidden: "true" }, make("span", {}, ...ends)),
  );
  agree.classList.toggle("conflict", answer.conflict);
  const { svm, neighbors } = answer.signals;
  agree.textContent = answer.conflict
    ? "They disagree clearly: one points to real, the other to fake. Look at the images."
    : svm * neighbors < 0
      ? "They point in different directions, but weakly."
      : "They point in the same direction.";
}

function neighborFrame(neighbor, kind) {
  const frame = make("div", { className: "frame" });
  const alt = escapeUnseen(`Known ${kind} image ${fileName(neighbor)} from ${neighbor.source}, similarity ${near(neighbor)}`);
  loadThumbnail(neighbor.key).then(
    (blob) => frame.append(image(blob, alt, "cannot be shown")),
    (e) => frame.append(make("span", { textContent: e.status === 404 ? "no image stored" : "cannot be loaded" })),
  );
  return frame;
}

const near = (neighbor) => neighbor.similarity.toFixed(3);
const fileName = (neighbor) => neighbor.key.split("/").at(-1);

function showNeighbors(one, find) {
  find(".asked .frame").append(image(one.file, `The queried image, ${one.shownName}`, "no preview"));
  for (const kind of ["real", "fake"]) {
    const [nearest, ...further] = one.answer.neighbors[kind];
    if (!nearest) {
      find(`.nearest-${kind}`).textContent = `No ${kind} image is known.`;
      continue;
    }
    const about = [
      `similarity ${near(nearest)}`,
      `from ${nearest.source}`,
      nearest.generator && nearest.generator !== nearest.source ? `made by ${nearest.generator}` : "",
      nearest.category ? `category ${nearest.category}` : "",
      fileName(nearest),
    ].filter(Boolean);
    const words = about.map((text) => make("span", { textContent: escapeUnseen(text) }));
    words.unshift(make("strong", { textContent: `Nearest ${kind}` }));
    find(`.nearest-${kind}`).append(make("figure", {}, neighborFrame(nearest, kind), make("figcaption", {}, ...words)));
    find(`.strip-${kind}`).append(
      ...further.map((neighbor) => {
        const caption = make("figcaption", {}, make("b", { textContent: near(neighbor) }), ...breakable(escapeUnseen(neighbor.source)));
        return make("li", { title: escapeUnseen(neighbor.key) }, make("figure", {}, neighborFrame(neighbor, kind), caption));
      }),
    );
    find(`.strip-${kind}`).parentElement.hidden = !further.length;
  }
}

function showChanges(answer, section) {
  const changes = [...answer.changes, ...(answer.views ?? []).filter((view) => view.verdict !== answer.verdict)];
  const lines = changes.map(({ what, verdict, score }) => {
    const textContent = sentence(`${what}, it would be ${verdict} (${signed(score)})`);
    return make("li", {}, shapeIcon(verdict), make("span", { textContent }));
  });
  const none = "None of the tested changes, such as leaving out the images of one source.";
  section.querySelector(".changes").append(...(lines.length ? lines : [make("li", { textContent: none })]));
}

// ---- where in the image ----

function showWhere(one, answer, section) {
  const map = answer.map;
  section.hidden = !map;
  if (!map) return;
  section.querySelector(".where-note").textContent = map.note;
  if (!map.values.length) {
    for (const part of [".where-picture", ".where-scale", ".where-words"]) section.querySelector(part).hidden = true;
    return;
  }
  const words = sentence(describePatches(map));
  section.querySelector(".where-words").textContent = words;
  const picture = section.querySelector(".where-picture");
  picture.setAttribute("aria-label", `Map of the patches of ${one.shownName}. ${words}`);
  picture.append(image(one.file, "", "no preview"), drawPatches(map));
}

const SPACE = "http://www.w3.org/2000/svg";

/** An <svg> of one square a patch over the part that the patches cover; the strong ones have the sign of their class. */
function drawPatches(map) {
  const draw = (name, attributes) => {
    const element = document.createElementNS(SPACE, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const [left, top, right, bottom] = map.area.map((edge) => 100 * edge);
  const box = { viewBox: `0 0 ${map.columns} ${map.rows}`, preserveAspectRatio: "none" };
  const svg = draw("svg", { ...box, class: "patches", "aria-hidden": "true" });
  svg.style.cssText = `left: ${left}%; top: ${top}%; width: ${right - left}%; height: ${bottom - top}%`;
  map.values.forEach((row, y) =>
    row.forEach((value, x) => {
      const strength = Math.min(1, Math.abs(value) / STRONGEST_PATCH);
      const kind = value > 0 ? "fake" : "real";
      svg.append(draw("rect", { x, y, width: 1, height: 1, class: kind, "fill-opacity": (0.6 * strength).toFixed(3) }));
      if (strength < 0.5) return;
      const place = { x: x + 0.4, y: y + 0.4, width: 0.2, height: 0.2 };
      svg.append(draw("use", { ...place, href: `#shape-${kind}`, class: "sign" }));
    }),
  );
  return svg;
}

/** The map in words: how many patches lean fake, and which part most and least. */
function describePatches(map) {
  const third = (position, length) => Math.floor((3 * (2 * position + 1)) / (2 * length));
  const parts = new Map();
  map.values.forEach((row, y) =>
    row.forEach((value, x) => {
      const name = PARTS_OF_IMAGE[3 * third(y, map.rows) + third(x, map.columns)];
      parts.set(name, [...(parts.get(name) ?? []), value]);
    }),
  );
  const values = map.values.flat();
  const leaning = `${values.filter((value) => value > 0).length} of ${values.length} patches lean fake`;
  const means = [...parts].map(([name, part]) => [part.reduce((sum, value) => sum + value, 0) / part.length, name]);
  const most = means.reduce((best, mean) => (mean[0] > best[0] ? mean : best));
  const least = means.reduce((best, mean) => (mean[0] < best[0] ? mean : best));
  if (most[0] - least[0] < PARTS_ALIKE) return `${leaning}, all parts about alike`;
  return `${leaning}, the ${most[1]} most of all and the ${least[1]} least`;
}

// ---- the map ----

async function showMap(one, section) {
  const words = section.querySelector(".map-words");
  const canvas = section.querySelector("canvas");
  const without = (message) => {
    canvas.hidden = section.querySelector(".legend").hidden = true;
    words.textContent = message;
  };
  if (!one.place) {
    without("This image has no place on the map.");
    return;
  }
  words.textContent = "Drawing …";
  let map;
  try {
    map = escapeAll(await loadMap(one.snapshot));
  } catch (e) {
    without(sentence(e.message));
    return;
  }
  words.textContent = describeMap(map, one.place);
  canvas.setAttribute("aria-label", `Map of ${count(map.points.length)} known images. ${words.textContent}`);
  drawings.set(canvas, () => drawMap(canvas, map, one.place));
  resized.observe(canvas); // also draws it for the first time
}

const drawings = new WeakMap(); // draw function by canvas
const resized = new ResizeObserver((found) => found.forEach(({ target }) => drawings.get(target)()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const canvas of document.querySelectorAll("canvas")) drawings.get(canvas)?.();
});

/** The map in words, and how much of the variance it shows. */
function describeMap(map, [x, y]) {
  const order = map.points.map(([px, py], i) => [(px - x) ** 2 + (py - y) ** 2, i]).sort((a, b) => a[0] - b[0]);
  const near = order.slice(0, ALIKE).map(([, i]) => i);
  const fakes = near.filter((i) => map.labels[i] === 1).length;
  const sources = new Map();
  for (const i of near) sources.set(map.names[map.sources[i]], (sources.get(map.names[map.sources[i]]) ?? 0) + 1);
  const [[most, rows]] = [...sources].sort((a, b) => b[1] - a[1]);
  const shown = map.explained[0] + map.explained[1];
  return (
    `Of the ${near.length} known images around it here, ${fakes} are fake and ${near.length - fakes} real; ` +
    `${rows} are from ${most}. Two axes show ${percent(shown)} of how the images differ, so this is a sketch.`
  );
}

function drawMap(canvas, map, place) {
  const ratio = window.devicePixelRatio || 1;
  const { width, height } = canvas.getBoundingClientRect();
  if (!width) return;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const colour = (name) => getComputedStyle(canvas).getPropertyValue(name).trim();
  const margin = 18;
  const [xs, ys] = [0, 1].map((axis) => [...map.points.map((point) => point[axis]), place[axis]]);
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  // one scale for both axes, so that distances are comparable in all directions
  const scale = Math.min((width - 2 * margin) / (right - left || 1), (height - 2 * margin) / (high - low || 1));
  const at = ([x, y]) => [width / 2 + scale * (x - (left + right) / 2), height / 2 - scale * (y - (low + high) / 2)];
  const size = width < 420 ? 2.1 : 2.7;
  const fills = [colour("--real-fill"), colour("--fake-fill")];
  pen.globalAlpha = 0.62;
  // shuffled, so that neither class covers the other
  const order = map.points.map((_, i) => i).sort((a, b) => ((a * 7919) % 1009) - ((b * 7919) % 1009));
  for (const i of order) {
    const [x, y] = at(map.points[i]);
    pen.fillStyle = fills[map.labels[i]];
    pen.beginPath();
    if (map.labels[i]) {
      pen.moveTo(x, y - 1.35 * size);
      pen.lineTo(x + 1.25 * size, y + 0.9 * size);
      pen.lineTo(x - 1.25 * size, y + 0.9 * size);
    } else {
      pen.arc(x, y, size, 0, 2 * Math.PI);
    }
    pen.fill();
  }
  pen.globalAlpha = 1;
  const [x, y] = at(place);
  for (const [style, wide] of [[colour("--sheet"), 6.5], [colour("--ink"), 2.8]]) {
    pen.strokeStyle = style;
    pen.lineWidth = wide;
    pen.beginPath();
    pen.arc(x, y, 9, 0, 2 * Math.PI);
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      pen.moveTo(x + 9 * dx, y + 9 * dy);
      pen.lineTo(x + 16 * dx, y + 16 * dy);
    }
    pen.stroke();
  }
  canvas.dataset.drawn = map.points.length;
}

// ---- events ----

/** The dropped files, and the images in dropped folders. */
async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((one) => one.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const found = [];
  for (const entry of entries) found.push(...(await filesOf(entry)));
  return found.filter((file) => file.type.startsWith("image/"));
}

async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((done, failed) => entry.file(done, failed))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed)); // a hundred at a time
    if (!some.length) return found;
    for (const one of some) found.push(...(await filesOf(one)));
  }
}

function listen() {
  $("choose").onclick = () => $("files").click();
  $("files").onchange = () => {
    addFiles([...$("files").files]);
    $("files").value = ""; // allows choosing the same file again
  };
  let over = 0;
  const isOver = (step) => {
    over = step === 0 ? 0 : Math.max(0, over + step);
    $("drop").classList.toggle("over", over > 0 && !$("choose").disabled);
  };
  document.addEventListener("dragenter", () => isOver(1));
  document.addEventListener("dragleave", () => isOver(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", async (event) => {
    event.preventDefault(); // otherwise the browser opens the file
    isOver(0);
    const files = await droppedFiles(event.dataTransfer).catch(() => []);
    if (files.length) addFiles(files);
    else showTrouble("No image file was dropped. The page fetches nothing from the web: save the image first.");
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) {
      event.preventDefault();
      addFiles(files);
    }
  });
  $("stop").onclick = stop;
  $("clear").onclick = clear;
  $("save").onclick = save;
  $("judge-again").onclick = () => {
    if (!$("prior").reportValidity() || !$("error").reportValidity()) return;
    showTrouble(describeInvalidFields());
    judge([...cases]);
  };
  $("look-again").onclick = loadStore;
  $("forget-token").onclick = () => {
    sessionStorage.removeItem(TOKEN);
    location.reload();
  };
  $("forget-token").hidden = !sessionStorage.getItem(TOKEN);
}

listen();
loadStore();
