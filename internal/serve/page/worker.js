// One worker, and one pool.

import { app } from "./app.js";
import { ask } from "./ask.js";
import { el, facts, link, meter, setClass, setName, setText, table } from "./dom.js";
import { bytes, count, cpuTime, plural, span, time } from "./format.js";
import { fileColumns, lister } from "./lists.js";

export function worker(pool, id) {
  const about = facts(), process = facts();
  const unseen = el("p", { class: "dim" }, "Its process cannot be seen from here.");
  const panel = el("section", { class: "panel columns" }, el("div", {}, about), el("div", {}, el("h3", {}, "Process"), process, unseen));
  const files = table(fileColumns, { key: (f) => f.path, empty: "There is no file of a worker with this ID. Either there was none, or the worker is dead and its values are in the archive." });
  const values = lister({
    title: "Worker " + id, things: (n) => plural(n, "value"), question: "values", placeholder: "Search its values", sort: "series",
    empty: () => "There is no value of a worker with this ID.",
    key: (v) => v.path + "\n" + v.series, params: () => ({ pool, worker: id }),
    columns: [
      { head: "series", sort: "series", class: "name", text: (v) => v.series },
      { head: "type", sort: "type", class: "opt", text: (v) => (v.type + " " + (v.mode || "")).trim() },
      { head: "value", sort: "value", class: "num", falling: true, text: (v) => v.value },
    ],
  });
  values.node.prepend(el("h2", {}, el("a", { href: "#workers" }, "Workers"), " / " + (pool ? pool + " / " : "") + id), panel, el("h3", {}, "Files"), files, el("h3", {}, "What it counts"));
  values.parent = "workers";
  const inner = values.refresh.bind(values);
  values.refresh = async () => {
    await inner();
    files.show((await ask("files", { pool, worker: id, limit: 200 })).items);
    const found = (await ask("workers", { pool, search: id, limit: 200 })).items.find((w) => w.id === id && (w.pool || "") === pool);
    panel.hidden = !found;
    if (!found) return;
    const p = found.process;
    unseen.hidden = Boolean(p);
    process.hidden = !p;
    if (p) process.show([
      ["pid", String(p.pid)], ["command", p.command, "mono"], ["running for", span(time.now() - p.started)], ["CPU time", cpuTime(p.cpu_seconds)],
      ["memory", bytes(p.resident_bytes) + (p.proportional_bytes == null ? "" : ", " + bytes(p.proportional_bytes) + " if what is shared counts once")],
      ["threads", p.threads ? count(p.threads) : ""], ["descriptors", p.open_fds < 0 ? "may not be read" : count(p.open_fds)],
      ["slot", p.slot == null ? "" : String(p.slot)],
    ]);
    about.show([
      ["state", found.alive ? "alive" : "dead", found.alive ? "good" : ""], ["liveness by", found.failed === found.files ? "" : found.known_by],
      ["age", found.created ? span(time.now() - found.created) : ""], ["last change", time.ago(found.changed)],
      ["files", count(found.files)], ["unreadable", found.failed ? count(found.failed) : "", "error"],
      ["entries", count(found.entries)], ["size", bytes(found.used_bytes) + " used of " + bytes(found.size_bytes)],
    ]);
  };
  return values;
}

// poolPanel shows a pool: its directory, how deaths are known, room and archive.
export function poolPanel() {
  const title = el("h2"), path = el("p", { class: "path" }), where = el("p", { class: "dim" }), error = el("p", { class: "problem error" }), dir = facts(), life = facts(), space = facts(), archive = facts(), bar = meter();
  const node = el("section", { class: "panel" }, title, path, where, error, el("div", { class: "columns" },
    el("div", {}, el("h3", {}, "Directory"), dir), el("div", {}, el("h3", {}, "Liveness"), life),
    el("div", {}, el("h3", {}, "Space"), bar, space), el("div", {}, el("h3", {}, "Archive"), archive)));
  node.show = (p) => {
    setText(title, "Pool " + p.name);
    title.hidden = !p.name;
    setName(path, p.dir);
    path.title = p.dir;
    error.hidden = !p.error;
    setText(error, p.error);
    setText(where, origin(p));
    dir.show([
      ["state", poolState(p), poolKind(p)],
      ["files", count(p.files.alive + p.files.dead + p.files.staged + p.files.removed + p.files.failed)],
      ["unreadable", p.files.failed ? count(p.files.failed) : "", "error"],
      ["foreign", p.files.foreign ? count(p.files.foreign) : ""],
      ["entries", count(p.entries)], ["series", count(p.series)], ["file bytes", bytes(p.used_bytes) + " used of " + bytes(p.size_bytes)],
    ]);
    const method = p.liveness.method;
    life.show([
      ["alive", count(p.workers.alive)], ["dead", count(p.workers.dead)],
      ["method", p.up ? { lease: "read lease", proc: "/proc", none: "none: every file counts as alive" }[method] || method : "", method === "none" ? "warning" : ""],
      ["file system", p.liveness.file_system], ["reason", p.liveness.reason],
    ]);
    const fs = p.file_system;
    bar.hidden = !fs;
    if (fs) bar.show(fs.total_bytes - fs.free_bytes, fs.total_bytes);
    space.show(fs ? [
      ["free", bytes(fs.free_bytes) + " of " + bytes(fs.total_bytes)],
      ["inodes free", fs.total_inodes ? count(fs.free_inodes) + " of " + count(fs.total_inodes) : ""],
    ] : [["state", "unknown: the directory cannot be read"]]);
    const a = p.archive;
    archive.show([
      ["state", archiveState(p), archiveKind(p)],
      ["archived", plural(a.folded_files, "file")], ["last time", time.ago(a.last_fold)], ["series", count(a.series)],
      ["waiting", a.awaiting ? plural(a.awaiting, "file") : ""],
    ]);
  };
  return node;
}

// origin says where a pool was found and what tells it apart.
function origin(p) {
  const labels = Object.entries(p.labels || {}).map(([name, v]) => name + "=" + v).join(", ");
  const from = { pattern: "found by a pattern", processes: "found by its processes", kubelet: "found by its pod" }[p.source] || "";
  return [from, labels].filter(Boolean).join(": ");
}

// poolState says whether a pool is there; one that has gone is served for a while.
export function poolState(p) {
  if (p.vanished) return "gone " + time.ago(p.vanished) + ", removed in " + span(Math.max(0, p.until - time.now()));
  return p.up ? "watched" : p.error ? "cannot be read" : "waiting";
}

export function poolKind(p) { return p.vanished ? "off" : p.up ? "good" : "error"; }

export const poolColumns = [
  { head: "pool", sort: "name", class: "name", show: (cell, p) => link(cell, p.name || p.dir, "#pool/" + encodeURIComponent(p.name), { "data-row": true }) },
  { head: "state", sort: "vanished", falling: true, show: (cell, p) => { setText(cell, poolState(p)); setClass(cell, poolKind(p)); } },
  { head: "problems", sort: "trouble", class: "num", falling: true, show: (cell, p) => { setText(cell, p.problems ? count(p.problems) : ""); setClass(cell, "num " + (p.trouble || "")); } },
  { head: "alive", sort: "alive", class: "num", falling: true, text: (p) => count(p.workers.alive) },
  { head: "dead", sort: "dead", class: "num opt", falling: true, text: (p) => count(p.workers.dead) },
  { head: "series", sort: "series", class: "num", falling: true, text: (p) => count(p.series) },
  { head: "free", class: "num opt", text: (p) => (p.file_system && p.file_system.total_bytes ? (100 * p.file_system.free_bytes / p.file_system.total_bytes).toFixed(0) + "%" : "") },
  { head: "archive", class: "opt", show: (cell, p) => { setText(cell, archiveState(p)); setClass(cell, "opt " + archiveKind(p)); } },
  { head: "from", sort: "source", class: "opt", text: (p) => p.source },
  { head: "labels", class: "wrap opt", text: (p) => Object.entries(p.labels || {}).map(([name, v]) => name + "=" + v).join(" ") },
];

// pools is the list of all pools. Those with problems come first.
export function pools() {
  const all = lister({
    title: "Pools", things: (n) => plural(n, "pool"), question: "pools", placeholder: "Search name, directory or label", sort: "-trouble",
    empty: () => "There is no pool yet. Pools appear here when a directory, a process or a pod with source files is found.",
    key: (p) => p.name, columns: poolColumns,
  });
  all.parent = "overview";
  all.node.prepend(el("h2", {}, el("a", { href: "#overview" }, "Overview"), " / Pools"));
  return all;
}

// archiveState says how an archive is; of a directory that is not there it says nothing bad.
export function archiveState(p) {
  if (p.archive.state === "read-only") return "off (--archive.disable)";
  if (p.archive.state === "closed" && !p.up) return "opens when the directory can be read";
  return p.archive.state;
}

export function archiveKind(p) {
  if (p.archive.state === "open") return "good";
  return p.archive.state === "read-only" || !p.up ? "" : "error";
}

export function pool(name) {
  const panel = poolPanel(), gone = el("p", { class: "empty", hidden: true }, "There is no pool of this name.");
  return {
    title: "Pool " + name, parent: "overview",
    node: el("div", {}, el("h2", {}, el("a", { href: "#overview" }, "Overview"), " / " + name), gone, panel,
      el("p", {}, el("a", { href: "#workers?search=" + encodeURIComponent(name), "data-row": true }, "Its workers"))),
    async refresh() {
      const p = app.status.pools.find((p) => p.name === name);
      gone.hidden = Boolean(p);
      panel.hidden = !p;
      if (p) panel.show(p);
    },
  };
}
