"use strict";
(() => {
  const holder = document.getElementById("data");
  if (!holder) return;
  const rows = JSON.parse(holder.textContent);
  for (const row of rows) {
    const both = row.score !== null && row.score_before !== null;
    row.change = both ? row.score - row.score_before : null;
    row.words_in = `${row.prompt}\n${row.before ?? ""}\n${row.after}`.toLowerCase();
  }
  const element = (id) => document.getElementById(id);
  const list = element("list"), more = element("more"), page = 20;
  let shown = page;

  const make = (kind, name, text) => {
    const made = document.createElement(kind);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));

  const side = (label, text) => {
    const box = make("div", "side");
    box.append(make("small", "", label), make("p", "", text));
    return box;
  };

  const card = (row) => {
    const item = make("li");
    item.append(make("p", "prompt", row.prompt));
    const sides = make("div", "sides");
    if (row.before !== null) sides.append(side("before (reference)", row.before));
    sides.append(side(row.before === null ? "answer" : "after", row.after));
    const facts = make("p", "facts");
    if (row.score !== null) {
      const before = row.score_before === null ? "" : `${number(row.score_before)} → `;
      facts.append(make("span", "", `score ${before}${number(row.score)}`));
    }
    if (row.change !== null) {
      const sign = row.change >= 0 ? "+" : "";
      facts.append(make("span", row.change >= 0 ? "up" : "down", `${sign}${number(row.change)}`));
    }
    for (const [name, value] of Object.entries(row.rewards)) facts.append(make("span", "", `${name} ${number(value)}`));
    if (row.kl !== null) facts.append(make("span", "", `KL ${number(row.kl, 1)}`));
    facts.append(make("span", "", `${row.words} words`));
    if (row.repeats > 0) facts.append(make("span", "", `${Math.round(100 * row.repeats)} % repeated`));
    if (row.finish === "length") facts.append(make("span", "down", "no end"));
    facts.append(make("span", "", row.run));
    item.append(sides, facts);
    return item;
  };

  const draw = () => {
    const words = element("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const run = element("run").value, only = element("unfinished").checked;
    const [key, way] = element("sort").value.split("-");
    const sign = way === "down" ? -1 : 1;
    const matches = rows.filter(
      (row) =>
        (!run || row.run === run) && (!only || row.finish === "length") && words.every((word) => row.words_in.includes(word)),
    );
    const empty = (row) => row[key] === null || row[key] === undefined;
    matches.sort((a, b) => empty(a) - empty(b) || sign * (a[key] - b[key]));
    list.replaceChildren(...matches.slice(0, shown).map(card));
    more.hidden = matches.length <= shown;
    element("count").textContent = `${matches.length} of ${rows.length} answers`;
  };

  element("controls").addEventListener("input", () => {
    shown = page;
    draw();
  });
  element("controls").addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    shown += page;
    draw();
  });
  draw();
})();
