// How numbers, sizes and times are spelled.

const whole = new Intl.NumberFormat("en");
export const count = (n) => whole.format(n);

export function plural(n, one, many) { return count(n) + " " + (n === 1 ? one : many || one + "s"); }

// A number and its unit stay in one line.
const SPACE = "\u00a0";

export function bytes(n) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (n < 1024) return (unit === "B" || n >= 100 ? Math.round(n) : n.toFixed(1)) + SPACE + unit;
    n /= 1024;
  }
  return n.toFixed(1) + SPACE + "TiB";
}

// parse reads a value as the API spells it.
export const parse = (text) => Number(String(text).replace("Inf", "Infinity"));

export function value(text) {
  const n = parse(text);
  if (!Number.isFinite(n)) return String(text);
  if (Number.isInteger(n) && Math.abs(n) < 1e15) return count(n);
  return Math.abs(n) >= 1e-4 && Math.abs(n) < 1e9 ? new Intl.NumberFormat("en", { maximumSignificantDigits: 7 }).format(n) : n.toExponential(4);
}

export function rate(n) {
  if (n == null || !Number.isFinite(n)) return "";
  return new Intl.NumberFormat("en", { maximumSignificantDigits: 3 }).format(n);
}

export function span(seconds) {
  seconds = Math.max(0, Math.round(seconds));
  const parts = [[86400, "d"], [3600, "h"], [60, "m"], [1, "s"]];
  const i = parts.findIndex(([size]) => seconds >= size);
  if (i < 0) return "0s";
  const [size, unit] = parts[i], next = parts[i + 1];
  const rest = next ? Math.floor((seconds % size) / next[0]) : 0;
  return Math.floor(seconds / size) + unit + (rest ? " " + rest + next[1] : "");
}

export const duration = (s) => (s < 0.001 ? (s * 1e6).toFixed(0) + SPACE + "µs" : s < 1 ? (s * 1e3).toFixed(1) + SPACE + "ms" : s.toFixed(2) + SPACE + "s");
export const cpuTime = (s) => (s < 10 ? s.toFixed(2) + " s" : s < 60 ? s.toFixed(1) + " s" : span(s));
export const clock = (t) => new Date(t * 1000).toLocaleTimeString();

// time is the daemon's clock, which may differ from ours by skew seconds.
export const time = {
  skew: 0,
  now() { return Date.now() / 1000 + this.skew; },
  ago(t) { return t ? span(this.now() - t) + " ago" : ""; },
};
