// What the sections share: the daemon's last answer, the address and how to ask again.

export const app = {
  status: null, // the last answer of api/v1/status
  again() {},   // asks at once; set by page.js
};

// place is the section in the address and what it is asked to show: #metrics?search=http is
// ["metrics"] and {search: "http"}.
export function place() {
  const [path, query] = (location.hash.slice(1) || "overview").split(/\?(.*)/s);
  const parts = path.split("/").map((p) => { try { return decodeURIComponent(p); } catch { return p; } });
  return { path, parts, query: new URLSearchParams(query || "") };
}

// address is the address of a section with what it is asked to show.
export function address(path, params) {
  const query = new URLSearchParams();
  for (const [name, v] of Object.entries(params || {})) if (v !== "" && v != null) query.set(name, v);
  const text = query.toString();
  return "#" + path + (text ? "?" + text : "");
}

// note writes what is shown into the address, so that it can be passed on and survives a reload.
export function note(params) {
  const here = place();
  for (const [name, v] of Object.entries(params)) if (v !== "" && v != null) here.query.set(name, v); else here.query.delete(name);
  const to = address(here.path, Object.fromEntries(here.query));
  if (to !== location.hash) history.replaceState(null, "", to);
}
