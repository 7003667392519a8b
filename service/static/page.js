// The page: images in, answers and their evidence out. It talks to this service alone, and whatever comes from a file
// or from the store is set as text, never as markup.
"use strict";

const AT_ONCE = 4; // requests under way; the service gathers them into batches
const OPEN_MOST = 3; // answers shown with their evidence unfolded when they come together
const PATIENCE = 30; // times a busy service is asked again
const GONE = 3; // seconds until a service that does not answer is asked again
const UNREADY = 5; // seconds until a store that cannot answer is looked at again
const STRONGEST = Math.log(100); // log-likelihood ratio at the ends of the bars
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

function shape(kind) {
  const space = "http://www.w3.org/2000/svg";
  const made = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#shape-${kind}`);
  made.setAttribute("class", `shape ${kind}`);
  made.setAttribute("aria-hidden", "true");
  made.append(use);
  return made;
}

function filled(template) {
  return $(template).content.cloneNode(true);
}

/** Words with what stands between backticks as code. */
function coded(words) {
  return words.split("`").map((part, i) => (i % 2 ? make("code", { textContent: part }) : part));
}

/** An <img> of a blob; the address it needs for that is given back as soon as it has loaded. */
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

/** A name that may be broken where its words end. */
function breakable(name) {
  return name.split(/(?<=[_\-/])/).flatMap((part) => [part, make("wbr")]);
}

// ---- numbers in words: in show/words.py they are the same ----

const count = (number) => number.toLocaleString("en-US");
const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
const signed = (number) => `${number < 0 ? "−" : "+"}${Math.abs(number).toFixed(2)}`;

/** Per cent that never claim to be certain. */
function percent(share) {
  if (share < 0.001) return "< 0.1%";
  if (share > 0.999) return "> 99.9%";
  const told = 100 * share;
  return `${told < 1 || told > 99 ? told.toFixed(1) : Math.round(told)}%`;
}

/** A log-likelihood ratio as what it means. */
function likelier(score) {
  const times = Math.exp(Math.abs(score));
  if (times < 1.1) return "says next to nothing";
  const told = times >= 1000 ? "> 1,000" : times >= 10 ? count(Math.round(times)) : times.toFixed(1);
  return `${told}× likelier if ${score > 0 ? "fake" : "real"}`;
}

/** Where the very file is in the store, and as what. */
function kept(stored) {
  const keys = new Map();
  for (const row of stored) {
    const what = row.label === "unknown" ? `of unknown origin in ${row.source}` : `${row.label} of ${row.generator || row.source}`;
    keys.set(what, [...(keys.get(what) ?? []), row.key]);
  }
  const told = [...keys].map(([what, [first, ...more]]) => `${what} (${first}${more.length ? ` and ${more.length} more` : ""})`);
  return `This very file is stored as ${told.join(" and as ")}.`;
}

function meaning(answer) {
  const rate = percent(answer.error_rate);
  if (answer.verdict === "unsure") {
    if (answer.possible.length === 2) return "The evidence does not suffice: neither real nor fake can be ruled out.";
    return "It is too unlike the known images, real or fake, for an answer.";
  }
  const other = answer.verdict === "fake" ? "real" : "fake";
  return `At most ${rate} of ${other} images are called ${answer.verdict}, as long as they are like the known ones.`;
}

function familiar(percentile) {
  const rank = percentile < 1 ? "fewer than 1" : percentile > 99 ? "more than 99" : Math.round(percentile);
  const told = `It is nearer to a known image than ${rank} of 100 known images are to their nearest.`;
  if (percentile < 1) return `${told} Nothing like it is known; do not rely on a score.`;
  if (percentile < 10) return `${told} Little like it is known; read the answer with care.`;
  if (percentile > 99) return `${told} It is unusually close, perhaps a copy or a variant of a known one.`;
  const most = percentile < 33 ? "less familiar than most" : percentile < 67 ? "usual" : "more familiar than most";
  return `${told} That is ${most}.`;
}

function maker(answer) {
  if (!answer.generator || answer.generator === "unknown") {
    return "An unknown generator: its nearest fakes do not agree on one, or none of them is near enough.";
  }
  return `Probably ${answer.generator}: most of its nearest fakes are from there.`;
}

// ---- asking the service ----

/** A refusal or a failure: status 0 where no answer came at all. */
class Trouble extends Error {
  constructor(said, status, after = 0, kind = "") {
    super(said);
    this.status = status;
    this.after = after; // seconds, if it makes sense to try again
    this.kind = kind; // as docs/SERVICE.md lists them
  }
}

/** One request and its whole answer; one that is no success becomes Trouble in the service's own words. */
async function ask(path, options = {}, read = (response) => response.json()) {
  const token = sessionStorage.getItem(TOKEN);
  let response;
  try {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    response = await fetch(path, { ...options, headers });
    if (response.ok) return await read(response); // here: a service may be gone in the middle of its answer
  } catch (e) {
    if (e.name === "AbortError" || e instanceof SyntaxError) throw e;
    throw new Trouble("The service does not answer. Is it still running?", 0, GONE);
  }
  const problem = await response.json().catch(() => ({}));
  const said = problem.detail || problem.title || `the service answered ${response.status}`;
  if (response.status === 401) forget(token);
  const kind = (problem.type ?? "").split(":").at(-1);
  throw new Trouble(said, response.status, Number(response.headers.get("Retry-After")) || 0, kind);
}

/** Ask until there is an answer or a refusal: wait where the service is busy or gone, ask for a token it wants. */
async function patiently(path, options, read) {
  const asker = Symbol(path);
  try {
    for (let busy = 0; ; ) {
      try {
        return await ask(path, options, read);
      } catch (e) {
        if (!(e instanceof Trouble)) throw e;
        if (e.status === 401) {
          await tokenGiven();
        } else if (e.after && (e.status === 0 || ([503, 504].includes(e.status) && ++busy <= PATIENCE))) {
          const why = e.message.replace(/; try again.*/, "");
          const own = e.status === 0 || e.kind.startsWith("engine");
          const what = own ? sentence(why) : `The service is busy: ${why}.`;
          trouble(`${what} Trying again in ${plural(e.after, "second")} …`, asker);
          await pause(e.after, options?.signal);
        } else {
          throw e;
        }
      }
    }
  } finally {
    trouble("", asker);
  }
}

function pause(seconds, signal) {
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

const troubles = new Map(); // who waits or was refused -> in words; the latest is shown

function trouble(said, by = "page") {
  troubles.delete(by);
  if (said) troubles.set(by, said);
  const told = [...troubles.values()].at(-1) ?? "";
  if ($("trouble-text").textContent !== told) $("trouble-text").textContent = told;
  $("trouble").hidden = !told;
}

// ---- the token ----

let tokenAsked = null; // one question, however many requests wait for it

function tokenGiven() {
  if (sessionStorage.getItem(TOKEN)) return Promise.resolve(); // another request has asked meanwhile
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
      refused(new Trouble("The service wants a token, and none was given.", 401));
    };
    dialog.showModal();
    $("token").focus();
  });
  return tokenAsked;
}

/** Drop a token that was not accepted, unless another has been given meanwhile. */
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

async function lookAtStore() {
  clearTimeout(nextLook);
  let store;
  try {
    store = await patiently("/v1/store");
  } catch (e) {
    $("bank-line").textContent = e.message;
    const again = { type: "button", className: "quiet", textContent: "Try again", onclick: lookAtStore };
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
  if (shown.dataset.why !== why) shown.replaceChildren(...coded(why)); // or it would be read out every few seconds
  shown.dataset.why = why;
  $("choose").disabled = !store.ready;
  $("drop").classList.toggle("off", !store.ready);
  if (!store.ready) nextLook = setTimeout(lookAtStore, 1000 * UNREADY);
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

/** The thumbnail of a row as a blob; asked for by fetch, since an <img> could not send the token. */
function picture(key) {
  if (!pictures.has(key)) {
    const path = key.split("/").map(encodeURIComponent).join("/");
    const asked = patiently(`/v1/thumbnails/${path}`, {}, (response) => response.blob());
    asked.catch(() => pictures.delete(key));
    pictures.set(key, asked);
  }
  return pictures.get(key);
}

function mapOf(snapshot) {
  if (!maps[snapshot]) {
    maps = { [snapshot]: patiently("/v1/map") };
    maps[snapshot].catch(() => delete maps[snapshot]);
  }
  return maps[snapshot];
}

// ---- images that are asked about ----

const cases = []; // as shown, newest lot first
let waiting = []; // cases whose turn has not come
let working = 0;
let lot = []; // the cases that came last and together

/** One image, its answer, and its card. */
class Case {
  constructor(file, name) {
    this.file = file;
    this.name = name;
    this.state = "waiting"; // or a verdict, or "refused"
    this.answer = null;
    this.place = null;
    this.snapshot = null;
    this.stopper = new AbortController();
    this.card = filled("card-template").firstElementChild;
    this.card.setAttribute("aria-label", name);
    this.find(".name").textContent = name;
    this.find(".preview").append(image(file, `Preview of ${name}`, "no preview", "lazy"));
    this.find(".toggle").onclick = () => this.unfold(this.find(".evidence").hidden);
    this.find(".retry").onclick = () => judge([this]);
    this.find(".remove").onclick = () => remove(this);
    this.find(".remove").setAttribute("aria-label", `Remove ${name}`);
    this.show("waiting", "");
  }

  find(selector) {
    return this.card.querySelector(selector);
  }

  show(state, said) {
    this.state = state;
    this.card.dataset.state = state;
    this.card.setAttribute("aria-busy", state === "waiting");
    this.find(".verdict use").setAttribute("href", `#shape-${state}`);
    this.find(".word").textContent = WORDS[state];
    this.find(".meaning").replaceChildren(...coded(said));
    this.find(".by").textContent = "";
    for (const part of [".known", ".chance", ".toggle", ".retry", ".evidence"]) this.find(part).hidden = true;
  }

  refuse(error) {
    this.answer = { image: this.name, error: error.message };
    this.show("refused", sentence(error.message));
    const final = error.status >= 400 && error.status < 500; // asked again, the answer would be the same
    this.find(".retry").hidden = final && ![401, 408, 409].includes(error.status);
  }

  judged(answer, place, snapshot) {
    Object.assign(this, { answer, place, snapshot });
    this.show(answer.verdict, meaning(answer));
    if (answer.generator) {
      const unknown = answer.generator === "unknown";
      this.find(".by").textContent = unknown ? "by an unknown generator" : `probably made by ${answer.generator}`;
    }
    this.find(".known").hidden = !answer.stored.length;
    this.find(".known").textContent = `${kept(answer.stored)} It did not testify.`;
    this.find(".chance").hidden = false;
    this.find(".chance strong").textContent = percent(answer.probability);
    this.find(".chance-mark").style.left = `${100 * answer.probability}%`;
    this.find(".chance-prior").textContent = `if ${percent(answer.prior)} of the images you ask about are fake`;
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

  /** For those who do not see the card. */
  told() {
    if (this.state === "refused") return `${this.name}: not judged. ${this.answer.error}`;
    const likely = `${percent(this.answer.probability)} likely fake`;
    return `${this.name}: ${WORDS[this.state]}, ${likely}. ${meaning(this.answer)}`;
  }
}

const sentence = (words) => words.charAt(0).toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) ? "" : ".");

/** Take files in and judge them. */
function take(files) {
  if ($("choose").disabled || !files.length) return;
  trouble(unusable());
  lot = files.map((file, i) => new Case(file, file.webkitRelativePath || file.name || `pasted image ${i + 1}`));
  cases.unshift(...lot);
  $("cards").prepend(...lot.map((one) => one.card));
  document.body.classList.add("answered");
  judge(lot);
  // Whoever dropped or pasted them far below sees that something happens.
  if ($("results").getBoundingClientRect().top < 0) $("results").scrollIntoView();
}

function judge(some) {
  lot = some;
  maps = {}; // a head that was trained anew draws another map of the same rows
  for (const one of some) {
    one.stopper = new AbortController();
    one.show("waiting", "");
  }
  waiting.push(...some);
  summarise();
  say(some.length === 1 ? `Judging ${some[0].name}` : `Judging ${plural(some.length, "image")}`);
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
      if (e.status === 409) lookAtStore();
    }
    summarise();
  }
  working -= 1;
  if (!working) finished();
}

async function judgeOne(one, signal) {
  if (one.file.size > limits.image_bytes) {
    const said = `${count(one.file.size)} bytes are more than the ${count(limits.image_bytes)} allowed for an image`;
    throw new Trouble(`${said}; send a smaller file`, 413);
  }
  one.find(".word").textContent = "Judging …";
  let content;
  try {
    content = await one.file.arrayBuffer(); // or a file that cannot be read would look like a service that is gone
  } catch {
    throw new Trouble("this file cannot be read; it may have been moved, or it is a folder", 422);
  }
  const body = new FormData();
  body.append("images", new Blob([content], { type: one.file.type }), one.name);
  const question = new URLSearchParams({ map: "true", prior: share("prior"), error: share("error") });
  const { answers, places, snapshot } = await patiently(`/v1/query?${question}`, { method: "POST", body, signal });
  if (answers[0].error) throw new Trouble(answers[0].error, 422);
  one.judged(answers[0], places?.[0], snapshot);
  if (lot.length <= OPEN_MOST && lot.includes(one)) one.unfold(true);
}

const usable = (field) => field.checkValidity() && field.value !== "";

/** A field of per cent as a share; what is not usable counts as what stood there first. */
function share(id) {
  const field = $(id);
  return Number(usable(field) ? field.value : field.defaultValue) / 100;
}

/** Which assumptions cannot be used, and what is assumed instead; "" where all can. */
function unusable() {
  return ["prior", "error"]
    .map($)
    .filter((field) => !usable(field))
    .map(({ labels, min, max, defaultValue }) => {
      return `“${labels[0].textContent}” must be ${min} to ${max}%; ${defaultValue}% was taken.`;
    })
    .join(" ");
}

function finished() {
  if (!lot.length) return; // all were removed
  const each = lot.length <= OPEN_MOST ? lot.map((one) => one.told()) : [];
  say([...(lot.length > 1 ? [`${$("summary").textContent}.`] : []), ...each].join(" "));
  const alone = lot.length === 1 ? lot[0] : null;
  // Whoever has gone elsewhere meanwhile is left there.
  if ([document.body, $("choose"), null].includes(document.activeElement) && cases.length) {
    (alone ? alone.card : $("summary")).focus({ preventScroll: true });
    (alone ? alone.card : $("results")).scrollIntoView({ block: "nearest" });
  }
}

function summarise() {
  const of = (state) => cases.filter((one) => one.state === state).length;
  const left = of("waiting");
  const told = [
    [of("fake"), "fake"],
    [of("real"), "real"],
    [of("unsure"), "unsure"],
    [of("refused"), "not judged"],
  ].filter(([number]) => number);
  const tally = told.map(([number, word]) => `${count(number)} ${word}`).join(", ");
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

function say(words) {
  $("said").textContent = words;
}

function remove(one) {
  const next = cases[cases.indexOf(one) + 1] ?? cases[cases.indexOf(one) - 1];
  cases.splice(cases.indexOf(one), 1);
  waiting = waiting.filter((other) => other !== one);
  lot = lot.filter((other) => other !== one);
  one.stopper.abort();
  one.card.remove();
  summarise();
  say(`Removed ${one.name}`);
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
  say("Cleared");
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
  room.append(filled("evidence-template"));
  const { answer } = one;
  const find = (selector) => room.querySelector(selector);
  find(".reasons").append(...answer.reasons.map((why) => make("li", { textContent: sentence(why) })));
  showSignals(answer, find(".bars"), find(".agree"));
  showNeighbors(one, find);
  find(".ruler-mark").style.left = `${Math.min(100, Math.max(0, answer.percentile))}%`;
  find(".likeness p").textContent = familiar(answer.percentile);
  find(".made").hidden = answer.verdict !== "fake"; // only then is it asked
  find(".maker").textContent = maker(answer);
  showChanges(answer, find(".change"));
  showMap(one, find(".map"));
}

function showSignals(answer, bars, agree) {
  const rows = [
    ["Classifier", answer.signals.svm, ""],
    ["Neighbours", answer.signals.neighbors, ""],
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
      const words = make("span", { className: "bar-words" }, number, ` ${likelier(score)}`);
      return make("div", { className: `bar-row ${kind}` }, make("span", { textContent: name }), track, words);
    }),
    make("div", { className: "bar-row bar-axis", ariaHidden: "true" }, make("span", {}, ...ends)),
  );
  agree.classList.toggle("conflict", answer.conflict);
  const { svm, neighbors } = answer.signals;
  agree.textContent = answer.conflict
    ? "They disagree clearly: one speaks for real, the other for fake. Look at the images."
    : svm * neighbors < 0
      ? "They point in different directions, but weakly."
      : "They point in the same direction.";
}

function frameOf(neighbor, kind) {
  const frame = make("div", { className: "frame" });
  const alt = `Known ${kind} image ${fileOf(neighbor)} from ${neighbor.source}, similarity ${near(neighbor)}`;
  picture(neighbor.key).then(
    (blob) => frame.append(image(blob, alt, "cannot be shown")),
    (e) => frame.append(make("span", { textContent: e.status === 404 ? "no picture kept" : "cannot be loaded" })),
  );
  return frame;
}

const near = (neighbor) => neighbor.similarity.toFixed(3);
const fileOf = (neighbor) => neighbor.key.split("/").at(-1);

function showNeighbors(one, find) {
  find(".asked .frame").append(image(one.file, `The image asked about, ${one.name}`, "no preview"));
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
      fileOf(nearest),
    ].filter(Boolean);
    const words = about.map((textContent) => make("span", { textContent }));
    words.unshift(make("strong", { textContent: `Nearest ${kind}` }));
    find(`.nearest-${kind}`).append(make("figure", {}, frameOf(nearest, kind), make("figcaption", {}, ...words)));
    find(`.strip-${kind}`).append(
      ...further.map((neighbor) => {
        const said = make("figcaption", {}, make("b", { textContent: near(neighbor) }), ...breakable(neighbor.source));
        return make("li", { title: neighbor.key }, make("figure", {}, frameOf(neighbor, kind), said));
      }),
    );
    find(`.strip-${kind}`).parentElement.hidden = !further.length;
  }
}

function showChanges(answer, section) {
  const told = [...answer.changes, ...(answer.views ?? []).filter((view) => view.verdict !== answer.verdict)];
  const lines = told.map(({ what, verdict, score }) => {
    const textContent = sentence(`${what}, it would be ${verdict} (${signed(score)})`);
    return make("li", {}, shape(verdict), make("span", { textContent }));
  });
  const none = "Nothing that was tried, such as leaving out the images of one source.";
  section.querySelector(".changes").append(...(lines.length ? lines : [make("li", { textContent: none })]));
}

// ---- the map ----

async function showMap(one, section) {
  const words = section.querySelector(".map-words");
  const canvas = section.querySelector("canvas");
  const without = (said) => {
    canvas.hidden = section.querySelector(".legend").hidden = true;
    words.textContent = said;
  };
  if (!one.place) {
    without("This image has no place on the map.");
    return;
  }
  words.textContent = "Drawing …";
  let map;
  try {
    map = await mapOf(one.snapshot);
  } catch (e) {
    without(sentence(e.message));
    return;
  }
  words.textContent = aroundOnMap(map, one.place);
  canvas.setAttribute("aria-label", `Map of ${count(map.points.length)} known images. ${words.textContent}`);
  drawings.set(canvas, () => drawMap(canvas, map, one.place));
  resized.observe(canvas); // which draws it a first time, too
}

const drawings = new WeakMap(); // canvas -> how it is drawn
const resized = new ResizeObserver((found) => found.forEach(({ target }) => drawings.get(target)()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const canvas of document.querySelectorAll("canvas")) drawings.get(canvas)?.();
});

/** What the map shows, for those who do not see it, and how far it can be trusted, for all. */
function aroundOnMap(map, [x, y]) {
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
  // one scale for both axes, so that distances mean the same in all directions
  const scale = Math.min((width - 2 * margin) / (right - left || 1), (height - 2 * margin) / (high - low || 1));
  const at = ([x, y]) => [width / 2 + scale * (x - (left + right) / 2), height / 2 - scale * (y - (low + high) / 2)];
  const size = width < 420 ? 2.1 : 2.7;
  const fills = [colour("--real-fill"), colour("--fake-fill")];
  pen.globalAlpha = 0.62;
  // mixed, or the class drawn last would hide the other
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

// ---- what a person does ----

/** The files of what was dropped; of folders, the images in them. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((one) => one.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const found = [];
  for (const entry of entries) found.push(...(await inside(entry)));
  return found.filter((file) => file.type.startsWith("image/"));
}

async function inside(entry) {
  if (entry.isFile) return [await new Promise((done, failed) => entry.file(done, failed))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed)); // a hundred at a time
    if (!some.length) return found;
    for (const one of some) found.push(...(await inside(one)));
  }
}

function listen() {
  $("choose").onclick = () => $("files").click();
  $("files").onchange = () => {
    take([...$("files").files]);
    $("files").value = ""; // so that the same file can be chosen again
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
    event.preventDefault(); // or the browser would open the file in place of the page
    isOver(0);
    const files = await dropped(event.dataTransfer).catch(() => []);
    if (files.length) take(files);
    else trouble("There was no image file in that. Nothing is fetched from the web: save the image first.");
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) {
      event.preventDefault();
      take(files);
    }
  });
  $("stop").onclick = stop;
  $("clear").onclick = clear;
  $("save").onclick = save;
  $("judge-again").onclick = () => {
    if (!$("prior").reportValidity() || !$("error").reportValidity()) return;
    trouble(unusable());
    judge([...cases]);
  };
  $("look-again").onclick = lookAtStore;
  $("forget-token").onclick = () => {
    sessionStorage.removeItem(TOKEN);
    location.reload();
  };
  $("forget-token").hidden = !sessionStorage.getItem(TOKEN);
}

listen();
lookAtStore();
