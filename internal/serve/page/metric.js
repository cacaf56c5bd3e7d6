// One metric: its series, what they have in common, how they grow and what made a value.

import { app, note, place } from "./app.js";
import { ask, tryAsk } from "./ask.js";
import { bars, line, Memory, quantile } from "./charts.js";
import { el, setClass, setName, setText, table } from "./dom.js";
import { clock, count, parse, plural, rate, time, value } from "./format.js";
import { lister, PAGE } from "./lists.js";

const SORTED = 5000; // how many series are put in order of value or rate

const memory = new Memory();
const rises = (name) => /_(total|count|sum|bucket)$/.test(name);

// trend is what a chart of a series shows: increases per second of what only rises, else values.
const trend = (name, series) => (rises(name) ? memory.rates(series) : memory.values(series));

const lastRate = (s) => { const r = memory.rates(s.series); return rises(s.name) && r.length ? r[r.length - 1][1] : null; };

// shared returns the labels that all of some samples have alike.
function shared(items) {
  if (items.length < 2) return {};
  const all = { ...items[0].labels };
  for (const s of items) for (const name of Object.keys(all)) if (!s.labels || s.labels[name] !== all[name]) delete all[name];
  return all;
}

const spell = (labels) => Object.entries(labels).map(([n, v]) => n + "=" + JSON.stringify(v)).join(", ");

export function metric(name) {
  let chosen = "", common = {};
  const head = el("h2", {}, el("a", { href: "#metrics" }, "Metrics"), " / "), title = el("span");
  setName(title, name);
  head.append(title);
  const help = el("p", { class: "dim" }), inCommon = el("p", { class: "dim" });
  const detail = seriesDetail(), spread = distribution(name);
  detail.hidden = spread.hidden = true;
  const choose = (series) => {
    chosen = chosen === series ? "" : series;
    note({ series: chosen });
    detail.hidden = !chosen;
    if (chosen) detail.begin(chosen);
    app.again();
  };
  const series = lister({
    title: name, things: (n) => plural(n, "series", "series"), question: "series", placeholder: "Search in labels", sort: "",
    empty: () => "No worker has written a series of this metric, or a rule leaves it out.",
    key: (s) => s.series, params: () => ({ family: name }),
    // The daemon gives series in the order of their names; another order is made here.
    async fetch(asked) {
      const { sort, ...rest } = asked;
      if (!sort) return ask("series", rest);
      const page = await ask("series", { ...rest, offset: "", limit: SORTED });
      for (const s of page.items) memory.add(s.series, page.time, parse(s.value));
      const key = sort.endsWith("rate") ? (s) => lastRate(s) ?? -Infinity : (s) => parse(s.value), sign = sort[0] === "-" ? -1 : 1;
      page.items.sort((a, b) => sign * ((key(a) > key(b)) - (key(a) < key(b))));
      page.offset = asked.offset || 0;
      page.items = page.items.slice(page.offset, page.offset + PAGE);
      return page;
    },
    changed(page) {
      for (const s of page.items) memory.add(s.series, page.time, parse(s.value));
      common = shared(page.items);
      setText(inCommon, Object.keys(common).length ? "All that are listed have " + spell(common) + "." : "");
    },
    columns: [
      {
        head: "series", class: "name", show: (cell, s, row) => {
          let b = cell.firstElementChild;
          if (!b) {
            cell.append(b = el("a", { href: location.hash, role: "button", "data-row": true }));
            b.addEventListener("click", (e) => { e.preventDefault(); choose(s.series); });
            b.addEventListener("keydown", (e) => { if (e.key === " ") { e.preventDefault(); choose(s.series); } });
          }
          const own = Object.fromEntries(Object.entries(s.labels || {}).filter(([n]) => common[n] == null));
          setName(b, Object.keys(common).length ? s.name + (Object.keys(own).length ? "{" + spell(own) + "}" : "") : s.series);
          b.title = s.series;
          b.setAttribute("aria-expanded", String(chosen === s.series));
          setClass(row, chosen === s.series ? "open" : "");
        },
      },
      { head: "value", sort: "value", falling: true, class: "num", text: (s) => value(s.value) },
      { head: "per second", sort: "rate", falling: true, class: "num", text: (s) => rate(lastRate(s)) },
      {
        head: "trend", class: "opt", show: (cell, s) => {
          if (!cell.firstChild) cell.append(line("spark", "trend"));
          cell.firstChild.show(trend(s.name, s.series));
        },
      },
    ],
  });
  series.node.prepend(head, help, detail, spread, inCommon);
  const inner = series.refresh.bind(series);
  series.refresh = async () => {
    const asked = place().query.get("series") || "";
    if (asked !== chosen) {
      chosen = asked;
      detail.hidden = !chosen;
      if (chosen) detail.begin(chosen);
    }
    await inner();
    const found = (await ask("families", { name })).items[0];
    setText(help, found ? found.help + " — " + found.type + (found.mode ? ", mode " + found.mode + " by " + (found.mode_source || "the daemon") : "") + (found.rule ? ", rule " + found.rule : "") : "This metric is not served now.");
    if (chosen) await detail.refresh(chosen);
    spread.hidden = !found || found.type !== "histogram";
    if (!spread.hidden) await spread.refresh();
  };
  series.parent = "metrics";
  series.escape = () => { if (!chosen) return false; choose(chosen); return true; };
  return series;
}

// distribution shows the buckets of a histogram, of one set of labels or of all together.
function distribution(name) {
  const which = el("select", { "aria-label": "Which labels" }), when = el("select", { "aria-label": "Which time" }, el("option", { value: "" }, "all observations"), el("option", { value: "now" }, "since this page was opened"));
  const chart = bars(), quantiles = el("p"), remark = el("p", { class: "dim" });
  const node = el("section", { class: "panel", "aria-label": "Distribution" }, el("div", { class: "tools" }, el("h2", {}, "Distribution"), which, when), quantiles, chart, remark);
  const first = new Map(); // series to its value when the page first saw it
  const unit = { seconds: "\u00a0s", bytes: "\u00a0B" }[name.split("_").pop()] || "";
  for (const s of [which, when]) s.addEventListener("change", () => app.again());
  let known = null;
  node.refresh = async () => {
    const page = await tryAsk("series", { match: name + "_bucket", limit: SORTED });
    if (!page) return;
    const groups = new Map([["", new Map()]]);
    for (const s of page.items) {
      const { le, ...rest } = s.labels || {}, bound = parse(le), id = spell(rest);
      if (!first.has(s.series)) first.set(s.series, parse(s.value));
      const n = parse(s.value) - (when.value ? first.get(s.series) : 0);
      if (!groups.has(id)) groups.set(id, new Map());
      for (const g of new Set(["", id])) groups.get(g).set(bound, (groups.get(g).get(bound) || 0) + n);
    }
    const ids = [...groups.keys()].join("\n");
    if (ids !== known) {
      const before = which.value;
      known = ids;
      which.replaceChildren(...[...groups.keys()].map((id) => el("option", { value: id }, id || "all labels together")));
      if (groups.has(before)) which.value = before;
    }
    which.hidden = groups.size <= 2;
    const buckets = [...groups.get(which.value) || []].sort((a, b) => a[0] - b[0]);
    const at = (q) => { const v = quantile(q, buckets); return v == null ? "–" : v.over != null ? "over " + value(v.over) + unit : value(v.at.toPrecision(3)) + unit; };
    setText(quantiles, "p50 " + at(0.5) + "   p90 " + at(0.9) + "   p99 " + at(0.99));
    const all = buckets.length ? buckets[buckets.length - 1][1] : 0;
    chart.show(buckets.map(([bound, n], i) => {
      const c = n - (i ? buckets[i - 1][1] : 0);
      return { range: bound === Infinity ? "more" : "to " + value(bound) + unit, count: Math.max(0, c), text: count(Math.round(c)) + (all ? " (" + (c / all * 100).toFixed(c / all < 0.1 ? 1 : 0) + "%)" : "") };
    }));
    setText(remark, (all ? count(Math.round(all)) + " observations. " : "Nothing was observed in this time. ") + "Quantiles are estimated from the buckets; the raw buckets are in the list below." + (page.matching > page.items.length ? " Only the first " + count(SORTED) + " buckets are in this chart." : ""));
  };
  return node;
}

const operations = { sum: "the sum of all", max: "the greatest", min: "the least", mostrecent: "the one set last", all: "one for each process" };

// seriesDetail shows one series: its trend, and what made its value.
function seriesDetail() {
  const title = el("h2", { class: "mono" }), big = el("span", { class: "big" }), unit = el("span", { class: "dim" });
  const chart = line("chart", "trend of the value"), low = el("span"), mid = el("span"), high = el("span"), rule = el("p", { class: "dim" });
  let top = 1;
  const parts = table([
    { head: "counts", text: (c) => (c.counts ? "yes" : "no"), class: "opt" },
    { head: "value", class: "num", text: (c) => value(c.value) },
    {
      head: "part", class: "opt", show: (cell, c) => {
        let bar = cell.querySelector("i");
        if (!bar) cell.append(el("span", { class: "share" }, bar = el("i")));
        bar.style.width = (c.counts && top > 0 ? Math.min(100, Math.max(0, parse(c.value) / top * 100)) : 0).toFixed(1) + "%";
      },
    },
    { head: "from", class: "wrap", text: (c) => ({ archive: "archive", configuration: "configuration" }[c.kind] || c.state + " file") + (c.worker ? " of worker " + c.worker : "") + (c.pool ? " in " + c.pool : "") + (c.gains ? ", what was added after it was archived" : "") },
    { head: "where", class: "name opt", text: (c) => c.path || "" },
    { head: "remark", class: "wrap", text: (c) => (c.set > 1 ? "set " + time.ago(c.set) : "") + (c.why ? (c.set > 1 ? "; " : "") + "does not count: " + c.why : "") },
  ], { key: (c) => [c.kind, c.pool, c.worker, c.path].join("\n"), empty: "This is a metric of the daemon itself: no file is part of it." });
  const node = el("section", { class: "panel", "aria-label": "One series", id: "detail" }, title, el("p", {}, big, " ", unit), chart,
    el("div", { class: "axis" }, low, mid, high), el("h3", {}, "What made it"), rule, parts);
  node.begin = (series) => { setName(title, series); setText(big, ""); setText(rule, ""); parts.show([]); };
  node.refresh = async (series) => {
    const found = await tryAsk("series", { match: series, limit: 1 });
    const sample = found && found.items[0];
    if (!sample) { setText(big, "not served now"); setText(unit, ""); setText(rule, ""); parts.show([], "No series has these labels."); return; }
    memory.add(series, found.time, parse(sample.value));
    const shown = trend(sample.name, series), range = chart.show(shown), up = rises(sample.name);
    setText(big, value(sample.value));
    setText(unit, up && shown.length ? rate(shown[shown.length - 1][1]) + " per second" : "");
    setText(low, shown.length > 1 ? clock(shown[0][0]) : "the chart begins with the next look");
    setText(mid, shown.length > 1 ? rate(range.low) + " to " + rate(range.high) + (up ? " per second" : "") : "");
    setText(high, shown.length > 1 ? clock(shown[shown.length - 1][0]) : "");
    const answer = await tryAsk("explain", { series, limit: 1 }), e = answer && answer.items[0];
    if (!e) { setText(rule, ""); parts.show([]); return; }
    setText(rule, e.type + (e.mode ? " in mode " + e.mode + " (by " + e.mode_source + ")" : "") + (e.rule ? ", rule " + e.rule : "") + ": " + (operations[e.operation] || e.operation) + (e.cumulative ? ", with all buckets below" : "") + (e.relabeled_from ? "; relabelled from " + e.relabeled_from : ""));
    top = e.operation === "sum" ? parse(e.value) : e.contributions.reduce((n, c) => Math.max(n, parse(c.value)), -Infinity);
    parts.show(e.contributions);
  };
  return node;
}
