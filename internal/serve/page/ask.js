// Asking the daemon.

import { time } from "./format.js";

// Refused is an answer that is an error, Unreachable is no answer.
export class Refused extends Error {}
export class Unreachable extends Error {}

export async function ask(question, params) {
  const query = new URLSearchParams();
  for (const [name, v] of Object.entries(params || {})) if (v !== "" && v != null) query.set(name, v);
  const text = query.toString();
  let response;
  // The browser sends the ETag of what it has, and takes that when nothing has changed.
  try { response = await fetch("api/v1/" + question + (text ? "?" + text : ""), { signal: AbortSignal.timeout(15000) }); } catch (err) { throw new Unreachable(err.message); }
  const date = Date.parse(response.headers.get("Date") || "");
  if (date && Math.abs(date / 1000 - time.now()) > 2) time.skew = date / 1000 - Date.now() / 1000;
  let answer;
  try { answer = await response.json(); } catch { throw new Unreachable("the answer, status " + response.status + ", is not the daemon's"); }
  if (answer.status !== "success") throw new Refused(answer.error || "status " + response.status);
  return answer.data;
}

// tryAsk is ask for what may be missing: null then.
export async function tryAsk(question, params) {
  try { return await ask(question, params); } catch (err) { if (err instanceof Refused) return null; throw err; }
}
