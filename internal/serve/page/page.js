// The status page of aggregatord. It asks /api/v1 every two seconds for what is on the screen
// and changes what differs. app.js has what the sections share, overview.js, lists.js,
// metric.js and worker.js are sections, and the small ones are here.

import { app, place } from "./app.js";
import { ask, Refused, Unreachable } from "./ask.js";
import { el, facts, list, setClass, setText, table } from "./dom.js";
import { bytes, count, plural, span, time } from "./format.js";
import { fileColumns, metrics, workers } from "./lists.js";
import { metric } from "./metric.js";
import { bySeverity, overview, problemNode } from "./overview.js";
import { archiveKind, archiveState, pool, pools, worker } from "./worker.js";

const INTERVAL = 2000, LONGEST_WAIT = 30000, KEPT_SECTIONS = 20;

function archive() {
  const pools = el("div");
  const make = () => {
    const title = el("h2"), left = facts(), right = facts(), error = el("p", { class: "problem error", hidden: true });
    const node = el("section", { class: "panel" }, title, error, el("div", { class: "columns" }, left, right));
    node.show = (p) => {
      const a = p.archive;
      setText(title, p.name ? "Pool " + p.name : p.dir);
      error.hidden = !a.error || !p.up;
      setText(error, a.error || "");
      left.show([
        ["state", archiveState(p), archiveKind(p)], ["path", a.path, "mono"], ["size", bytes(a.bytes)],
        ["series", count(a.series)], ["in memory only", a.unsaved ? count(a.unsaved) + " series" : "", "warning"], ["made", a.bytes ? time.ago(a.created) : ""],
      ]);
      right.show([
        ["last time", a.last_fold ? time.ago(a.last_fold) : "never"], ["batches", count(a.folds)], ["files archived", plural(a.folded_files, "file") + ", " + bytes(a.folded_bytes)],
        ["failures", count(a.errors), a.errors ? "error" : ""], ["waiting", plural(a.awaiting, "file")], ["being removed", plural(a.removing, "file")],
        ["reopened", a.reopened ? plural(a.reopened, "file") : ""], ["gauges expired", a.expired ? plural(a.expired, "worker") : ""],
        ...mirror(a.mirror),
      ]);
    };
    return node;
  };
  const show = list(pools, make, (p) => p.name);
  return { title: "Archive", node: pools, async refresh() { show(app.status.pools); } };
}

// mirror says who else reads the directory, where a mirror is kept.
function mirror(m) {
  if (!m) return [];
  return [
    ["mirror", m.open ? "kept" : "not kept", m.open ? "good" : "error"],
    ["reads by others", m.reads ? plural(m.reads, "time") + ", last " + time.ago(m.last_read) : "none"], ["longest read", m.reads ? (m.longest_read_seconds * 1000).toFixed(0) + " ms" : ""],
    ["waiting for readers", m.waiting_files ? plural(m.waiting_files, "file") : ""], ["moved while read", m.forced_files ? plural(m.forced_files, "file") : "", "warning"],
  ];
}

function problems() {
  const now = el("div"), fine = el("p", { class: "empty" }, "There is no problem."), limits = facts(), reasons = facts(), noReason = el("p", { class: "empty" }, "There was no error.");
  const showNow = list(now, problemNode, (p) => p.pool + "\n" + p.text);
  const files = table([...fileColumns.slice(0, 3).map(({ sort, ...c }) => c),
    { head: "why", class: "wrap", text: (f) => f.error || (f.left_out || []).map((r) => "entries left out: " + r).join(", ") }],
  { key: (f) => f.path, empty: "Every file that is there can be read." });
  const conflicts = table([
    { head: "family", class: "name", text: (c) => c.family }, { head: "pool", class: "opt", text: (c) => c.pool || "" },
    { head: "served as", text: (c) => c.served }, { head: "left out", text: (c) => c.left_out }, { head: "series", class: "num", text: (c) => count(c.series) },
  ], { key: (c) => [c.family, c.pool, c.left_out].join("\n"), empty: "All files agree on types and modes." });
  return {
    title: "Problems",
    node: el("div", {}, now, fine, el("h2", {}, "Files that cannot be read completely"), files, el("h2", {}, "Files that disagree"), conflicts,
      el("div", { class: "columns" }, el("section", { class: "panel" }, el("h2", {}, "Errors since the start, by reason"), reasons, noReason), el("section", { class: "panel" }, el("h2", {}, "Limits in force"), limits))),
    async refresh() {
      const status = app.status;
      showNow(bySeverity(status.problems));
      fine.hidden = status.problems.length > 0;
      const e = await ask("errors", { limit: 200 });
      const unread = status.pools.some((p) => p.up) ? "" : "No directory can be read.";
      files.show(e.files, unread);
      conflicts.show(e.conflicts, unread);
      const all = [];
      for (const p of status.pools) {
        const at = p.name ? p.name + ": " : "";
        for (const [reason, n] of Object.entries(p.file_errors)) all.push([at + "files, " + reason, count(n)]);
        for (const [reason, n] of Object.entries(p.entry_errors)) all.push([at + "entries, " + reason, count(n)]);
        if (p.archive.errors) all.push([at + "failed archive writes", count(p.archive.errors)]);
      }
      reasons.show(all);
      noReason.hidden = all.length > 0;
      const l = status.limits;
      limits.show([
        ["series per pool", count(l.series_per_pool)], ["series per family", count(l.series_per_family)], ["families per pool", count(l.families_per_pool)],
        ["keys and labels per pool", bytes(l.bytes_per_pool)], ["labels of a series", count(l.labels)],
        ["longest label name", l.label_name_length ? count(l.label_name_length) + " bytes" : "as long as a key"], ["longest label value", l.label_value_length ? count(l.label_value_length) + " bytes" : "as long as a key"],
        ["longest key", bytes(l.key_bytes)], ["largest file", bytes(l.file_bytes)], ["open files", count(l.open_files)],
        ["series dropped by rules", status.merge.dropped ? count(status.merge.dropped) : ""], ["series expired by rules", status.merge.expired ? count(status.merge.expired) : ""],
      ]);
    },
  };
}

function config() {
  const about = facts(), text = el("pre"), file = el("section", { class: "panel" }, el("h2", {}, "Configuration file in force"), about, text), error = el("p", { class: "problem error", hidden: true });
  const settings = table([{ head: "flag", class: "name", text: (s) => s.name }, { head: "value", class: "name", text: (s) => s.value || "not set" }], { key: (s) => s.name + "\n" + s.value, empty: "No flags." });
  return {
    title: "Configuration",
    node: el("div", {}, error, file, el("h2", {}, "Flags"), settings),
    async refresh() {
      const c = await ask("config");
      error.hidden = !c.error;
      setText(error, c.error ? "The file was changed and has a mistake, so the older one is in force: " + c.error : "");
      file.hidden = !c.file;
      about.show([["file", c.file, "mono"], ["loaded", time.ago(c.loaded)], ["needs a restart", (c.restart_keys || []).join(", "), "warning"]]);
      setText(text, c.yaml || "");
      settings.show(c.settings);
    },
  };
}

// ---- Which section is shown

let section = null, shown = null;
const made = new Map();
const makers = { overview, pools, workers, metrics, archive, problems, config };

// make makes the section that the address names, or returns null.
function make([name, ...parts]) {
  if (name === "metric" && parts[0]) return metric(parts.join("/"));
  if (name === "worker" && parts.length === 2) return worker(...parts);
  if (name === "pool" && parts.length === 1) return pool(parts[0]);
  return makers[name] && !parts.length ? makers[name]() : null;
}

function route() {
  const { path, parts } = place();
  if (path === "main") return; // the skip link
  if (!made.has(path)) {
    const fresh = make(parts);
    if (!fresh) { location.replace("#overview"); return; }
    made.set(path, fresh);
    // Pages of single things are not kept for ever.
    const single = [...made.keys()].filter((k) => k.includes("/"));
    if (single.length > KEPT_SECTIONS) made.delete(single[0]);
  } else if (made.get(path).reread) made.get(path).reread();
  section = made.get(path);
  for (const a of document.querySelectorAll("nav a")) {
    if (a.getAttribute("href") === "#" + (section.parent || parts[0])) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
  poll.now();
}

// present puts a section on the screen and the focus where it was when the section was left,
// or at its beginning.
function present() {
  if (shown === section) return;
  const main = byId("main"), before = document.activeElement;
  if (shown && main.contains(before)) shown.left = before;
  const moved = shown && (main.contains(before) || before === document.body);
  shown = section;
  main.replaceChildren(section.node);
  window.scrollTo(0, 0);
  if (!moved) return;
  if (section.left && section.left.isConnected) section.left.focus();
  else main.focus({ preventScroll: true });
}

const byId = (id) => document.getElementById(id);

function showHeader() {
  const status = app.status, errors = status.problems.some((p) => p.severity === "error"), n = status.problems.length;
  setClass(byId("dot"), "dot " + (errors ? "error" : n ? "warning" : "good"));
  setText(byId("state"), (status.ready ? n ? count(n) + (n === 1 ? " problem" : " problems") : "no problems" : "reading the files for the first time") + " · up " + span(time.now() - status.started).split(" ")[0]);
  setText(byId("count-workers"), count(status.pools.reduce((sum, p) => sum + p.workers.alive + p.workers.dead, 0)));
  setText(byId("count-metrics"), count(status.merge.families));
  setText(byId("count-problems"), n ? count(n) : "");
  setClass(byId("count-problems"), "count" + (errors ? " error" : n ? " warning" : ""));
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
      app.status = await ask("status");
      try { await asked.refresh(); } catch (err) {
        if (!(err instanceof Refused) || app.status.ready) throw err; // before that there are no values yet
      }
      this.failures = 0;
      if (asked === section) { present(); showHeader(); }
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
    const known = err instanceof Refused || err instanceof Unreachable;
    let what;
    if (err instanceof Refused) what = "The daemon refuses: " + err.message;
    else if (err instanceof Unreachable) what = "The daemon has not answered since " + new Date(this.since).toLocaleTimeString();
    else what = "This page has an error, and the daemon answers: " + err.message;
    if (!known) console.error(err);
    setClass(byId("dot"), "dot error");
    setText(byId("state"), known ? "no answer" : "error in the page");
    document.body.classList.toggle("stale", known);
    const wait = Math.min(LONGEST_WAIT, 500 * 2 ** this.failures);
    setText(byId("gone"), what + ". What you see is from before. Trying again every " + span(Math.max(1, wait / 1000)) + ".");
    byId("gone").hidden = false;
  },
};
app.again = () => poll.now();

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
    const rows = [...document.querySelectorAll("main [data-row]")].filter((r) => r.getClientRects().length), at = rows.indexOf(document.activeElement);
    const next = rows[event.key === "ArrowDown" ? at + 1 : at < 0 ? rows.length - 1 : at - 1];
    if (next && !(field && event.key === "ArrowUp")) { event.preventDefault(); next.focus(); }
    else if (at === 0 && section.search) { event.preventDefault(); section.search.focus(); }
    return;
  }
  if (field) return;
  if (event.key === "/" && section && section.search) { event.preventDefault(); section.search.focus(); }
  const number = "123456".indexOf(event.key);
  if (event.key.length === 1 && number >= 0) location.hash = document.querySelectorAll("nav a")[number].getAttribute("href");
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
