// Keeps a page as it would be if it were loaded now: the server says which hosts
// changed, and the parts of the page that show them are fetched anew. The page is
// whole without this script.
"use strict";
(() => {
  const body = document.body;
  const watch = body.dataset.watch;
  const byId = (id) => document.getElementById(id);
  document.documentElement.classList.add("scripted");

  // ---- Times: "3 min ago" stays right.
  function ago(at) {
    let s = Math.round((Date.now() - at) / 1000), before = "", after = " ago";
    if (s < 0) { s = -s; before = "in "; after = ""; }
    if (s < 5) return "just now";
    if (s < 60) return before + s + " s" + after;
    if (s < 3600) return before + Math.floor(s / 60) + " min" + after;
    if (s < 172800) return before + Math.floor(s / 3600) + " h" + after;
    return before + Math.floor(s / 86400) + " days" + after;
  }
  function tellTimes() {
    for (const t of document.querySelectorAll("time[data-ago]")) {
      const text = ago(Date.parse(t.dateTime) + skew);
      if (t.textContent !== text) t.textContent = text;
    }
  }
  let skew = 0; // this machine's clock minus the server's
  setInterval(tellTimes, 5000);

  // ---- The table: what is shown, and what is chosen.
  const table = byId("table"), search = byId("q"), all = byId("all"), bulk = byId("bulk");
  const shown = (row) => !row.hidden && (!table.dataset.show || row.dataset.state === table.dataset.show);
  function arrange() {
    if (!table) return;
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let any = false;
    for (const row of byId("rows").rows) {
      row.hidden = !words.every((w) => row.dataset.search.includes(w));
      any = any || shown(row);
    }
    byId("none").hidden = any || byId("rows").rows.length === 0;
    for (const a of document.querySelectorAll("#summary a")) {
      a.toggleAttribute("aria-current", a.dataset.show === (table.dataset.show || ""));
      if (a.hasAttribute("aria-current")) a.setAttribute("aria-current", "true");
    }
    choose();
  }
  function choose() {
    if (!bulk) return;
    const ticks = [...byId("rows").querySelectorAll("input[name=host]")];
    // What is not seen must not be wiped.
    for (const t of ticks) if (t.checked && !shown(t.closest("tr"))) t.checked = false;
    const n = ticks.filter((t) => t.checked).length;
    byId("chosen").textContent = n ? n + " chosen:" : "tick hosts to";
    for (const b of bulk.querySelectorAll("button")) b.disabled = !n;
    all.checked = n > 0 && n === ticks.filter((t) => shown(t.closest("tr"))).length;
    all.indeterminate = n > 0 && !all.checked;
  }
  function remember() {
    const u = new URL(location);
    for (const [name, value] of [["state", table.dataset.show], ["q", search.value.trim()]]) {
      if (value) u.searchParams.set(name, value); else u.searchParams.delete(name);
    }
    history.replaceState(null, "", u);
    if (bulk) bulk.elements.next.value = u.pathname + u.search;
  }
  if (table) {
    byId("main").addEventListener("click", (e) => {
      const a = e.target.closest("#summary a");
      if (!a || e.ctrlKey || e.metaKey || e.shiftKey) return;
      e.preventDefault();
      const only = a.dataset.show === table.dataset.show ? "" : a.dataset.show;
      if (only) table.dataset.show = only; else delete table.dataset.show;
      remember();
      arrange();
    });
    search.form.addEventListener("submit", (e) => e.preventDefault());
    search.addEventListener("input", () => { remember(); arrange(); });
    table.addEventListener("change", (e) => {
      if (e.target === all) {
        for (const row of byId("rows").rows) if (shown(row)) row.querySelector("input[name=host]").checked = all.checked;
      }
      choose();
    });
    if (all) all.hidden = false;
    addEventListener("pageshow", arrange);
    arrange();
  }

  // ---- Changes.
  const stream = body.dataset.stream;
  if (!stream) return;
  const light = byId("live");
  light.hidden = false;
  const names = new Set();
  let everything = false, timer = 0, busy = false, source = null;

  function want(name) {
    if (name === "") everything = true;
    else if (watch === "*" || watch === name) names.add(name);
    else return;
    if (!timer && !busy) timer = setTimeout(refresh, 200);
  }
  async function refresh() {
    timer = 0;
    busy = true;
    const u = new URL(location);
    u.hash = "";
    u.searchParams.set("fragment", "1");
    // Many hosts are cheaper as a whole.
    if (watch === "*" && !everything && names.size <= 60) for (const n of names) u.searchParams.append("host", n);
    names.clear();
    everything = false;
    try {
      const r = await fetch(u, { headers: { Accept: "text/html" } });
      if (r.ok) {
        const date = Date.parse(r.headers.get("Date"));
        if (date) skew = Date.now() - date;
        if (Math.abs(skew) < 2000) skew = 0; // Date has whole seconds
        take(new DOMParser().parseFromString(await r.text(), "text/html"));
      }
    } catch {
      everything = true; // the stream's end tells; when it is back, all is fetched
    }
    busy = false;
    if (names.size || (everything && source && source.readyState === 1)) timer = setTimeout(refresh, 200);
  }
  function take(fresh) {
    for (const part of fresh.querySelectorAll("[data-live]")) {
      if (part.parentElement.closest("[data-live]")) continue;
      const old = byId(part.id);
      if (old) patch(old, part);
    }
    tellTimes();
    arrange();
  }
  const ids = (e) => [...e.children].map((c) => c.id).join(" ");
  function patch(old, part) {
    part = document.importNode(part, true);
    if (old.tagName === "TBODY" && ids(old) === ids(part)) {
      const fresh = [...part.children];
      [...old.children].forEach((row, i) => patch(row, fresh[i]));
      return;
    }
    for (const t of part.querySelectorAll("time[data-ago]")) t.textContent = ago(Date.parse(t.dateTime) + skew);
    if (old.isEqualNode(part)) return;
    // What the person who looks has done to the part stays: ticks, text, what
    // is open, focus, scrolling.
    for (const e of old.querySelectorAll("input[id], details[id]")) {
      const twin = [...part.querySelectorAll("#" + CSS.escape(e.id))][0];
      if (!twin) continue;
      if (e.type === "checkbox") twin.checked = e.checked;
      else if (e.tagName === "DETAILS") twin.open = e.open;
      else if (e.type !== "hidden") twin.value = e.value;
    }
    const active = document.activeElement;
    let focus = "";
    if (old.contains(active) && active !== old) {
      focus = active.id ? "#" + CSS.escape(active.id) : active.dataset.show !== undefined ? `[data-show="${active.dataset.show}"]` : active.tagName.toLowerCase();
    }
    const bottom = old.id === "log" && old.scrollTop + old.clientHeight >= old.scrollHeight - 8;
    const top = old.scrollTop, self = active === old;
    const was = old.dataset.state, now = part.dataset.state;
    old.replaceWith(part);
    if (focus) part.querySelector(focus)?.focus({ preventScroll: true });
    if (self) part.focus({ preventScroll: true });
    if (old.id === "log") part.scrollTop = bottom ? part.scrollHeight : top;
    if (was && now && was !== now) {
      part.classList.add("fresh");
      if (now === "parked" || now === "retrying") byId("say").textContent = part.dataset.name + " is " + now;
    }
  }

  function tell(on, text) {
    light.classList.toggle("on", on);
    light.textContent = text;
  }
  function open() {
    if (source) return;
    source = new EventSource(stream);
    // What changed before the stream was there has been missed.
    source.onopen = () => { tell(true, "live"); want(""); };
    source.addEventListener("host", (e) => want(e.data));
    source.addEventListener("lab", () => want(""));
    source.onerror = () => {
      tell(false, "server away");
      if (source.readyState === EventSource.CLOSED) { source = null; setTimeout(open, 5000); }
    };
  }
  // A browser has six connections to a server: pages that nobody sees give theirs back.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { if (source) { source.close(); source = null; tell(false, "paused"); } }
    else open();
  });
  if (byId("log")) byId("log").scrollTop = byId("log").scrollHeight;
  open();
})();
