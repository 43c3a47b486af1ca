"use strict";
(() => {
  // Whatever a query, a document or a model says is put into the page as text. Heat maps alone are HTML, escaped by the server.
  const $ = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const number = (value) => value.toLocaleString("en");
  const seconds = (value) => value < 0.1 ? `${Math.max(1, Math.round(value * 1000))} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`;
  let info = null, running = null;

  class Refused extends Error {
    constructor(message, status) { super(message); this.status = status; }
  }

  async function call(path, body, signal) {
    const headers = { "Content-Type": "application/json" };
    const key = sessionStorage.getItem("grace-key");
    if (key) headers.Authorization = `Bearer ${key}`;
    const options = body === undefined ? { headers, signal } : { method: "POST", headers, signal, body: JSON.stringify(body) };
    let answer;
    try {
      answer = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused("The server cannot be reached. Is it still running?", 0);
    }
    let found = null;
    try { found = await answer.json(); } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(`The server answered ${answer.status} without JSON.`, answer.status);
    }
    if (!answer.ok) throw new Refused(typeof found.error === "string" ? found.error : found.error.message, answer.status);
    return found;
  }

  // ------------------------------------------------------------------ what is going on

  function begin() {
    if (running) running.abort();
    const work = new AbortController(), started = performance.now();
    running = work;
    const tick = () => { if (running === work) $("clock").textContent = seconds((performance.now() - started) / 1000); };
    const timer = setInterval(tick, 100);
    $("progress").hidden = false;
    $("problem").hidden = true;
    $("results").setAttribute("aria-busy", "true");
    return {
      signal: work.signal,
      elapsed: () => (performance.now() - started) / 1000,
      say(text) { $("doing").textContent = text; $("status").textContent = text; tick(); },
      end() {
        clearInterval(timer);
        if (running !== work) return;
        running = null;
        $("progress").hidden = true;
        $("results").removeAttribute("aria-busy");
      },
    };
  }

  function complain(error) {
    if (error.name === "AbortError") return;
    if (error.status === 401) { askForKey(); return; }
    $("problem").textContent = error.message;
    $("problem").hidden = false;
  }

  // ------------------------------------------------------------------ what is shown

  function wrote(rationale, of, heading) {
    const box = make("div", "wrote"), head = make(heading);
    head.append(make("b", "", of), " · written by the model, not a quotation; it may be wrong");
    if (rationale.truncated) head.append(" · cut off before its end");
    box.append(head);
    if (rationale.reasoning) box.append(make("p", "reasoning", rationale.reasoning));
    if (rationale.summary) box.append(make("p", "", rationale.summary));
    return box;
  }

  function showQuery(rationale) {
    const place = $("wrote"), there = Boolean(rationale && rationale.text && rationale.written_by);
    place.hidden = !there;
    if (there) place.replaceChildren(...wrote(rationale, "About the query", "h2").childNodes);
  }

  function summarise(parts) {
    $("summary").replaceChildren();
    parts.filter(Boolean).forEach((part, place) => {
      if (place) $("summary").append(" · ");
      $("summary").append(part);
    });
    $("status").textContent = $("summary").textContent;
  }

  const origin = (rationale) => !rationale || !rationale.text || !rationale.written_by ? "" :
    rationale.cached ? "the query's rationale came from the cache" : "the query's rationale was written just now";

  function card(rank, score, best, name, text, metadata, rationale, loadMap) {
    const item = make("li", "hit card"), head = make("div", "head"), foot = make("div", "foot");
    item.tabIndex = -1;
    head.append(make("span", "rank num", String(rank)), make("h2", "", name), make("span", "score num", score.toFixed(4)));
    const meter = make("div", "meter"), filled = make("i");
    meter.setAttribute("aria-hidden", "true");
    filled.style.width = `${best > 0 ? Math.max(0, Math.min(100, 100 * score / best)) : 0}%`;
    meter.append(filled);
    item.append(head, meter);
    if (text) item.append(make("p", "text", text));
    if (rationale && rationale.text && rationale.written_by) {
      const summary = rationale.summary || rationale.reasoning || rationale.text;
      item.append(wrote({ ...rationale, reasoning: "", summary }, "About it", "h3"));
    }
    for (const [key, value] of Object.entries(metadata)) {
      foot.append(make("span", "chip", `${key}: ${typeof value === "object" ? JSON.stringify(value) : value}`));
    }
    const why = make("button", "why", "Why?"), map = make("div", "map grace");
    why.type = "button";
    why.setAttribute("aria-expanded", "false");
    why.setAttribute("aria-label", `Why? The heat map of hit ${rank}`);
    map.hidden = true;
    let loaded = false;
    const set = (open) => {
      item.classList.toggle("open", open);
      why.setAttribute("aria-expanded", String(open));
      map.hidden = !open;
    };
    why.addEventListener("click", async () => {
      if (!map.hidden) { set(false); return; }
      if (loaded) { set(true); return; }
      why.disabled = true;
      try {
        map.innerHTML = await loadMap();
        loaded = true;
        set(true);
      } catch (error) { complain(error); } finally { why.disabled = false; why.focus({ preventScroll: true }); }
    });
    item.addEventListener("keydown", (event) => {
      if (event.target === item && event.key === "Enter") { event.preventDefault(); why.click(); }
      if (event.key === "Escape" && !map.hidden) { set(false); item.focus(); }
    });
    foot.append(why);
    item.append(foot, map);
    return item;
  }

  function showHits(cards, nothing) {
    $("hits").replaceChildren(...cards);
    $("results").hidden = false;
    $("empty").hidden = cards.length > 0;
    if (!cards.length) $("empty").textContent = nothing;
  }

  // ------------------------------------------------------------------ what is asked

  function chosenFilter() {
    const filter = {};
    for (const select of $("filters").querySelectorAll("select")) {
      if (select.value) filter[select.dataset.name] = JSON.parse(select.value);
    }
    return filter;
  }

  async function search(work, query) {
    let rationale = null;
    if (info.rationale === true) {
      work.say("Writing about the query …");
      [rationale] = (await call("rationale", { texts: query, role: "query" }, work.signal)).rationales;
      showQuery(rationale);
      $("results").hidden = false;
    }
    work.say(`Searching ${number(info.index.documents)} documents …`);
    const hybrid = $("hybrid").checked;
    const found = await call("search", { query, k: Number($("k").value), hybrid, filter: chosenFilter() }, work.signal);
    showQuery(rationale || found.query_rationale);
    const best = found.hits.length ? found.hits[0].score : 0;
    const cards = found.hits.map((hit, place) => card(place + 1, hit.score, best, hit.title || hit.id, hit.text,
      { ...(hit.title ? { id: hit.id } : {}), ...hit.metadata }, hit.rationale, () => explainHit(query, hit.id)));
    showHits(cards, "Nothing was found.");
    const total = make("b", "", seconds(work.elapsed()));
    summarise([`${found.hits.length} of ${number(found.documents)} documents`, hybrid && "vectors and words, fused by rank", total,
      origin(rationale)]);
  }

  async function explainHit(query, id) {
    const work = begin();
    work.say("Explaining …");
    try {
      return (await call("explain", { query, ids: [id], format: "fragment" }, work.signal)).explanations[0].html;
    } finally { work.end(); }
  }

  async function compare(work, query) {
    const texts = $("texts").value.split("\n").map((text) => text.trim()).filter(Boolean);
    if (!texts.length) throw new Refused("Give some texts to compare, one a line.", 0);
    work.say(`Writing about the query and ${number(texts.length)} texts …`);
    const found = await call("explain", { query, documents: texts, format: "fragment" }, work.signal);
    showQuery(found.query_rationale);
    const ranked = found.explanations.map((one, place) => ({ ...one, text: texts[place] })).sort((a, b) => a.rank - b.rank);
    showHits(ranked.map((one) => card(one.rank, one.score, ranked[0].score, one.text, "", {}, null, async () => one.html)), "");
    summarise([`${number(texts.length)} texts`, make("b", "", seconds(work.elapsed())), origin(found.query_rationale)]);
  }

  const mode = () => document.querySelector("input[name=mode]:checked").value;

  async function submit() {
    const query = $("query").value.trim();
    if (!query) return;
    history.replaceState(null, "", `#${new URLSearchParams({ q: query })}`);
    const work = begin();
    try {
      await (mode() === "search" ? search : compare)(work, query);
    } catch (error) { complain(error); } finally { work.end(); }
  }

  // ------------------------------------------------------------------ the beginning

  function askForKey() {
    $("form").hidden = true;
    $("key-form").hidden = false;
    $("key").value = "";
    $("key").focus();
  }

  function setMode() {
    const comparing = mode() === "compare";
    $("texts-part").hidden = !comparing;
    $("options").hidden = comparing;
    $("go").textContent = comparing ? "Compare" : "Search";
  }

  function prepare() {
    const index = info.index;
    $("facts").replaceChildren(make("b", "", info.model_id), ` · ${number(info.dimension)} dimensions`);
    if (index) $("facts").append(` · ${number(index.documents)} documents`);
    $("facts").hidden = false;
    document.title = `${info.model_id} · grace`;
    $("modes").hidden = !index;
    if (!index) document.querySelector("input[value=compare]").checked = true;
    $("hybrid-part").hidden = !(index && index.hybrid);
    $("filters").replaceChildren(...Object.entries(index ? index.filters : {}).map(([name, values]) => {
      const label = make("label", "", `${name} `), select = make("select");
      select.dataset.name = name;
      select.append(new Option("all", ""), ...values.map((value) => new Option(String(value), JSON.stringify(value))));
      label.append(select);
      return label;
    }));
    setMode();
    $("key-form").hidden = true;
    $("form").hidden = false;
    const asked = new URLSearchParams(location.hash.slice(1)).get("q");
    if (asked) { $("query").value = asked; submit(); } else $("query").focus();
  }

  async function start() {
    try {
      info = await call("info");
      prepare();
    } catch (error) { complain(error); }
  }

  $("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("grace-key", $("key").value);
    start();
  });
  $("cancel").addEventListener("click", () => { if (running) running.abort(); $("query").focus(); });
  for (const radio of document.querySelectorAll("input[name=mode]")) radio.addEventListener("change", setMode);
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input[type=search], input[type=password], textarea, select");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      $("query").focus();
      $("query").select();
    }
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp" || (typing && typing.id !== "query")) return;
    const hits = [...document.querySelectorAll(".hit")], at = hits.indexOf(document.activeElement.closest(".hit"));
    const next = event.key === "ArrowDown" ? at + 1 : at - 1;
    if (!hits.length || (at < 0 && event.key === "ArrowUp")) return;
    event.preventDefault();
    if (next < 0) $("query").focus(); else if (next < hits.length) {
      hits[next].focus();
      hits[next].scrollIntoView({ block: "nearest" });
    }
  });
  start();
})();
