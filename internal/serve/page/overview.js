// The overview answers: is it scraped, is every pool alive, what has changed, what is wrong?

import { app } from "./app.js";
import { ask, tryAsk } from "./ask.js";
import { events, line, Memory } from "./charts.js";
import { el, link, list, number, setClass, setText, table } from "./dom.js";
import { bytes, clock, count, duration, parse, plural, rate, span, time } from "./format.js";
import { poolColumns, poolPanel } from "./worker.js";

const BUSIEST = 8, FAMILIES = 2000, PANELS = 3, ROWS = 100, PROBLEMS = 10;

// problemNode shows one problem and, where the daemon says it, what to do about it.
export function problemNode() {
  const node = el("p"), text = el("span"), action = el("span", { class: "action" }), where = el("a", { "data-row": true });
  node.append(text, " ", action, " ", where);
  node.show = (p) => {
    setClass(node, "problem " + (p.severity === "error" ? "error" : "warning"));
    setText(text, (p.pool ? p.pool + ": " : "") + p.text + (/[.!?]$/.test(p.text) ? "" : "."));
    setText(action, p.action || "");
    const to = p.pool ? "#pool/" + encodeURIComponent(p.pool) : "#problems";
    where.hidden = location.hash === to;
    where.setAttribute("href", to);
    setText(where, p.pool ? "Show the pool" : "See Problems");
  };
  return node;
}

// bySeverity puts errors before warnings.
export const bySeverity = (problems) => [...problems].sort((a, b) => (b.severity === "error") - (a.severity === "error"));

export function overview() {
  const memory = new Memory();
  const problems = el("div"), more = el("a", { href: "#problems", hidden: true }), pools = el("div");
  const scraped = number("Scrapes"), workers = number("Workers", "#workers"), samples = number("Samples served", "#metrics"), room = number("Least free space"), folded = number("Files archived", "#archive");
  const latency = line("chart small", "time of a scrape"), latencyAxis = el("p", { class: "dim" });
  const births = events("workers that were born and that died"), birthsAxis = el("p", { class: "dim" });
  const busiest = busiestFamilies(memory);
  const showProblems = list(problems, problemNode, (p) => p.pool + "\n" + p.text), showPools = list(pools, poolPanel, (p) => p.name);
  const outputs = outputTable();
  const many = poolTable(), timeline = new Timeline();
  let scrapes = null;
  return {
    title: "Overview",
    node: el("div", {}, problems, more, el("div", { class: "numbers" }, scraped, workers, samples, room, folded),
      el("div", { class: "pair" },
        el("section", { class: "panel" }, el("h2", {}, "Time of a scrape"), latency, latencyAxis),
        el("section", { class: "panel" }, el("h2", {}, "Workers born and died"), births, birthsAxis)),
      el("h2", {}, "Busiest metrics"), busiest.node, el("h2", {}, "Pools"), many, pools, outputs),
    async refresh() {
      const s = app.status, sum = (f) => s.pools.reduce((n, p) => n + f(p), 0);
      showProblems(bySeverity(s.problems).slice(0, PROBLEMS));
      more.hidden = s.problems.length <= PROBLEMS;
      setText(more, "All " + count(s.problems.length) + " problems");
      const dead = sum((p) => p.workers.dead), waiting = sum((p) => p.archive.awaiting);
      workers.show(count(sum((p) => p.workers.alive)), dead ? count(dead) + " dead" : "alive");
      samples.show(count(s.merge.samples), plural(s.merge.families, "family", "families") + ", merged in " + duration(s.merge.last_seconds));
      folded.show(count(sum((p) => p.archive.folded_files)), waiting ? count(waiting) + " waiting" : "none waiting");
      const spaces = s.pools.filter((p) => p.file_system && p.file_system.total_bytes).map((p) => [p.file_system.free_bytes / p.file_system.total_bytes, p]);
      spaces.sort((a, b) => a[0] - b[0]);
      if (spaces.length) {
        const [part, p] = spaces[0];
        room.show((part * 100).toFixed(part < 0.1 ? 1 : 0) + "% free", bytes(p.file_system.free_bytes) + (p.name ? " in " + p.name : ""), part < 0.05 ? "error" : part < 0.1 ? "warning" : "");
      } else room.show("–", "no directory can be read");
      many.hidden = s.pools.length <= PANELS;
      pools.hidden = !many.hidden;
      if (many.hidden) showPools(s.pools); else many.show(s.pools);
      if (!s.ready) { scraped.show("–", "not ready yet"); return; }

      scrapes = await readScrapes() || scrapes;
      if (scrapes) {
        memory.add("scrapes", scrapes.time, scrapes.count);
        memory.add("scrape seconds", scrapes.time, scrapes.seconds);
        showScrapes(scraped, memory, scrapes, s);
        const points = scrapeTimes(memory), range = latency.show(points);
        setText(latencyAxis, points.length > 1 ? duration(range.low) + " to " + duration(range.high) + " since " + clock(points[0][0])
          : scrapes.count ? duration(scrapes.seconds / scrapes.count) + " on average since the start; the chart begins with the next scrapes" : "Nobody has scraped the metrics yet.");
      }
      outputs.show(await tryAsk("outputs") || []);
      await timeline.refresh();
      births.show(timeline.moments);
      setText(birthsAxis, timeline.words());
      await busiest.refresh();
    },
  };
}

// readScrapes returns how many scrapes there were and how long they took in all.
async function readScrapes() {
  const total = async (match) => {
    const page = await tryAsk("series", { match });
    return page && { time: page.time, sum: page.items.reduce((n, s) => n + parse(s.value), 0) };
  };
  const n = await total("aggregatord_scrape_duration_seconds_count"), seconds = await total("aggregatord_scrape_duration_seconds_sum");
  return n && seconds && { time: n.time, count: n.sum, seconds: seconds.sum };
}

function showScrapes(node, memory, scrapes, s) {
  if (!scrapes.count) {
    node.show("none", "point Prometheus at this address", "warning");
    return;
  }
  const points = memory.points("scrapes"), last = points[points.length - 1], first = points[0];
  const seen = last[1] - first[1];
  // What was seen by this page is closer to the truth of now than the average since the start.
  const every = seen >= 2 ? (last[0] - first[0]) / seen : (time.now() - s.started) / scrapes.count;
  let at = 0;
  for (let i = points.length - 1; i > 0 && !at; i--) if (points[i][1] > points[i - 1][1]) at = points[i][0];
  const late = last[0] - first[0] > 300 && seen === 0;
  node.show(every < 1 ? rate(1 / every) + " a second" : "every " + span(every), at ? "the last " + time.ago(at) : late ? "none for " + span(last[0] - first[0]) : count(scrapes.count) + " since the start", late ? "warning" : "");
}

// scrapeTimes are the mean times of the scrapes between two looks.
function scrapeTimes(memory) {
  const n = memory.points("scrapes"), seconds = memory.points("scrape seconds"), out = [];
  for (let i = 1; i < n.length; i++) {
    const scrapes = n[i][1] - n[i - 1][1];
    if (scrapes > 0 && seconds[i]) out.push([n[i][0], (seconds[i][1] - seconds[i - 1][1]) / scrapes]);
  }
  return out;
}

// busiestFamilies shows the counters and histograms that grow fastest, and of those with a
// label for the status of an answer how many of it are errors.
function busiestFamilies(memory) {
  const labels = new Map(); // family to the name of the label for the status, "" if it has none
  const node = table([
    { head: "family", class: "name", show: (cell, f) => link(cell, f.name, "#metric/" + encodeURIComponent(f.name), { "data-row": true }) },
    { head: "per second", class: "num", text: (f) => rate(f.rate) },
    { head: "trend", class: "opt", show: (cell, f) => { if (!cell.firstChild) cell.append(line("spark", "trend")); cell.firstChild.show(memory.rates("family " + f.name)); } },
    { head: "errors per second", class: "num", show: (cell, f) => { setText(cell, f.errors == null ? "" : rate(f.errors)); setClass(cell, "num" + (f.errors > 0 ? " error" : "")); } },
    { head: "series", class: "num opt", text: (f) => count(f.series) },
  ], { key: (f) => f.name, empty: "No counter has grown since this page was opened." });
  return {
    node,
    async refresh() {
      const page = await tryAsk("families", { own: "false", limit: FAMILIES });
      if (!page) return;
      const all = [];
      for (const f of page.items) {
        if (f.total == null) continue;
        memory.add("family " + f.name, page.time, parse(f.total));
        const rates = memory.rates("family " + f.name);
        if (rates.length && rates.some((r) => r[1] > 0)) all.push({ name: f.name, series: f.series, type: f.type, rate: rates[rates.length - 1][1], mean: rates.reduce((n, r) => n + r[1], 0) });
      }
      all.sort((a, b) => b.mean - a.mean || (a.name < b.name ? -1 : 1));
      const shown = all.slice(0, BUSIEST);
      await Promise.all(shown.map(async (f) => { f.errors = await errorRate(f, labels, memory); }));
      node.show(shown);
    },
  };
}

const statusLabels = ["status", "code", "status_code", "http_status", "http_code"];

async function errorRate(f, labels, memory) {
  if (f.type !== "counter") return null;
  const sample = f.name.endsWith("_total") ? f.name : f.name + "_total";
  if (!labels.has(f.name)) {
    const page = await tryAsk("series", { match: sample, limit: 1 });
    if (!page || !page.items.length) return null;
    labels.set(f.name, statusLabels.find((l) => (page.items[0].labels || {})[l] != null) || "");
  }
  const label = labels.get(f.name);
  if (!label) return null;
  const page = await tryAsk("series", { match: sample + "{" + label + "=~\"5..|error.*|fail.*|exception.*\"}", limit: 5000 });
  if (!page) return null;
  memory.add("errors " + f.name, page.time, page.items.reduce((n, s) => n + parse(s.value), 0));
  const rates = memory.rates("errors " + f.name);
  return rates.length ? rates[rates.length - 1][1] : null;
}

// Timeline notes which workers come and go while the page is open.
class Timeline {
  moments = [];
  known = null;
  asked = 0;
  partial = false;

  async refresh() {
    if (Date.now() - this.asked < 4000) return;
    this.asked = Date.now();
    const page = await ask("workers", { limit: 5000 });
    this.partial = page.matching > page.items.length;
    const alive = new Set(page.items.filter((w) => w.alive).map((w) => (w.pool || "") + "\n" + w.id + "\n" + w.created));
    if (this.known) {
      this.moments.push({ at: time.now(), came: [...alive].filter((w) => !this.known.has(w)).length, went: [...this.known].filter((w) => !alive.has(w)).length });
      if (this.moments.length > 120) this.moments.shift();
    }
    this.known = alive;
  }

  words() {
    if (!this.moments.length) return "This page looks every few seconds; the chart begins with the next look.";
    const sum = (field) => this.moments.reduce((n, m) => n + m[field], 0);
    return count(sum("came")) + " born (up), " + count(sum("went")) + " died (down) since " + clock(this.moments[0].at) + (this.partial ? ", among the first 5,000" : "");
  }
}

// outputTable shows where values are sent to: what fails comes first. Without outputs it is hidden.
function outputTable() {
  const rows = table([
    { head: "output", class: "name", text: (o) => o.name },
    { head: "receiver", class: "name opt", text: (o) => o.type.replace("_", " ") + " " + o.target },
    { head: "state", show: (cell, o) => {
      setText(cell, o.failures ? plural(o.failures, "failure") : o.last_try ? "ok" : "nothing sent yet");
      setClass(cell, o.failures ? "error" : o.last_try ? "good" : "off");
    } },
    { head: "last success", class: "num", text: (o) => (o.last_success ? time.ago(o.last_success) : "never") },
    { head: "next push", class: "num", text: (o) => (o.next ? (o.next > time.now() ? "in " + span(o.next - time.now()) : "now") : "") },
    { head: "samples", class: "num opt", text: (o) => count(o.samples) + (o.left_out ? " (" + count(o.left_out) + " left out)" : "") },
    { head: "bytes", class: "num opt", text: (o) => bytes(o.bytes) },
    { head: "last error", class: "wrap", show: (cell, o) => { setText(cell, o.error || ""); cell.style.minWidth = o.error ? "17rem" : ""; } },
  ], { key: (o) => o.name, empty: "There is no output." });
  const node = el("section", {}, el("h2", {}, "Outputs"), rows);
  node.show = (outputs) => {
    node.hidden = outputs.length === 0;
    rows.show([...outputs].sort((a, b) => (b.failures > 0) - (a.failures > 0)));
  };
  return node;
}

// poolTable is for many pools: the first of those with problems, and a way to all of them.
function poolTable() {
  const grid = table(poolColumns.map(({ sort, ...c }) => c), { key: (p) => p.name, empty: "There is no pool." });
  const all = el("a", { href: "#pools" }), node = el("div", {}, grid, el("p", {}, all));
  const rank = (p) => ["", "warning", "error"].indexOf(p.trouble || "") * 1000 + p.problems;
  node.show = (pools) => {
    grid.show([...pools].sort((a, b) => rank(b) - rank(a)).slice(0, ROWS));
    all.hidden = pools.length <= 10;
    setText(all, "All " + count(pools.length) + " pools, with a search");
  };
  return node;
}
