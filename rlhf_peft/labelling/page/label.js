"use strict";
(() => {
  const element = (id) => document.getElementById(id);
  let annotator = "", shown = null, begun = 0, busy = false;

  // A cookie, as the page is served at another port each time: cookies are of the host, local storage is of host and port.
  const remembered = () => {
    const cookie = document.cookie.split("; ").find((pair) => pair.startsWith("rlhf_peft_annotator="));
    try { return cookie ? decodeURIComponent(cookie.split("=")[1]) : ""; } catch { return ""; }
  };
  const remember = (name) => {
    document.cookie = `rlhf_peft_annotator=${encodeURIComponent(name)}; path=/; max-age=31536000; SameSite=Strict`;
  };

  const ask = async (path, body) => {
    const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const response = await fetch(path, options);
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error || response.statusText);
    return answer;
  };

  const messages = (prompt) => (typeof prompt === "string" ? [{ role: "", content: prompt }] : prompt);

  const show = (state) => {
    shown = state;
    element("progress").textContent = `${state.done} of ${state.all}`;
    element("who").hidden = true;
    element("work").hidden = state.pair === null;
    element("end").hidden = state.pair !== null;
    element("note").value = state.note || "";
    for (const side of ["left", "right"]) element(side).classList.remove("chosen");
    if (state.pair === null) {
      element("agreement").replaceChildren(
        ...state.agreement.map((with_) => {
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
      ...messages(state.prompt).map((message) => {
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
    element("left").querySelector("span").textContent = state.left;
    element("right").querySelector("span").textContent = state.right;
    box.scrollTop = 0;
    begun = performance.now();
  };

  const showResult = async (work) => {
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
    showResult(() => ask("judge", { annotator, pair: shown.pair, choice, note: element("note").value, seconds }));
  };
  const undo = () => showResult(() => ask("undo", { annotator }));

  const begin = (name) => {
    annotator = name.trim();
    if (!annotator) return;
    remember(annotator);
    showResult(() => ask(`next?annotator=${encodeURIComponent(annotator)}`));
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
