// The page of a customer's own cases. Whatever comes from the backend becomes text; nothing is ever parsed as HTML.

const language = document.documentElement.lang;
const dateFormat = new Intl.DateTimeFormat(language, { dateStyle: "medium" });
const timeFormat = new Intl.DateTimeFormat(language, { dateStyle: "long", timeStyle: "short" });
const relativeFormat = new Intl.RelativeTimeFormat(language, { numeric: "auto" });
const UNITS = [["year", 31557600], ["month", 2629800], ["week", 604800], ["day", 86400], ["hour", 3600], ["minute", 60]];
const CHANNELS = { email: "E-mail", whatsapp: "WhatsApp", webchat: "Web chat" };

const $ = (selector, root = document) => root.querySelector(selector);
const panel = $("#panel");
const list = $("#cases");
const notice = $("#notice");
const progress = $("#progress");
const more = $("#more");
const dialog = $("#details");
const tabs = [...document.querySelectorAll("[role=tab]")];

const counts = {};
let view = { state: null, cursor: null, shown: 0, request: null };
let opened = false; // whether a click on this page opened the details, so that closing them is going back

class Refusal extends Error {
  constructor(status) {
    super(`status ${status}`);
    this.status = status;
  }
}

/** Return the JSON at a path of the backend. Who is no longer signed in is sent to the login by the page itself. */
async function ask(path, signal) {
  const answer = await fetch(path, { signal, credentials: "same-origin" });
  if (answer.status === 401) {
    location.reload();
    return new Promise(() => {});
  }
  if (!answer.ok) throw new Refusal(answer.status);
  return answer.json();
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function moment(instant, format = dateFormat) {
  const made = element("time", "", format.format(new Date(instant)));
  made.dateTime = instant;
  return made;
}

function ago(instant) {
  const seconds = (new Date(instant) - Date.now()) / 1000;
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? ["second", 1];
  return relativeFormat.format(Math.trunc(seconds / size), unit);
}

const plural = (number, one, many) => `${number} ${number === 1 ? one : many}`;

/** Show what a row and the details have in common. */
function showState(root, found) {
  const status = $(".status", root);
  status.textContent = found.status;
  status.dataset.status = found.status;
  const priority = $(".priority", root);
  priority.dataset.priority = found.priority;
  const bars = element("span", "bars");
  bars.setAttribute("aria-hidden", "true");
  for (let level = 2; level <= 5; level += 1) bars.append(element("i", level <= found.priority ? "on" : ""));
  priority.append(bars, found.priority === 1 ? "No priority" : `${found.priority_label} priority`);
  const unread = $(".unread", root);
  unread.hidden = found.unread_message_count === 0;
  unread.textContent = `${found.unread_message_count} unread`;
  unread.title = `${plural(found.unread_message_count, "message", "messages")} in this case not read by us yet`;
  $(".waiting", root).hidden = !found.is_waiting;
}

function makeRow(found) {
  const row = $("#case-row").content.cloneNode(true);
  const link = $(".case-subject", row);
  link.textContent = found.subject || "Without a subject";
  link.href = `#${view.state}/${found.id}`;
  $(".case-number", row).textContent = `#${found.case_number}`;
  $(".case-owner", row).textContent = found.owner || "Not assigned yet";
  $(".case-contact", row).textContent = found.contact ? `via ${found.contact}` : "";
  $(".case-stage", row).textContent = found.case_funnel_stage ? `Stage: ${found.case_funnel_stage}` : "";
  $(".case-updated", row).append(`Updated ${ago(found.updated_at)}, `, moment(found.updated_at));
  showState(row, found);
  return row;
}

function showCounts() {
  for (const place of document.querySelectorAll("[data-count]")) {
    const number = counts[place.dataset.count];
    place.textContent = number ?? (place.tagName === "DD" ? "–" : "");
    place.closest(".figure")?.classList.toggle("is-zero", number === 0);
  }
}

async function loadSummary() {
  try {
    const summary = await ask("api/summary");
    counts.closed = summary.by_status.Closed ?? 0;
    counts.open = summary.total - counts.closed;
    counts.waiting = summary.waiting_count;
    counts.unread = summary.unread_message_count;
    showCounts();
    showProgress();
  } catch {
    // The list says what is wrong, and repeats this, too.
  }
  $("#summary").removeAttribute("aria-busy");
}

function showProgress() {
  const total = counts[view.state];
  if (view.shown === 0 || !notice.hidden) progress.textContent = "";
  else if (view.cursor === null) progress.textContent = `That is all: ${plural(view.shown, "case", "cases")}`;
  else progress.textContent = total === undefined ? `${view.shown} shown` : `${view.shown} of ${total} shown`;
}

function showNotice(title, text, retry) {
  $("h2", notice).textContent = title;
  $("p", notice).textContent = text;
  $("button", notice).hidden = !retry;
  $("button", notice).onclick = retry ?? null;
  notice.classList.toggle("is-error", Boolean(retry));
  notice.setAttribute("role", retry ? "alert" : "note");
  notice.hidden = false;
}

function showEmpty() {
  if (view.state === "closed") showNotice("No closed cases yet", "Cases that are settled will be listed here.");
  else showNotice("No open cases", "Everything is settled. What was solved before is under Closed.");
}

/** Load the page that follows, and put it below what is there. */
async function loadMore({ focus = false } = {}) {
  if (view.request) return;
  const current = view;
  current.request = new AbortController();
  panel.setAttribute("aria-busy", "true");
  notice.hidden = true;
  more.disabled = true;
  watcher.unobserve(more);
  const query = current.cursor ? `?cursor=${encodeURIComponent(current.cursor)}` : "";
  try {
    const page = await ask(`api/cases/${current.state}${query}`, current.request.signal);
    const rows = page.cases.map(makeRow);
    const firstLink = rows[0] && $("a", rows[0]);
    for (const placeholder of list.querySelectorAll(".placeholder")) placeholder.remove();
    list.append(...rows);
    current.shown += rows.length;
    current.cursor = page.next;
    current.request = null;
    if (current.shown === 0) showEmpty();
    more.hidden = page.next === null;
    if (focus && more.hidden) firstLink?.focus();
    if (!more.hidden) watcher.observe(more);
  } catch (error) {
    if (error.name === "AbortError") return;
    current.request = null;
    for (const placeholder of list.querySelectorAll(".placeholder")) placeholder.remove();
    more.hidden = true;
    if (error.status === 400) show(current.state); // the place in the list is gone: begin anew
    else showNotice("Your cases cannot be shown right now", "Nothing is lost. Please try again in a moment.", retry);
  } finally {
    if (current === view) {
      more.disabled = false;
      panel.removeAttribute("aria-busy");
      showProgress();
    }
  }
}

function retry() {
  panel.focus({ preventScroll: true });
  if (counts.open === undefined) loadSummary();
  loadMore();
}

/** Show the cases of a state from the newest on. */
function show(state) {
  view.request?.abort();
  view = { state, cursor: null, shown: 0, request: null };
  for (const tab of tabs) {
    const selected = tab.dataset.state === state;
    tab.setAttribute("aria-selected", String(selected));
    tab.tabIndex = selected ? 0 : -1;
    if (selected) panel.setAttribute("aria-labelledby", tab.id);
  }
  more.hidden = true;
  list.replaceChildren(...Array.from({ length: 4 }, () => {
    const placeholder = element("li", "case placeholder");
    placeholder.setAttribute("aria-hidden", "true");
    return placeholder;
  }));
  showProgress();
  loadMore();
}

function fact(label, ...values) {
  const made = element("div");
  const value = element("dd");
  value.append(...values);
  made.append(element("dt", "", label), value);
  return made;
}

function event(label, instant) {
  const made = element("li");
  made.append(element("strong", "", label), moment(instant, timeFormat), element("span", "", ago(instant)));
  return made;
}

function makeDetails(found) {
  const made = $("#case-details").content.cloneNode(true);
  showState(made, found);
  $(".description", made).textContent = found.description || "There is no description.";
  $(".facts", made).append(
    fact("Handled by", found.owner || "Not assigned yet"),
    ...(found.contact ? [fact("Came through", found.contact)] : []),
    ...(found.latest_messaging_channel
      ? [fact("Latest message by", CHANNELS[found.latest_messaging_channel] ?? found.latest_messaging_channel)] : []),
    ...(found.case_funnel_stage ? [fact("Stage", found.case_funnel_stage)] : []),
  );
  $(".history", made).append(event("Opened", found.created_at));
  if (![found.created_at, found.closed_at].includes(found.updated_at)) {
    $(".history", made).append(event("Last update", found.updated_at));
  }
  if (found.closed_at) $(".history", made).append(event("Closed", found.closed_at));
  return made;
}

async function showDetails(id) {
  const body = $("#details-body");
  const known = list.querySelector(`a[href$="/${id}"]`);
  $("#details-title").textContent = known?.textContent ?? "Case";
  $("#details-number").textContent = "Case";
  body.replaceChildren();
  body.setAttribute("aria-busy", "true");
  dialog.dataset.id = id;
  if (!dialog.open) dialog.showModal();
  $("#details-title").focus();
  try {
    const found = await ask(`api/cases/${id}`);
    if (dialog.dataset.id !== id) return;
    $("#details-number").textContent = `Case #${found.case_number}`;
    $("#details-title").textContent = found.subject || "Without a subject";
    body.replaceChildren(makeDetails(found));
  } catch (error) {
    if (dialog.dataset.id !== id) return;
    const missing = error.status === 404;
    const told = element("div", "notice is-error");
    told.setAttribute("role", "alert");
    told.append(
      element("p", "", missing ? "There is no such case among yours." : "This case cannot be shown right now."));
    if (!missing) {
      const again = element("button", "button", "Try again");
      again.type = "button";
      again.onclick = () => showDetails(id);
      told.append(again);
    }
    body.replaceChildren(told);
  }
  body.removeAttribute("aria-busy");
}

/** Show what the address names: #open, #closed, and a case in either, so that Back closes and links lead to it. */
function route() {
  const [, state, id] = /^#(open|closed)(?:\/([0-9a-f-]{36}))?$/.exec(location.hash) ?? [null, "open"];
  if (state !== view.state) show(state);
  if (id) showDetails(id);
  else if (dialog.open) dialog.close();
}

function goTo(hash) {
  history.replaceState(null, "", hash);
  route();
}

dialog.addEventListener("close", () => {
  dialog.dataset.id = "";
  if (!location.hash.includes("/")) return;
  if (opened) history.back();
  else goTo(`#${view.state}`);
});
dialog.addEventListener("click", (click) => {
  if (click.target === dialog || click.target.closest(".close")) dialog.close();
});
list.addEventListener("click", (click) => {
  if (click.target.closest("a")) opened = true;
});

for (const tab of tabs) {
  tab.addEventListener("click", () => goTo(`#${tab.dataset.state}`));
  tab.addEventListener("keydown", (key) => {
    const place = { ArrowLeft: tabs.indexOf(tab) - 1, ArrowRight: tabs.indexOf(tab) + 1, Home: 0, End: -1 }[key.key];
    if (place === undefined) return;
    key.preventDefault();
    const next = tabs.at(place % tabs.length);
    next.focus();
    next.click();
  });
}

const watcher = new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting)) loadMore();
}, { rootMargin: "300px" });
more.addEventListener("click", () => loadMore({ focus: true }));
addEventListener("hashchange", route);
loadSummary();
route();
