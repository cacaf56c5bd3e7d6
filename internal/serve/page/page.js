// The status page of aggregatord. It asks /api/v1 every two seconds for what is on the
// screen and changes what differs. Whatever workers have written gets into the document as
// text only: nothing here makes markup of a string.
"use strict";

const INTERVAL = 2000, LONGEST_WAIT = 30000, KEPT_POINTS = 150, PAGE = 50;

// ---- Making and changing nodes

// el makes an element. Children are nodes or text.
function el(tag, attrs, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attrs || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((c) => c != null));
  return node;
}

function svg(tag, attrs) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attrs)) node.setAttribute(name, value);
  return node;
}

function setText(node, text) { if (node.textContent !== text) node.textContent = text; }
function setClass(node, name) { if (node.className !== name) node.className = name; }

// facts shows names and values, and keeps the nodes as long as the names stay.
function facts() {
  const dl = el("dl");
  let names = "";
  dl.show = (list) => {
    list = list.filter((f) => f[1] != null && f[1] !== "");
    const now = list.map((f) => f[0]).join("\n");
    if (now !== names) {
      names = now;
      dl.replaceChildren(...list.flatMap((f) => [el("dt", {}, f[0]), el("dd")]));
    }
    list.forEach(([, value, kind], i) => {
      const dd = dl.children[2 * i + 1];
      setText(dd, value);
      setClass(dd, kind || "");
    });
  };
  return dl;
}

// table shows items in rows that stay the same nodes as long as their key does, so that
// neither the focus nor the place on the page is lost. A column has a head, maybe a sort
// field, and either text(item) or show(cell, item).
function table(columns, { key, sorting, empty }) {
  const body = el("tbody"), rows = new Map();
  const head = el("tr", {}, ...columns.map((c) => {
    const th = el("th", { scope: "col", class: c.class });
    if (c.sort && sorting) {
      th.append(el("button", { type: "button", onclick: () => sorting.choose(c.sort, c.falling) }, c.head));
    } else th.append(c.head);
    return th;
  }));
  const nothing = el("p", { class: "empty", hidden: true }, empty);
  const box = el("div", { class: "panel flush" }, el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), body)), nothing);
  box.show = (items) => {
    const seen = new Set();
    let place = body.firstElementChild;
    for (const item of items) {
      const id = key(item);
      if (seen.has(id)) continue;
      seen.add(id);
      let row = rows.get(id);
      if (!row) {
        row = el("tr", {}, ...columns.map((c) => el("td", { class: c.class })));
        rows.set(id, row);
      }
      columns.forEach((c, i) => {
        const cell = row.children[i];
        if (c.show) c.show(cell, item, row); else setText(cell, c.text(item));
      });
      if (row === place) place = place.nextElementSibling;
      else body.insertBefore(row, place);
    }
    for (const [id, row] of rows) if (!seen.has(id)) { row.remove(); rows.delete(id); }
    nothing.hidden = items.length > 0;
    if (sorting) columns.forEach((c, i) => {
      if (!c.sort) return;
      const now = sorting.sort === c.sort ? "ascending" : sorting.sort === "-" + c.sort ? "descending" : null;
      if (now) head.children[i].setAttribute("aria-sort", now); else head.children[i].removeAttribute("aria-sort");
    });
  };
  return box;
}

// link has a cell show one link.
function link(cell, text, href, attrs) {
  let a = cell.firstElementChild;
  if (!a) cell.append(a = el("a", attrs));
  setText(a, text);
  if (a.getAttribute("href") !== href) a.setAttribute("href", href);
}

// ---- Words for numbers

const whole = new Intl.NumberFormat("en");
const count = (n) => whole.format(n);

function bytes(n) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (n < 1024) return (unit === "B" || n >= 100 ? Math.round(n) : n.toFixed(1)) + " " + unit;
    n /= 1024;
  }
  return n.toFixed(1) + " TiB";
}

function value(text) {
  const n = Number(text.replace("Inf", "Infinity"));
  if (!Number.isFinite(n)) return text;
  if (Number.isInteger(n) && Math.abs(n) < 1e15) return count(n);
  return Math.abs(n) >= 1e-4 && Math.abs(n) < 1e9 ? new Intl.NumberFormat("en", { maximumSignificantDigits: 7 }).format(n) : n.toExponential(4);
}

function rate(n) {
  if (n == null || !Number.isFinite(n)) return "";
  return new Intl.NumberFormat("en", { maximumSignificantDigits: 3 }).format(n);
}

function span(seconds) {
  seconds = Math.max(0, Math.round(seconds));
  const parts = [[86400, "d"], [3600, "h"], [60, "m"], [1, "s"]];
  const i = parts.findIndex(([size]) => seconds >= size);
  if (i < 0) return "0s";
  const [size, unit] = parts[i], next = parts[i + 1];
  const rest = next ? Math.floor((seconds % size) / next[0]) : 0;
  return Math.floor(seconds / size) + unit + (rest ? " " + rest + next[1] : "");
}

let skew = 0; // seconds that the daemon's clock is ahead of ours
const now = () => Date.now() / 1000 + skew;
const ago = (t) => (t ? span(now() - t) + " ago" : "");
const clock = (t) => new Date(t * 1000).toLocaleTimeString();
const duration = (s) => (s < 0.001 ? (s * 1e6).toFixed(0) + " µs" : s < 1 ? (s * 1e3).toFixed(1) + " ms" : s.toFixed(2) + " s");
const named = (pool) => pool || "";

// ---- Asking the daemon

class Refused extends Error {} // an answer that is an error

async function ask(question, params) {
  const query = new URLSearchParams();
  for (const [name, v] of Object.entries(params || {})) if (v !== "" && v != null) query.set(name, v);
  const text = query.toString();
  // The browser sends the ETag of what it has, and takes that when nothing has changed.
  const response = await fetch("api/v1/" + question + (text ? "?" + text : ""), { signal: AbortSignal.timeout(15000) });
  const date = Date.parse(response.headers.get("Date") || "");
  if (date && Math.abs(date / 1000 - now()) > 2) skew = date / 1000 - Date.now() / 1000;
  let answer;
  try { answer = await response.json(); } catch { throw new Error("the answer is not the daemon's (" + response.status + ")"); }
  if (answer.status !== "success") throw new Refused(answer.error || "status " + response.status);
  return answer.data;
}

// ---- What was seen of values, for charts

const histories = new Map(); // series to [[time, value], ...]

function remember(series, time, text, name) {
  const n = Number(text.replace("Inf", "Infinity"));
  let points = histories.get(series);
  if (!points) histories.set(series, points = []);
  const last = points[points.length - 1];
  if (!last || time > last[0]) points.push([time, n]);
  points.name = name;
  if (points.length > KEPT_POINTS) points.shift();
}

const rises = (name) => /_(total|count|sum|bucket)$/.test(name);

// course is what a chart shows: increases per second of what only rises, else the values.
function course(name, series) {
  const points = histories.get(series) || [];
  if (!rises(name)) return points.filter((p) => Number.isFinite(p[1]));
  const out = [];
  for (let i = 1; i < points.length; i++) {
    const rise = (points[i][1] - points[i - 1][1]) / (points[i][0] - points[i - 1][0]);
    if (Number.isFinite(rise)) out.push([points[i][0], Math.max(0, rise)]);
  }
  return out;
}

// draw puts points into a chart of 100 by 30 and returns their range.
function draw(node, points) {
  if (!node.firstChild) node.append(svg("path", { class: "area" }), svg("path", { class: "line" }));
  let low = Infinity, high = -Infinity;
  for (const [, v] of points) { low = Math.min(low, v); high = Math.max(high, v); }
  let line = "", area = "";
  if (points.length > 1) {
    const from = points[0][0], width = points[points.length - 1][0] - from || 1;
    const bottom = low >= 0 && low < high / 2 ? 0 : low, height = high - bottom || 1;
    const flat = high === bottom;
    line = points.map(([t, v], i) => (i ? "L" : "M") + ((t - from) / width * 100).toFixed(2) + " " + (flat ? (high === 0 ? 28 : 15) : 28 - (v - bottom) / height * 26).toFixed(2)).join("");
    area = line + "L100 30L0 30Z";
    low = bottom;
  }
  node.children[0].setAttribute("d", area);
  node.children[1].setAttribute("d", line);
  return { low, high };
}

const spark = (cls) => svg("svg", { class: cls, viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img", "aria-label": "course of the value" });

// ---- Sections: each makes its nodes once, and refresh() asks and shows

function meter(used, total) {
  const bar = el("i"), node = el("span", { class: "meter" }, bar);
  node.show = (u, t) => {
    const part = t ? u / t : 0;
    bar.style.width = (part * 100).toFixed(1) + "%";
    setClass(node, "meter" + (part > 0.95 ? " error" : ""));
  };
  return node;
}

function poolPanel() {
  const title = el("h2"), dir = facts(), life = facts(), space = facts(), archive = facts(), bar = meter();
  const node = el("section", { class: "panel" }, title, el("div", { class: "columns" },
    el("div", {}, el("h3", {}, "Directory"), dir), el("div", {}, el("h3", {}, "Who lives"), life),
    el("div", {}, el("h3", {}, "Space"), bar, space), el("div", {}, el("h3", {}, "Archive"), archive)));
  node.show = (p) => {
    setText(title, "Pool " + p.name);
    title.hidden = !p.name;
    dir.show([
      ["path", p.dir, "mono"], ["state", p.up ? "watched" : p.error || "waiting", p.up ? "good" : "error"],
      ["files", count(p.files.alive + p.files.dead + p.files.staged + p.files.removed + p.files.failed)],
      ["unreadable", p.files.failed ? count(p.files.failed) : "", "error"],
      ["foreign", p.files.foreign ? count(p.files.foreign) : ""],
      ["entries", count(p.entries)], ["series", count(p.series)], ["file bytes", bytes(p.used_bytes) + " used of " + bytes(p.size_bytes)],
    ]);
    life.show([
      ["alive", count(p.workers.alive)], ["dead", count(p.workers.dead)],
      ["known by", { lease: "read lease", proc: "/proc", none: "nothing" }[p.liveness.method] || p.liveness.method, p.liveness.method === "none" ? "warning" : ""],
      ["file system", p.liveness.file_system], ["because", p.liveness.reason],
    ]);
    const fs = p.file_system;
    bar.hidden = !fs;
    if (fs) bar.show(fs.total_bytes - fs.free_bytes, fs.total_bytes);
    space.show(fs ? [
      ["free", bytes(fs.free_bytes) + " of " + bytes(fs.total_bytes)],
      ["inodes free", fs.total_inodes ? count(fs.free_inodes) + " of " + count(fs.total_inodes) : ""],
    ] : [["", "cannot be asked"]]);
    const a = p.archive;
    archive.show([
      ["state", a.state, a.state === "open" ? "good" : a.state === "read-only" ? "" : "error"],
      ["folded", count(a.folded_files) + " files"], ["last fold", ago(a.last_fold)], ["series", count(a.series)],
      ["waiting", a.awaiting ? count(a.awaiting) + " files" : ""],
    ]);
  };
  return node;
}

// list keeps one node for each item.
function list(parent, make, key) {
  const nodes = new Map();
  return (items) => {
    const seen = new Set();
    for (const item of items) {
      const id = key(item);
      seen.add(id);
      let node = nodes.get(id);
      if (!node) { nodes.set(id, node = make()); parent.append(node); }
      node.show(item);
    }
    for (const [id, node] of nodes) if (!seen.has(id)) { node.remove(); nodes.delete(id); }
  };
}

function problemNode() {
  const node = el("p");
  node.show = (p) => {
    setClass(node, "problem " + (p.severity === "error" ? "error" : "warning"));
    setText(node, (p.pool ? p.pool + ": " : "") + p.text);
  };
  return node;
}

function numberNode(label) {
  const big = el("b"), small = el("small");
  const node = el("div", { class: "number" }, el("span", {}, label), big, small);
  node.show = (text, more) => { setText(big, text); setText(small, more || ""); };
  return node;
}

function overview() {
  const problems = el("div"), pools = el("div");
  const workers = numberNode("Workers"), samples = numberNode("Samples served"), entries = numberNode("Entries merged"), cost = numberNode("Last merge"), folded = numberNode("Files archived");
  const showProblems = list(problems, problemNode, (p) => p.pool + "\n" + p.text), showPools = list(pools, poolPanel, (p) => p.name);
  return {
    title: "Overview",
    node: el("div", {}, problems, el("div", { class: "numbers" }, workers, samples, entries, cost, folded), pools),
    async refresh() {
      const s = status;
      showProblems(s.problems);
      const sum = (f) => s.pools.reduce((n, p) => n + f(p), 0);
      const dead = sum((p) => p.workers.dead), waiting = sum((p) => p.archive.awaiting);
      workers.show(count(sum((p) => p.workers.alive)), dead ? count(dead) + " dead" : "alive");
      samples.show(count(s.merge.samples), count(s.merge.families) + " families");
      entries.show(count(s.merge.entries), "of " + count(sum((p) => p.files.alive + p.files.dead + p.files.staged + p.files.removed)) + " files");
      cost.show(duration(s.merge.last_seconds), count(s.merge.passes) + " passes, " + count(s.merge.shared) + " shared");
      folded.show(count(sum((p) => p.archive.folded_files)), waiting ? count(waiting) + " waiting" : "none waiting");
      showPools(s.pools);
    },
  };
}

// lister is a section with a search, a sorted table and pages.
function lister({ title, question, placeholder, sort, columns, key, empty, params, tools, changed }) {
  const state = { search: "", sort, offset: 0 };
  const again = () => { state.offset = 0; poll.now(); };
  const search = el("input", { type: "search", placeholder, "aria-label": placeholder, autocomplete: "off", spellcheck: "false" });
  let typing;
  search.addEventListener("input", () => {
    state.search = search.value.trim();
    clearTimeout(typing);
    typing = setTimeout(again, 150);
  });
  const sorting = {
    get sort() { return state.sort; },
    choose(field, falling) {
      const first = falling ? "-" + field : field, other = falling ? field : "-" + field;
      state.sort = state.sort === first ? other : first;
      again();
    },
  };
  const grid = table(columns, { key, sorting, empty });
  const where = el("span", { class: "dim" });
  const back = el("button", { type: "button", onclick: () => { state.offset = Math.max(0, state.offset - PAGE); poll.now(); } }, "Previous");
  const on = el("button", { type: "button", onclick: () => { state.offset += PAGE; poll.now(); } }, "Next");
  return {
    title, search,
    node: el("div", {}, el("div", { class: "tools" }, search, ...(tools ? tools(again) : []), where, back, on), grid),
    async refresh() {
      const page = await ask(question, { search: state.search, sort: state.sort, offset: state.offset || "", limit: PAGE, ...(params ? params() : {}) });
      if (page.items.length === 0 && state.offset > 0) { state.offset = 0; return this.refresh(); }
      if (changed) changed(page);
      grid.show(page.items);
      const last = page.offset + page.items.length;
      setText(where, page.matching ? (page.matching > page.items.length ? count(page.offset + 1) + "–" + count(last) + " of " : "") + count(page.matching) : "none");
      back.disabled = page.offset === 0;
      on.disabled = last >= page.matching;
      back.hidden = on.hidden = page.matching <= PAGE;
    },
  };
}

function workers() {
  return lister({
    title: "Workers", question: "workers", placeholder: "Search worker or pool", sort: "-alive", empty: "No worker has written anything yet.",
    key: (w) => (w.pool || "") + "\n" + w.id,
    columns: [
      { head: "worker", sort: "id", class: "name", show: (cell, w) => link(cell, w.id, "#worker/" + encodeURIComponent(w.pool || "") + "/" + encodeURIComponent(w.id), { "data-row": true }) },
      { head: "pool", sort: "pool", class: "opt", text: (w) => named(w.pool) },
      { head: "state", sort: "alive", falling: true, show: (cell, w) => { setText(cell, w.alive ? "alive" : "dead"); setClass(cell, w.alive ? "good" : "off"); } },
      { head: "known by", sort: "known_by", class: "opt", text: (w) => w.known_by },
      { head: "age", sort: "created", class: "num", falling: true, text: (w) => (w.created ? span(now() - w.created) : "") },
      { head: "last change", sort: "changed", class: "num", falling: true, text: (w) => ago(w.changed) },
      { head: "files", sort: "files", class: "num opt", falling: true, text: (w) => count(w.files) + (w.failed ? " (" + w.failed + " unreadable)" : "") },
      { head: "entries", sort: "entries", class: "num", falling: true, text: (w) => count(w.entries) },
      { head: "bytes", sort: "used_bytes", class: "num opt", falling: true, text: (w) => bytes(w.used_bytes) },
    ],
  });
}

const fileColumns = [
  { head: "file", sort: "path", class: "name", text: (f) => f.path },
  { head: "kind", class: "opt", text: (f) => (f.type + " " + (f.mode || "")).trim() },
  { head: "state", sort: "state", show: (cell, f) => { setText(cell, f.state); setClass(cell, f.state === "failed" ? "error" : f.state === "alive" ? "good" : "off"); } },
  { head: "known by", class: "opt", text: (f) => f.known_by },
  { head: "age", sort: "created", class: "num opt", falling: true, text: (f) => (f.created ? span(now() - f.created) : "") },
  { head: "last change", sort: "changed", class: "num opt", falling: true, text: (f) => ago(f.changed) },
  { head: "entries", sort: "entries", class: "num", falling: true, text: (f) => count(f.entries) },
  { head: "bytes", sort: "used_bytes", class: "num", falling: true, text: (f) => bytes(f.used_bytes) },
];

function worker(pool, id) {
  const files = lister({
    title: "Worker " + id, question: "files", placeholder: "Search its files", sort: "path", empty: "This worker has no files any more: they are archived.",
    key: (f) => f.path, params: () => ({ pool, worker: id }), columns: fileColumns,
  });
  files.node.prepend(el("h2", {}, el("a", { href: "#workers" }, "Workers"), " / " + (pool ? pool + " / " : "") + id));
  files.parent = "workers";
  return files;
}

const earlier = new Map(); // family to [time, total], for rates

function metrics() {
  const rates = new Map();
  const type = el("select", { "aria-label": "Type" }, el("option", { value: "" }, "all types"), ...["counter", "gauge", "histogram", "summary"].map((t) => el("option", { value: t }, t)));
  const whose = el("select", { "aria-label": "Whose metrics" }, el("option", { value: "false" }, "of the workers"), el("option", { value: "true" }, "the daemon's own"), el("option", { value: "" }, "all"));
  return lister({
    title: "Metrics", question: "families", placeholder: "Search name or help", sort: "name", empty: "No metric is called or described like that.",
    key: (f) => (f.own ? "own\n" : "") + f.name,
    tools: (again) => {
      for (const choice of [whose, type]) choice.addEventListener("change", again);
      return [whose, type];
    },
    params: () => ({ type: type.value, own: whose.value }),
    changed(page) {
      const t = now();
      for (const f of page.items) {
        if (f.total == null) continue;
        const before = earlier.get(f.name), total = Number(f.total);
        if (!before || t - before[0] > 30) { earlier.set(f.name, [t, total]); continue; }
        if (t - before[0] >= 1.5) {
          rates.set(f.name, Math.max(0, (total - before[1]) / (t - before[0])));
          earlier.set(f.name, [t, total]);
        }
      }
    },
    columns: [
      { head: "family", sort: "name", class: "name", show: (cell, f) => link(cell, f.name, "#metric/" + encodeURIComponent(f.name), { "data-row": true }) },
      { head: "type", sort: "type", class: "opt", text: (f) => f.type + (f.unit ? " in " + f.unit : "") },
      { head: "mode", sort: "mode", class: "opt", text: (f) => (f.mode ? f.mode + (f.mode_source ? " (" + f.mode_source + (f.rule ? " " + f.rule : "") + ")" : "") : f.rule ? "rule " + f.rule : "") },
      { head: "series", sort: "series", class: "num", falling: true, text: (f) => count(f.series) },
      { head: "samples", sort: "samples", class: "num opt", falling: true, text: (f) => count(f.samples) },
      { head: "per second", class: "num", text: (f) => rate(rates.get(f.name)) },
      { head: "help", sort: "help", class: "help opt", show: (cell, f) => { setText(cell, f.help); cell.title = f.help; } },
    ],
  });
}

function metric(name) {
  let chosen = "";
  const head = el("h2", {}, el("a", { href: "#metrics" }, "Metrics"), " / " + name), help = el("p", { class: "dim" });
  const detail = seriesDetail();
  detail.hidden = true;
  const choose = (series) => {
    chosen = chosen === series ? "" : series;
    detail.hidden = !chosen;
    if (chosen) detail.begin(chosen);
    poll.now();
  };
  const series = lister({
    title: name, question: "series", placeholder: "Search in labels", sort: "", empty: "No series.",
    key: (s) => s.series, params: () => ({ family: name }),
    changed(page) { for (const s of page.items) remember(s.series, page.time, s.value, s.name); },
    columns: [
      {
        head: "series", class: "name", show: (cell, s, row) => {
          let b = cell.firstElementChild;
          if (!b) {
            cell.append(b = el("a", { href: location.hash, role: "button", "data-row": true }));
            b.addEventListener("click", (e) => { e.preventDefault(); choose(s.series); });
            b.addEventListener("keydown", (e) => { if (e.key === " ") { e.preventDefault(); choose(s.series); } });
          }
          setText(b, s.series);
          b.setAttribute("aria-expanded", String(chosen === s.series));
          setClass(row, chosen === s.series ? "open" : "");
        },
      },
      { head: "value", class: "num", text: (s) => value(s.value) },
      {
        head: "course", show: (cell, s) => {
          if (!cell.firstChild) cell.append(spark("spark"));
          draw(cell.firstChild, course(s.name, s.series));
        },
      },
    ],
  });
  series.node.prepend(head, help, detail);
  const inner = series.refresh.bind(series);
  series.refresh = async () => {
    await inner();
    const found = (await ask("families", { name })).items[0];
    setText(help, found ? found.help + " — " + found.type + (found.mode ? ", mode " + found.mode + " by " + (found.mode_source || "the daemon") : "") + (found.rule ? ", rule " + found.rule : "") : "This family is not served now.");
    if (chosen) await detail.refresh(chosen);
  };
  series.parent = "metrics";
  series.escape = () => { if (!chosen) return false; choose(chosen); return true; };
  return series;
}

// seriesDetail shows one series: its course, and what made its value.
function seriesDetail() {
  const title = el("h2", { class: "mono" }), big = el("span", { class: "big" }), unit = el("span", { class: "dim" });
  const chart = spark("chart"), low = el("span"), mid = el("span"), high = el("span"), rule = el("p", { class: "dim" });
  let top = 1;
  const parts = table([
    { head: "counts", text: (c) => (c.counts ? "yes" : "no"), class: "opt" },
    { head: "value", class: "num", text: (c) => value(c.value) },
    {
      head: "part", class: "opt", show: (cell, c) => {
        let bar = cell.querySelector("i");
        if (!bar) cell.append(el("span", { class: "share" }, bar = el("i")));
        bar.style.width = (c.counts && top > 0 ? Math.min(100, Math.max(0, Number(c.value) / top * 100)) : 0).toFixed(1) + "%";
      },
    },
    { head: "from", class: "wrap", text: (c) => ({ archive: "archive of the dead", configuration: "configuration" }[c.kind] || c.state + " file") + (c.worker ? " of worker " + c.worker : "") + (c.pool ? " in " + c.pool : "") + (c.gains ? ", what it gained since it was archived" : "") },
    { head: "where", class: "name opt", text: (c) => c.path || "" },
    { head: "remark", class: "wrap", text: (c) => (c.set > 1 ? "set " + ago(c.set) : "") + (c.why ? (c.set > 1 ? "; " : "") + "does not count: " + c.why : "") },
  ], { key: (c) => [c.kind, c.pool, c.worker, c.path].join("\n"), empty: "The daemon's own: nothing was merged." });
  const node = el("section", { class: "panel", "aria-label": "One series", id: "detail" }, title, el("p", {}, big, " ", unit), chart,
    el("div", { class: "axis" }, low, mid, high), el("h3", {}, "What made it"), rule, parts);
  node.begin = (series) => { setText(title, series); setText(big, ""); setText(rule, ""); parts.show([]); };
  node.refresh = async (series) => {
    const points = histories.get(series) || [];
    const name = points.name || "";
    const shown = course(name, series), range = draw(chart, shown);
    if (points.length) setText(big, value(String(points[points.length - 1][1]).replace("Infinity", "Inf")));
    setText(unit, rises(name) ? (shown.length ? rate(shown[shown.length - 1][1]) + " per second" : "") : "");
    setText(low, shown.length > 1 ? clock(shown[0][0]) : "the chart begins with the next look");
    setText(mid, shown.length > 1 ? rate(range.low) + " to " + rate(range.high) + (rises(name) ? " per second" : "") : "");
    setText(high, shown.length > 1 ? clock(shown[shown.length - 1][0]) : "");
    let e = null;
    try { e = (await ask("explain", { series, limit: 1 })).items[0]; } catch (err) { if (!(err instanceof Refused)) throw err; }
    if (!e) { setText(rule, ""); parts.show([]); return; }
    const how = { sum: "the sum of all", max: "the greatest", min: "the least", mostrecent: "the one set last", all: "one for each process" }[e.operation] || e.operation;
    setText(rule, e.type + (e.mode ? " in mode " + e.mode + " (by " + e.mode_source + ")" : "") + (e.rule ? ", rule " + e.rule : "") + ": " + how + (e.cumulative ? ", with all buckets below" : "") + (e.relabeled_from ? "; relabelled from " + e.relabeled_from : ""));
    top = e.operation === "sum" ? Number(e.value) : Math.max(...e.contributions.map((c) => Number(c.value)));
    parts.show(e.contributions);
  };
  return node;
}

function archive() {
  const pools = el("div");
  const make = () => {
    const title = el("h2"), left = facts(), right = facts(), error = el("p", { class: "problem error", hidden: true });
    const node = el("section", { class: "panel" }, title, error, el("div", { class: "columns" }, left, right));
    node.show = (p) => {
      const a = p.archive;
      setText(title, p.name ? "Pool " + p.name : p.dir);
      error.hidden = !a.error;
      setText(error, a.error || "");
      left.show([
        ["state", a.state, a.state === "open" ? "good" : a.state === "read-only" ? "" : "error"], ["path", a.path, "mono"], ["size", bytes(a.bytes)],
        ["series", count(a.series)], ["not saved yet", a.unsaved ? count(a.unsaved) + " series" : "", "warning"], ["made", ago(a.created)],
      ]);
      right.show([
        ["last fold", a.last_fold ? ago(a.last_fold) : "never"], ["folds", count(a.folds)], ["files folded", count(a.folded_files) + ", " + bytes(a.folded_bytes)],
        ["failures", count(a.errors), a.errors ? "error" : ""], ["waiting", count(a.awaiting) + " files"], ["being removed", count(a.removing) + " files"],
        ["reopened", a.reopened ? count(a.reopened) + " files" : ""], ["gauges expired", a.expired ? count(a.expired) + " workers" : ""],
      ]);
    };
    return node;
  };
  const show = list(pools, make, (p) => p.name);
  return { title: "Archive", node: pools, async refresh() { show(status.pools); } };
}

function problems() {
  const now = el("div"), fine = el("p", { class: "empty" }, "Nothing is wrong."), limits = facts(), reasons = facts();
  const showNow = list(now, problemNode, (p) => p.pool + "\n" + p.text);
  const files = table([...fileColumns.slice(0, 3).map(({ sort, ...c }) => c),
    { head: "why", class: "wrap", text: (f) => f.error || (f.left_out || []).map((r) => "entries left out: " + r).join(", ") }],
  { key: (f) => f.path, empty: "Every file can be read." });
  const conflicts = table([
    { head: "family", class: "name", text: (c) => c.family }, { head: "pool", class: "opt", text: (c) => named(c.pool) },
    { head: "served as", text: (c) => c.served }, { head: "left out", text: (c) => c.left_out }, { head: "series", class: "num", text: (c) => count(c.series) },
  ], { key: (c) => [c.family, c.pool, c.left_out].join("\n"), empty: "All files agree on types and modes." });
  return {
    title: "Problems",
    node: el("div", {}, now, fine, el("h2", {}, "Files that cannot be read, or not wholly"), files, el("h2", {}, "Files that disagree"), conflicts,
      el("div", { class: "columns" }, el("section", { class: "panel" }, el("h2", {}, "Since the start, by reason"), reasons), el("section", { class: "panel" }, el("h2", {}, "Limits in force"), limits))),
    async refresh() {
      showNow(status.problems);
      fine.hidden = status.problems.length > 0;
      const e = await ask("errors", { limit: 200 });
      files.show(e.files);
      conflicts.show(e.conflicts);
      const all = [];
      for (const p of status.pools) {
        const at = p.name ? p.name + ": " : "";
        for (const [reason, n] of Object.entries(p.file_errors)) all.push([at + "files, " + reason, count(n)]);
        for (const [reason, n] of Object.entries(p.entry_errors)) all.push([at + "entries, " + reason, count(n)]);
        if (p.archive.errors) all.push([at + "failed folds", count(p.archive.errors)]);
      }
      reasons.show(all.length ? all : [["none", "0"]]);
      const l = status.limits;
      limits.show([
        ["series per pool", count(l.series_per_pool)], ["series per family", count(l.series_per_family)], ["labels", count(l.labels)],
        ["label name", l.label_name_length ? count(l.label_name_length) + " bytes" : "as long as a key"], ["label value", l.label_value_length ? count(l.label_value_length) + " bytes" : "as long as a key"],
        ["key", bytes(l.key_bytes)], ["file", bytes(l.file_bytes)], ["open files", count(l.open_files)],
        ["series dropped by rules", status.merge.dropped ? count(status.merge.dropped) : ""], ["series expired by rules", status.merge.expired ? count(status.merge.expired) : ""],
      ]);
    },
  };
}

function config() {
  const about = facts(), text = el("pre"), file = el("section", { class: "panel" }, el("h2", {}, "Configuration file in force"), about, text), error = el("p", { class: "problem error", hidden: true });
  const settings = table([{ head: "flag", class: "name", text: (s) => s.name }, { head: "value", class: "name", text: (s) => s.value }], { key: (s) => s.name + "\n" + s.value, empty: "No flags." });
  return {
    title: "Configuration",
    node: el("div", {}, error, file, el("h2", {}, "Flags"), settings),
    async refresh() {
      const c = await ask("config");
      error.hidden = !c.error;
      setText(error, c.error ? "The file as it is now is not in force: " + c.error : "");
      file.hidden = !c.file;
      about.show([["file", c.file, "mono"], ["loaded", ago(c.loaded)], ["needs a restart", (c.restart_keys || []).join(", "), "warning"]]);
      setText(text, c.yaml || "");
      settings.show(c.settings);
    },
  };
}

// ---- Which section is shown

let status = null, section = null, shown = null;
const made = new Map();
const makers = { overview, workers, metrics, archive, problems, config };

function route() {
  const hash = location.hash.slice(1) || "overview";
  if (hash === "main") return; // the skip link
  const [name, ...rest] = hash.split("/");
  let parts;
  try { parts = rest.map(decodeURIComponent); } catch { parts = rest; }
  if (!made.has(hash)) {
    if (name === "metric" && parts[0]) made.set(hash, metric(parts[0]));
    else if (name === "worker" && parts.length === 2) made.set(hash, worker(parts[0], parts[1]));
    else if (makers[name]) made.set(hash, makers[name]());
    else { location.replace("#overview"); return; }
    // Pages of single things are not kept for ever.
    const single = [...made.keys()].filter((k) => k.includes("/"));
    if (single.length > 20) made.delete(single[0]);
  }
  section = made.get(hash);
  for (const a of document.querySelectorAll("nav a")) {
    if (a.getAttribute("href") === "#" + (section.parent || name)) {
      a.setAttribute("aria-current", "page");
      a.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else a.removeAttribute("aria-current");
  }
  poll.now();
}

const byId = (id) => document.getElementById(id);

function showHeader() {
  const errors = status.problems.some((p) => p.severity === "error"), n = status.problems.length;
  setClass(byId("dot"), "dot " + (errors ? "error" : n ? "warning" : "good"));
  setText(byId("state"), (status.ready ? n ? count(n) + (n === 1 ? " problem" : " problems") : "all is well" : "reading the files for the first time") + " · up " + span(now() - status.started));
  setText(byId("count-workers"), count(status.pools.reduce((sum, p) => sum + p.workers.alive + p.workers.dead, 0)));
  setText(byId("count-metrics"), count(status.merge.families));
  setText(byId("count-problems"), n ? count(n) : "");
  setClass(byId("count-problems"), "count" + (n ? " alert" : ""));
  setText(byId("build"), status.build.version);
  document.title = (n ? "(" + n + ") " : "") + section.title + " – aggregatord";
}

// ---- Asking again and again, more seldom while nobody answers

const poll = {
  timer: 0, running: false, wanted: false, failures: 0, since: 0,
  now() {
    if (this.running) { this.wanted = true; return; }
    clearTimeout(this.timer);
    this.run();
  },
  async run() {
    this.running = true;
    this.wanted = false;
    const asked = section;
    try {
      status = await ask("status");
      try { await asked.refresh(); } catch (err) {
        if (!(err instanceof Refused)) throw err;
        if (status.ready) throw err; // before that there are no values yet
      }
      this.failures = 0;
      if (asked === section) {
        if (shown !== section) {
          shown = section;
          byId("main").replaceChildren(section.node);
          window.scrollTo(0, 0);
        }
        showHeader();
      }
      byId("gone").hidden = true;
      document.body.classList.remove("stale");
    } catch (err) {
      if (this.failures++ === 0) this.since = Date.now();
      this.tell(err);
    }
    this.running = false;
    if (this.wanted) { this.run(); return; }
    this.wait(this.failures ? Math.min(LONGEST_WAIT, 500 * 2 ** this.failures) : INTERVAL);
  },
  wait(ms) {
    clearTimeout(this.timer);
    if (!document.hidden) this.timer = setTimeout(() => this.now(), ms);
  },
  tell(err) {
    const box = byId("gone");
    box.hidden = false;
    document.body.classList.add("stale");
    setClass(byId("dot"), "dot error");
    setText(byId("state"), "no answer");
    const wait = Math.min(LONGEST_WAIT, 500 * 2 ** this.failures);
    const what = err instanceof Refused ? "The daemon refuses: " + err.message : "The daemon has not answered since " + new Date(this.since).toLocaleTimeString();
    setText(box, what + ". What you see is from before. Trying again every " + span(Math.max(1, wait / 1000)) + ".");
  },
};

// ---- Keys and colours

function keys(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const field = event.target.closest("input, select, textarea");
  if (event.key === "Escape") {
    if (field && field.value && field.type === "search") { field.value = ""; field.dispatchEvent(new Event("input")); }
    else if (field) field.blur();
    else if (section && section.escape && section.escape()) return;
    else if (section && section.parent) location.hash = "#" + section.parent;
    return;
  }
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    if (field && field.tagName === "SELECT") return;
    const rows = [...document.querySelectorAll("main [data-row]")], at = rows.indexOf(document.activeElement);
    const next = rows[event.key === "ArrowDown" ? at + 1 : at - 1];
    if (at < 0 && !(field && event.key === "ArrowDown")) return;
    if (next) { event.preventDefault(); next.focus(); }
    else if (at === 0 && section.search) { event.preventDefault(); section.search.focus(); }
    return;
  }
  if (field) return;
  if (event.key === "/" && section && section.search) { event.preventDefault(); section.search.focus(); }
  const place = "123456".indexOf(event.key);
  if (event.key.length === 1 && place >= 0) location.hash = document.querySelectorAll("nav a")[place].getAttribute("href");
}

const themes = ["auto", "light", "dark"];
function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = name;
  setText(byId("theme"), name);
}
function storedTheme() { try { const t = localStorage.getItem("aggregatord-theme"); return themes.includes(t) ? t : "auto"; } catch { return "auto"; } }

theme(storedTheme());
byId("theme").addEventListener("click", () => {
  const next = themes[(themes.indexOf(byId("theme").textContent) + 1) % themes.length];
  theme(next);
  try { localStorage.setItem("aggregatord-theme", next); } catch { /* it holds until the page is left */ }
});
document.addEventListener("keydown", keys);
document.addEventListener("visibilitychange", () => { if (document.hidden) clearTimeout(poll.timer); else poll.now(); });
window.addEventListener("online", () => poll.now());
window.addEventListener("hashchange", route);
route();
