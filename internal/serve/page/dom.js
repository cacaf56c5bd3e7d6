// Making and changing nodes. Whatever workers have written gets into the document as text
// only: nothing here makes markup of a string.

// el makes an element. Children are nodes or text.
export function el(tag, attrs, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attrs || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((c) => c != null));
  return node;
}

export function svg(tag, attrs) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attrs)) node.setAttribute(name, value);
  return node;
}

export function setText(node, text) {
  text = text == null ? "" : String(text);
  if (node.textContent !== text) node.textContent = text;
}

export function setClass(node, name) { if (node.className !== name) node.className = name; }

// setName sets a text that may be long and has no spaces. It may be broken after a mark, and
// not in the middle of a word.
export function setName(node, text) {
  text = text == null ? "" : String(text);
  if (node.textContent === text) return;
  node.replaceChildren(...text.split(/(?<=[_/.,:{}=\-])/).flatMap((part) => [part, el("wbr")]));
}

// link has a cell show one link.
export function link(cell, text, href, attrs) {
  let a = cell.firstElementChild;
  if (!a) cell.append(a = el("a", attrs));
  setName(a, text);
  if (a.getAttribute("href") !== href) a.setAttribute("href", href);
  return a;
}

// facts shows names and values. A value is a text or a function of the node that shows it.
// What is null or empty is left out.
export function facts() {
  const dl = el("dl");
  let names = null;
  dl.show = (list) => {
    list = list.filter((f) => f[1] != null && f[1] !== "");
    const now = list.map((f) => f[0]).join("\n");
    if (now !== names) {
      names = now;
      dl.replaceChildren(...list.flatMap((f) => [el("dt", {}, f[0]), el("dd")]));
    }
    list.forEach(([, value, kind], i) => {
      const dd = dl.children[2 * i + 1];
      setClass(dd, kind || "");
      if (kind === "mono") setName(dd, value); else setText(dd, value);
    });
  };
  return dl;
}

// list keeps one node for each item, in the order of the items.
export function list(parent, make, key) {
  const nodes = new Map();
  return (items) => {
    const seen = new Set();
    let place = parent.firstElementChild;
    for (const item of items) {
      const id = key(item);
      if (seen.has(id)) continue;
      seen.add(id);
      let node = nodes.get(id);
      if (!node) nodes.set(id, node = make(item));
      if (node === place) place = place.nextElementSibling;
      else parent.insertBefore(node, place);
      node.show(item);
    }
    for (const [id, node] of nodes) if (!seen.has(id)) { node.remove(); nodes.delete(id); }
  };
}

// table shows items in rows that stay the same nodes as long as their key does, so that
// neither the focus nor the place on the page is lost. A column has a head, maybe a sort
// field, and either text(item) or show(cell, item, row). On a phone each row is a card, in
// which the heads stand before the values.
export function table(columns, { key, sorting, empty }) {
  const body = el("tbody");
  const head = el("tr", {}, ...columns.map((c) => {
    const th = el("th", { scope: "col", class: c.class });
    if (c.sort && sorting) {
      th.append(el("button", { type: "button", onclick: () => sorting.choose(c.sort, c.falling) }, c.head));
    } else th.append(c.head);
    return th;
  }));
  const makeRow = () => {
    const row = el("tr", {}, ...columns.map((c) => el("td", { class: c.class, "data-head": c.head })));
    row.show = (item) => columns.forEach((c, i) => {
      const cell = row.children[i];
      if (c.show) c.show(cell, item, row);
      else if ((c.class || "").includes("name")) setName(cell, c.text(item));
      else setText(cell, c.text(item));
    });
    return row;
  };
  const rows = list(body, makeRow, key);
  const nothing = el("p", { class: "empty", hidden: true });
  const whole = el("table", {}, el("thead", {}, head), body);
  const box = el("div", { class: "panel flush" }, el("div", { class: "scroll" }, whole), nothing);
  // show takes the words for an empty table, where they depend on the answer.
  box.show = (items, words) => {
    rows(items);
    whole.hidden = items.length === 0;
    nothing.hidden = items.length > 0;
    setText(nothing, words || empty);
    if (sorting) columns.forEach((c, i) => {
      if (!c.sort) return;
      const now = sorting.sort === c.sort ? "ascending" : sorting.sort === "-" + c.sort ? "descending" : null;
      if (now) head.children[i].setAttribute("aria-sort", now); else head.children[i].removeAttribute("aria-sort");
    });
  };
  return box;
}

// number is a large figure with a label and a remark; it can be a link.
export function number(label, href) {
  const big = el("b"), small = el("small");
  const node = el(href ? "a" : "div", { class: "number", href }, el("span", {}, label), big, small);
  node.show = (text, more, kind) => { setText(big, text); setText(small, more); setClass(big, kind || ""); };
  return node;
}

// meter shows how much of something is used.
export function meter() {
  const bar = el("i"), node = el("span", { class: "meter" }, bar);
  node.show = (used, total) => {
    const part = total ? used / total : 0;
    bar.style.width = (part * 100).toFixed(1) + "%";
    setClass(node, "meter" + (part > 0.95 ? " error" : part > 0.9 ? " warning" : ""));
  };
  return node;
}
