// Sections that are long lists: with a search, a sorted table and pages.

import { app, note, place } from "./app.js";
import { ask } from "./ask.js";
import { el, link, setClass, setText, table } from "./dom.js";
import { bytes, count, cpuTime, parse, plural, rate, span, time } from "./format.js";

export const PAGE = 50;

// lister makes such a section. empty(page, search) says why there is nothing.
// things(n) names so many of what is listed.
export function lister({ title, question, placeholder, sort, columns, key, empty, params, tools, changed, fetch, things }) {
  const given = place().query;
  const state = { search: given.get("search") || "", sort: given.get("sort") || sort, offset: Number(given.get("offset")) || 0 };
  const tell = () => note({ search: state.search, sort: state.sort === sort ? "" : state.sort, offset: state.offset || "" });
  const again = (offset) => { state.offset = Math.max(0, offset || 0); tell(); app.again(); };
  const search = el("input", { type: "search", placeholder, "aria-label": placeholder, autocomplete: "off", spellcheck: "false" });
  search.value = state.search;
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
      order.value = "";
      again();
    },
  };
  // On a phone there are no heads to click on.
  const order = el("select", { "aria-label": "Order", class: "phone" }, el("option", { value: "" }, "order"),
    ...columns.filter((c) => c.sort).map((c) => el("option", { value: (c.falling ? "-" : "") + c.sort }, "by " + c.head)));
  order.addEventListener("change", () => { state.sort = order.value || sort; again(); });
  const grid = table(columns, { key, sorting, empty: "" });
  const where = el("span", { class: "dim" });
  const back = el("button", { type: "button", onclick: () => again(state.offset - PAGE) }, "Previous");
  const on = el("button", { type: "button", onclick: () => again(state.offset + PAGE) }, "Next");
  return {
    title, search, state, grid,
    // reread takes what the address says, which may have been changed by hand or by a link.
    reread() {
      const query = place().query;
      state.search = query.get("search") || "";
      state.sort = query.get("sort") || sort;
      state.offset = Number(query.get("offset")) || 0;
      if (document.activeElement !== search) search.value = state.search;
    },
    node: el("div", {}, el("div", { class: "tools" }, search, ...(tools ? tools(again) : []), order, where, back, on), grid),
    async refresh() {
      const asked = { search: state.search, sort: state.sort, offset: state.offset || "", limit: PAGE, ...(params ? params() : {}) };
      const page = await (fetch ? fetch(asked) : ask(question, asked));
      if (page.items.length === 0 && state.offset > 0) { state.offset = 0; return this.refresh(); }
      if (changed) changed(page);
      grid.show(page.items, page.items.length ? "" : state.search ? "Nothing matches this search." : empty(page));
      const last = page.offset + page.items.length;
      setText(where, page.matching > page.items.length ? count(page.offset + 1) + "–" + count(last) + " of " + count(page.matching) : things(page.matching));
      back.disabled = page.offset === 0;
      on.disabled = last >= page.matching;
      back.hidden = on.hidden = page.matching <= PAGE;
    },
  };
}

// waiting says why there is nothing yet: what is missing comes first.
function waiting(otherwise) {
  const missing = app.status.pools.filter((p) => !p.up);
  if (missing.length) return "The directory " + missing[0].dir + " cannot be read" + (missing.length > 1 ? ", and " + (missing.length - 1) + " more" : "") + ". See Problems.";
  return otherwise;
}

export function workers() {
  return lister({
    title: "Workers", things: (n) => plural(n, "worker"), question: "workers", placeholder: "Search worker or pool", sort: "-alive",
    empty: () => waiting("There is no file of a worker. Workers appear here when they write their first value; the values of dead workers are in the archive."),
    key: (w) => (w.pool || "") + "\n" + w.id,
    columns: [
      { head: "worker", sort: "id", class: "name", show: (cell, w) => link(cell, w.id, "#worker/" + encodeURIComponent(w.pool || "") + "/" + encodeURIComponent(w.id), { "data-row": true }) },
      { head: "pool", sort: "pool", class: "opt", text: (w) => w.pool || "" },
      { head: "state", sort: "alive", falling: true, show: (cell, w) => { setText(cell, w.alive ? "alive" : "dead"); setClass(cell, w.alive ? "good" : "off"); } },
      { head: "liveness by", sort: "known_by", class: "opt", text: (w) => (w.failed === w.files ? "" : w.known_by) },
      { head: "age", sort: "created", class: "num", falling: true, text: (w) => (w.created ? span(time.now() - w.created) : "") },
      { head: "last change", sort: "changed", class: "num", falling: true, text: (w) => time.ago(w.changed) },
      { head: "CPU time", sort: "cpu_seconds", class: "num opt", falling: true, text: (w) => (w.process ? cpuTime(w.process.cpu_seconds) : "") },
      { head: "memory", sort: "resident_bytes", class: "num opt", falling: true, text: (w) => (w.process ? bytes(w.process.resident_bytes) : "") },
      { head: "files", sort: "files", class: "num opt", falling: true, text: (w) => count(w.files) + (w.failed ? " (" + w.failed + " unreadable)" : "") },
      { head: "entries", sort: "entries", class: "num", falling: true, text: (w) => count(w.entries) },
      { head: "bytes", sort: "used_bytes", class: "num opt", falling: true, text: (w) => bytes(w.used_bytes) },
    ],
  });
}

export const fileColumns = [
  { head: "file", sort: "path", class: "name", text: (f) => f.path },
  { head: "kind", class: "opt", text: (f) => (f.type + " " + (f.mode || "")).trim() },
  { head: "state", sort: "state", show: (cell, f) => { setText(cell, f.state); setClass(cell, f.state === "failed" ? "error" : f.state === "alive" ? "good" : "off"); } },
  { head: "liveness by", class: "opt", text: (f) => f.known_by },
  { head: "age", sort: "created", class: "num opt", falling: true, text: (f) => (f.created ? span(time.now() - f.created) : "") },
  { head: "last change", sort: "changed", class: "num opt", falling: true, text: (f) => time.ago(f.changed) },
  { head: "entries", sort: "entries", class: "num", falling: true, text: (f) => count(f.entries) },
  { head: "bytes", sort: "used_bytes", class: "num", falling: true, text: (f) => bytes(f.used_bytes) },
];

const earlier = new Map(); // family to [time, total], for rates

export function metrics() {
  const rates = new Map(), given = place().query;
  const choice = (name, label, options) => {
    const node = el("select", { "aria-label": label, "data-name": name }, ...options.map(([v, text]) => el("option", { value: v }, text)));
    if (options.some(([v]) => v === given.get(name))) node.value = given.get(name);
    return node;
  };
  const type = choice("type", "Type", [["", "all types"], ...["counter", "gauge", "histogram", "summary"].map((t) => [t, t])]);
  const whose = choice("own", "Whose metrics", [["false", "of the workers"], ["true", "the daemon's own"], ["all", "all"]]);
  return lister({
    title: "Metrics", things: (n) => plural(n, "family", "families"), question: "families", placeholder: "Search name or help", sort: "name",
    empty: () => (type.value ? "There is no metric of this type." : waiting("No worker has written a metric yet.")),
    key: (f) => (f.own ? "own\n" : "") + f.name,
    tools: (again) => {
      for (const c of [whose, type]) c.addEventListener("change", () => { note({ [c.dataset.name]: c.selectedIndex ? c.value : "" }); again(); });
      return [whose, type];
    },
    params: () => ({ type: type.value, own: whose.value === "all" ? "" : whose.value }),
    changed(page) {
      for (const f of page.items) {
        if (f.total == null) continue;
        const before = earlier.get(f.name), total = parse(f.total);
        if (!before || page.time - before[0] > 30) { earlier.set(f.name, [page.time, total]); continue; }
        if (page.time - before[0] >= 1.5) {
          rates.set(f.name, Math.max(0, (total - before[1]) / (page.time - before[0])));
          earlier.set(f.name, [page.time, total]);
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
