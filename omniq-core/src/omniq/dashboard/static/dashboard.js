// Pages are whole without this. It keeps them live, and adds keys: nothing that is shown is made here.
"use strict";

const EVERY = 2000; // milliseconds between two looks of this browser
const status = document.querySelector(".live");
let tag = null;
let failures = 0;

// Live: the same page is fetched again, and what differs is taken over. It stands still while that would disturb.
function disturbs() {
  const active = document.activeElement;
  return document.hidden
    || document.querySelector("dialog[open], details.sure[open], tbody input:checked") !== null
    || (active !== null && active.closest("main") !== null && /^(INPUT|SELECT|TEXTAREA)$/.test(active.tagName)
      && active.type !== "checkbox")
    || String(getSelection()) !== "";
}

function say(state, text) {
  if (status.textContent !== text) {
    status.hidden = false;
    status.dataset.state = state;
    status.textContent = text;
  }
}

async function refresh() {
  if (disturbs()) {
    say("off", "paused");
    return;
  }
  try {
    const headers = { "X-OmniQ-Live": "1", ...(tag !== null && { "If-None-Match": tag }) };
    const answer = await fetch(location.href, { headers, cache: "no-store", credentials: "same-origin" });
    if (answer.status === 200 || answer.status === 503 || answer.status === 404) {
      tag = answer.headers.get("ETag");
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
      if (fresh !== null && !disturbs()) {
        const old = document.querySelector("main");
        const said = old.querySelector(":scope > .said");
        if (said !== null && fresh.querySelector(":scope > .said") === null) fresh.prepend(said.cloneNode(true));
        morph(old, fresh);
        enhance();
      }
    } else if (answer.status !== 304) {
      throw new Error(answer.status);
    }
    failures = answer.status === 503 ? failures + 1 : 0;
    say(answer.status === 503 ? "gone" : "on", answer.status === 503 ? "no answer" : "live");
  } catch {
    failures += 1;
    say("gone", "no answer");
  }
}

function key(node) {
  // Not node.id: of a form with a field of that name it is the field.
  return node.nodeType === 1 ? node.getAttribute("data-key") || node.getAttribute("id") || "" : "";
}

// Make one element like another, and leave alone what is the same.
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  for (const { name } of [...old.attributes]) {
    const own = name === "hidden" || name === "open" || name === "tabindex" || name === "class" && old.tagName === "TR";
    if (!own && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (name !== "hidden" && name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const known = new Map([...old.children].filter((one) => key(one)).map((one) => [key(one), one]));
  let at = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    let match = key(wanted) ? known.get(key(wanted)) : null;
    if (!match && at !== null && !key(wanted) && !key(at) && at.nodeName === wanted.nodeName) match = at;
    if (!match || match.nodeName !== wanted.nodeName) {
      old.insertBefore(document.importNode(wanted, true), at);
      continue;
    }
    if (match === at) at = at.nextSibling;
    else old.insertBefore(match, at);
    if (match.nodeType === 1) morph(match, wanted);
    else if (match.nodeValue !== wanted.nodeValue) match.nodeValue = wanted.nodeValue;
  }
  while (at !== null) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

// Copying, and choosing rows
function enhance() {
  for (const button of document.querySelectorAll("[data-copy], [data-copy-from]")) button.hidden = !navigator.clipboard;
  const chosen = document.querySelectorAll("tbody input[name=id]:checked").length;
  for (const button of document.querySelectorAll("[data-chosen]")) button.disabled = chosen === 0;
  const count = document.querySelector("[data-chosen-count]");
  if (count !== null) count.textContent = chosen === 0 ? "Chosen tasks:" : `${chosen} chosen:`;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy], [data-copy-from]");
  if (button === null) return;
  const from = button.dataset.copyFrom;
  await navigator.clipboard.writeText(from ? document.getElementById(from).textContent : button.dataset.copy);
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
});

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-choose-all]")) {
    for (const box of document.querySelectorAll("tbody input[name=id]")) box.checked = event.target.checked;
  }
  enhance();
});

// Keys
let leader = 0;

function move(step) {
  const rows = [...document.querySelectorAll("main tbody tr")];
  if (rows.length === 0) return;
  const at = rows.findIndex((row) => row.classList.contains("at"));
  const row = rows[Math.min(Math.max(at + step, 0), rows.length - 1)];
  for (const one of rows) one.classList.toggle("at", one === row);
  row.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  const target = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey || target.closest("input:not([type=checkbox]), textarea, select, dialog[open]")) {
    if (event.key === "Escape" && target.matches("input, textarea, select")) target.blur();
    return;
  }
  const row = document.querySelector("main tbody tr.at");
  if (Date.now() - leader < 1500) {
    const link = document.querySelector(`[data-go="${CSS.escape(event.key)}"]`);
    leader = 0;
    if (link !== null) link.click();
  } else if (event.key === "g") leader = Date.now();
  else if (event.key === "j") move(1);
  else if (event.key === "k") move(-1);
  else if (event.key === "x" && row !== null) {
    const box = row.querySelector("input[name=id]");
    if (box !== null) box.click();
  } else if (event.key === "Enter" && row !== null && target === document.body) {
    const link = row.querySelector("[data-row]");
    if (link !== null) link.click();
  } else if (event.key === "/") {
    const field = document.querySelector(".filters input:not([type=hidden])");
    if (field === null) return;
    event.preventDefault();
    field.focus();
  } else if (event.key === "?") document.getElementById("help").showModal();
});

enhance();
// On a phone the names of all pages are wider than the screen: the one of this page is to be seen.
document.querySelector("nav.main a[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
if (document.querySelector("main[data-live]") !== null) {
  say("on", "live");
  const loop = async () => {
    await refresh();
    setTimeout(loop, EVERY * Math.min(2 ** failures, 8));
  };
  setTimeout(loop, EVERY);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
}
