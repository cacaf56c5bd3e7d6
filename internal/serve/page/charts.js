// Charts, and what they remember of values.

import { el, setText, svg } from "./dom.js";

const KEPT_POINTS = 150;

// Memory keeps the last points of named values, as [time, value].
export class Memory {
  series = new Map();

  add(name, time, value) {
    let points = this.series.get(name);
    if (!points) this.series.set(name, points = []);
    const last = points[points.length - 1];
    if (!last || time > last[0]) points.push([time, value]);
    if (points.length > KEPT_POINTS) points.shift();
  }

  points(name) { return this.series.get(name) || []; }

  // values are the points that a chart can show.
  values(name) { return this.points(name).filter((p) => Number.isFinite(p[1])); }

  // rates are the increases per second of what only rises; a fall is a restart.
  rates(name) {
    const points = this.points(name), out = [];
    for (let i = 1; i < points.length; i++) {
      const rise = (points[i][1] - points[i - 1][1]) / (points[i][0] - points[i - 1][0]);
      if (Number.isFinite(rise)) out.push([points[i][0], Math.max(0, rise)]);
    }
    return out;
  }
}

// line makes a chart of 100 by 30; show returns the range of what it shows.
export function line(cls, label) {
  const node = svg("svg", { class: cls, viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img", "aria-label": label });
  const area = svg("path", { class: "area" }), path = svg("path", { class: "line" });
  node.append(area, path);
  node.show = (points) => {
    let low = Infinity, high = -Infinity, d = "";
    for (const [, v] of points) { low = Math.min(low, v); high = Math.max(high, v); }
    if (points.length > 1) {
      const from = points[0][0], width = points[points.length - 1][0] - from || 1;
      const bottom = low >= 0 && low < high / 2 ? 0 : low, height = high - bottom || 1, flat = high === bottom;
      d = points.map(([t, v], i) => (i ? "L" : "M") + ((t - from) / width * 100).toFixed(2) + " " + (flat ? (high === 0 ? 28 : 15) : 28 - (v - bottom) / height * 26).toFixed(2)).join("");
      low = bottom;
    }
    area.setAttribute("d", d && d + "L100 30L0 30Z");
    path.setAttribute("d", d);
    return { low, high };
  };
  return node;
}

// events makes a chart of what came (above the middle) and what went (below it), one bar for
// each moment.
export function events(label) {
  const node = svg("svg", { class: "chart small", viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img", "aria-label": label });
  const came = svg("path", { class: "came" }), went = svg("path", { class: "went" });
  node.append(svg("path", { class: "middle", d: "M0 15H100" }), came, went);
  node.show = (moments) => {
    const most = Math.max(1, ...moments.map((m) => Math.max(m.came, m.went)));
    const bars = (field, sign) => moments.map((m, i) => {
      const h = m[field] / most * 14;
      return h ? `M${(i / moments.length * 100).toFixed(2)} 15v${(sign * h).toFixed(2)}h${(80 / moments.length).toFixed(2)}v${(-sign * h).toFixed(2)}Z` : "";
    }).join("");
    came.setAttribute("d", bars("came", -1));
    went.setAttribute("d", bars("went", 1));
  };
  return node;
}

// bars shows how often each of some ranges was met.
export function bars() {
  const node = el("div", { class: "bars", role: "img", "aria-label": "how often each range was observed" });
  node.show = (items) => {
    const most = Math.max(...items.map((i) => i.count), 0) || 1;
    while (node.children.length > items.length) node.lastChild.remove();
    while (node.children.length < items.length) node.append(el("div", {}, el("span", { class: "range" }), el("span", { class: "track" }, el("i")), el("span", { class: "num" })));
    items.forEach((item, n) => {
      const [range, track, number] = node.children[n].children;
      setText(range, item.range);
      track.firstChild.style.width = (item.count / most * 100).toFixed(1) + "%";
      setText(number, item.text);
    });
  };
  return node;
}

// quantile of cumulative buckets, [bound, count] by rising bound, as Prometheus computes it;
// null if there is none.
export function quantile(q, buckets) {
  const all = buckets.length ? buckets[buckets.length - 1][1] : 0;
  if (!(all > 0)) return null;
  const rank = q * all, i = buckets.findIndex(([, n]) => n >= rank);
  const [bound, n] = buckets[i];
  if (bound === Infinity) return i > 0 ? { over: buckets[i - 1][0] } : null;
  if (i === 0 && bound <= 0) return { at: bound };
  const from = i > 0 ? buckets[i - 1][0] : 0, before = i > 0 ? buckets[i - 1][1] : 0;
  return { at: from + (bound - from) * (n > before ? (rank - before) / (n - before) : 1) };
}
