"use strict";
(() => {
  const element = (id) => document.getElementById(id);
  let annotator = "", shown = null, begun = 0, busy = false;

  // A cookie, as the page is served at another port each time: cookies are of the host, local storage is of host and port.
  const remembered = () => {
    const kept = document.cookie.split("; ").find((pair) => pair.startsWith("rlhf_peft_annotator="));
    try { return kept ? decodeURIComponent(kept.split("=")[1]) : ""; } catch { return ""; }
  };
  const remember = (name) => {
    document.cookie = `rlhf_peft_annotator=${encodeURIComponent(name)}; path=/; max-age=31536000; SameSite=Strict`;
  };

  const ask = async (path, said) => {
    const given = said && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(said) };
    const response = await fetch(path, given);
    const found = await response.json();
    if (!response.ok) throw new Error(found.error || response.statusText);
    return found;
  };

  const messages = (prompt) => (typeof prompt === "string" ? [{ role: "", content: prompt }] : prompt);

  const show = (found) => {
    shown = found;
    element("progress").textContent = `${found.done} of ${found.all}`;
    element("who").hidden = true;
    element("work").hidden = found.pair === null;
    element("end").hidden = found.pair !== null;
    element("note").value = found.note || "";
    for (const side of ["left", "right"]) element(side).classList.remove("chosen");
    if (found.pair === null) {
      element("agreement").replaceChildren(
        ...found.agreement.map((with_) => {
          const line = document.createElement("li");
          const share = Math.round(100 * with_.agreed);
          line.textContent = `You and ${with_.with} agree on ${share} % of ${with_.pairs} pairs, kappa ${with_.kappa.toFixed(2)}`;
          return line;
        }),
      );
      return;
    }
    const box = element("prompt");
    box.replaceChildren(
      ...messages(found.prompt).map((message) => {
        const line = document.createElement("p");
        if (message.role) {
          const role = document.createElement("small");
          role.textContent = message.role;
          line.append(role);
        }
        line.append(String(message.content ?? ""));
        return line;
      }),
    );
    element("left").querySelector("span").textContent = found.left;
    element("right").querySelector("span").textContent = found.right;
    box.scrollTop = 0;
    begun = performance.now();
  };

  const doing = async (work) => {
    if (busy) return;
    busy = true;
    try {
      show(await work());
      element("problem").hidden = true;
    } catch (error) {
      element("problem").textContent = `Not saved: ${error.message}. Is the program still running? Try again.`;
      element("problem").hidden = false;
    } finally {
      busy = false;
    }
  };

  const judge = (choice) => {
    if (!shown || shown.pair === null) return;
    if (choice === "left" || choice === "right") element(choice).classList.add("chosen");
    const seconds = (performance.now() - begun) / 1000;
    doing(() => ask("judge", { annotator, pair: shown.pair, choice, note: element("note").value, seconds }));
  };
  const undo = () => doing(() => ask("undo", { annotator }));

  const begin = (name) => {
    annotator = name.trim();
    if (!annotator) return;
    remember(annotator);
    doing(() => ask(`next?annotator=${encodeURIComponent(annotator)}`));
  };

  for (const choice of ["left", "right", "tie", "skip"]) element(choice).addEventListener("click", () => judge(choice));
  for (const id of ["undo", "undo-end"]) element(id).addEventListener("click", undo);
  element("who").addEventListener("submit", (event) => {
    event.preventDefault();
    begin(element("name").value);
  });
  element("note").addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter" || event.key === "Escape") event.target.blur();
  });
  const keys = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", ArrowUp: "tie", 3: "tie", ArrowDown: "skip", 4: "skip" };
  document.addEventListener("keydown", (event) => {
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || !annotator || event.target.tagName === "INPUT") return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (keys[key]) judge(keys[key]);
    else if (key === "u") undo();
    else if (key === "n") element("note").focus();
    else return;
    event.preventDefault();
  });

  element("name").value = new URLSearchParams(location.search).get("annotator") || remembered();
  if (new URLSearchParams(location.search).get("annotator")) begin(element("name").value);
  else element("name").focus();
})();
