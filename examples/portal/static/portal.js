// The page of a customer's own cases. Whatever comes from the backend becomes text; nothing is ever parsed as HTML.

const language = document.documentElement.lang;
const dateFormat = new Intl.DateTimeFormat(language, { dateStyle: "medium" });
const timeFormat = new Intl.DateTimeFormat(language, { dateStyle: "long", timeStyle: "short" });
const clockFormat = new Intl.DateTimeFormat(language, { timeStyle: "short" });
const relativeFormat = new Intl.RelativeTimeFormat(language, { numeric: "auto" });
const UNITS = [["year", 31557600], ["month", 2629800], ["week", 604800], ["day", 86400], ["hour", 3600], ["minute", 60]];
const CHANNELS = { email: "E-mail", whatsapp: "WhatsApp", webchat: "Web chat" };
const STATUSES = { "In Progress": "In progress" };
const EMPTY = {
  open: ["No open cases", "When you contact us, your case is listed here until it is closed."],
  progress: ["No cases in progress", "Cases that somebody is working on are listed here."],
  waiting: ["No case is waiting for us", "Cases in which the next step is ours are listed here."],
  closed: ["No closed cases", "Cases stay here after they are closed."],
};
const REFRESH_SECONDS = 30;
const REFRESH_SECONDS_HIDDEN = 300;
const REFRESH_SECONDS_CONVERSATION = 10; // of its messages alone; of all else as before
const RETRY_SECONDS = [1, 3];
const TITLE = document.title;
const FAILURES = {
  case_closed: "This case is closed and cannot be opened again.",
  case_not_found: "There is no such case among yours any more.",
  invalid_body: "This cannot be sent. Please check what you wrote.",
};

const $ = (selector, root = document) => root.querySelector(selector);
const panel = $("#panel");
const list = $("#cases");
const notice = $("#notice");
const progress = $("#progress");
const more = $("#more");
const dialog = $("#details");
const tabs = [...document.querySelectorAll("[role=tab]")];
const narrow = matchMedia("(max-width: 56rem)");
const scroller = $("#messages-scroller");
const messages = $("#messages");
const older = $("#older");
const reply = $("#reply"); // these are missing where customers may only read
const changeState = $("#change-state");
const confirmation = $("#confirmation");

const counts = {};
const etags = new Map(); // by path, of what the page shows
let view = { name: null, cursor: null, shown: 0, request: null };
let opened = false; // whether a click on this page opened the details, so that closing them is going back

class Refusal extends Error {
  constructor(status, code) {
    super(`status ${status}`);
    this.status = status;
    this.code = code;
  }
}

const signedOut = () => {
  location.reload();
  return new Promise(() => {});
};

/**
 * Return the JSON at a path of the backend; with ifChanged, null where it is what the page got last.
 * Who is no longer signed in is sent to the login by the page itself.
 */
async function ask(path, { signal, ifChanged = false } = {}) {
  const headers = ifChanged && etags.has(path) ? { "If-None-Match": etags.get(path) } : {};
  const answer = await fetch(path, { signal, headers, credentials: "same-origin", cache: "no-store" });
  if (answer.status === 401) return signedOut();
  if (answer.status === 304) return null;
  if (!answer.ok) throw new Refusal(answer.status);
  const found = await answer.json();
  if (answer.headers.has("ETag")) etags.set(path, answer.headers.get("ETag"));
  return found;
}

/**
 * Send JSON to a path of the backend, and return what it answers. Where no answer comes, or one that tells of a failure
 * that may pass, it is sent again: all that is sent here changes nothing when it is repeated.
 */
async function send(method, path, body) {
  for (const wait of [...RETRY_SECONDS, null]) {
    try {
      const headers = { "Content-Type": "application/json" };
      const answer = await fetch(path, { method, headers, body: JSON.stringify(body), credentials: "same-origin" });
      if (answer.status === 401) return await signedOut();
      if (answer.ok) return await answer.json();
      const { code } = await answer.json().catch(() => ({}));
      throw new Refusal(answer.status, code);
    } catch (error) {
      if (wait === null || (error.status ?? 503) < 503) throw error;
      await new Promise((resolve) => setTimeout(resolve, wait * 1000));
    }
  }
}

/** Return a new UUID. Pages without HTTPS have no crypto.randomUUID. */
function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
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

/** Return how long ago something was, as an element that refreshAges keeps right. */
function age(instant) {
  const made = element("span", "age", ago(instant));
  made.dataset.instant = instant;
  return made;
}

function refreshAges() {
  for (const place of document.querySelectorAll(".age")) place.textContent = ago(place.dataset.instant);
}

/** Return a text with its web addresses as links. They are not followed by crawlers and learn nothing of this page. */
function withLinks(text) {
  const made = document.createDocumentFragment();
  let end = 0;
  for (const { 0: found, index } of text.matchAll(/\bhttps?:\/\/[^\s<>"“”„«»]+/gi)) {
    const address = withoutPunctuation(found);
    if (!isPlainAddress(address)) continue;
    made.append(text.slice(end, index), link(address));
    end = index + address.length;
  }
  made.append(text.slice(end));
  return made;
}

/** Leave out what ends the sentence and not the address, such as a full stop or a bracket that was opened before. */
function withoutPunctuation(address) {
  let rest = address;
  for (;;) {
    const last = rest.at(-1);
    const isOpened = last === ")" && rest.split("(").length >= rest.split(")").length;
    if (!/[.,;:!?)\]}'’]/.test(last) || isOpened) return rest;
    rest = rest.slice(0, -1);
  }
}

/** Tell whether this is an address that shows where it leads: without a name or password before the host. */
function isPlainAddress(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:"].includes(url.protocol) && !url.username && !url.password;
  } catch {
    return false;
  }
}

function link(address) {
  const made = element("a", "", address);
  made.href = address;
  made.target = "_blank";
  made.rel = "noopener noreferrer nofollow ugc";
  return made;
}

const plural = (number, one, many) => `${number} ${number === 1 ? one : many}`;

/** Show what a row and the details have in common. */
function showState(root, found) {
  const status = $(".status", root);
  status.textContent = STATUSES[found.status] ?? found.status;
  status.dataset.status = found.status;
  $(".waiting", root).hidden = !found.is_waiting;
}

const newMessages = (number) => plural(number, "new message", "new messages");

function makeRow(found) {
  const row = $("#case-row").content.cloneNode(true);
  const link = $(".case-subject", row);
  link.textContent = found.subject || "Without a subject";
  link.href = `#${view.name}/${found.id}`;
  $(".case-number", row).textContent = `#${found.case_number}`;
  $(".case-owner", row).textContent = found.owner ? `Handled by ${found.owner}` : "Not assigned yet";
  $(".case-contact", row).textContent = found.contact ? `via ${found.contact}` : "";
  $(".case-updated", row).append("Updated ", age(found.updated_at), ", ", moment(found.updated_at));
  showState(row, found);
  $(".new", row).textContent = newMessages(found.new_message_count);
  $(".new", row).hidden = found.new_message_count === 0;
  return row;
}

function showCounts() {
  for (const place of document.querySelectorAll("[data-count]")) {
    const number = counts[place.dataset.count];
    place.textContent = number ?? "–";
    place.closest(".tile").classList.toggle("is-zero", number === 0);
  }
}

function takeSummary(summary) {
  counts.closed = summary.by_status.Closed ?? 0;
  counts.progress = summary.by_status["In Progress"] ?? 0;
  counts.open = summary.total - counts.closed;
  counts.waiting = summary.waiting_count;
  const unread = summary.new_message_count;
  $("#new-messages").textContent = unread ? newMessages(unread) : "";
  document.title = unread ? `(${unread}) ${TITLE}` : TITLE;
  showCounts();
  showProgress();
}

async function loadSummary() {
  try {
    takeSummary(await ask("api/summary"));
  } catch {
    // The list says what is wrong, and repeats this, too.
  }
  $("#summary").removeAttribute("aria-busy");
}

function showProgress() {
  const total = counts[view.name];
  if (view.shown === 0 || !notice.hidden) progress.textContent = "";
  else if (view.cursor === null) progress.textContent = plural(view.shown, "case", "cases");
  else progress.textContent = total === undefined ? `${view.shown} shown` : `${view.shown} of ${total} cases`;
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

function pathOf(name, cursor) {
  return `api/cases/${name}${cursor ? `?cursor=${encodeURIComponent(cursor)}` : ""}`;
}

function removePlaceholders() {
  for (const placeholder of list.querySelectorAll(".placeholder")) placeholder.remove();
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
  try {
    const page = await ask(pathOf(current.name, current.cursor), { signal: current.request.signal });
    const rows = page.cases.map(makeRow);
    removePlaceholders();
    list.append(...rows);
    const firstLink = list.querySelectorAll(".case a")[current.shown];
    current.request = null;
    showEnd(current, current.shown + rows.length, page.next);
    if (focus && more.hidden) firstLink?.focus();
  } catch (error) {
    if (error.name === "AbortError") return;
    current.request = null;
    removePlaceholders();
    more.hidden = true;
    if (error.status === 400) show(current.name); // the place in the list is gone: begin anew
    else showNotice("Your cases cannot be shown right now", "Please try again in a moment.", retry);
  } finally {
    if (current === view) {
      more.disabled = false;
      panel.removeAttribute("aria-busy");
      showProgress();
    }
  }
}

/** Show, below the list, whether there is more. */
function showEnd(current, shown, cursor) {
  Object.assign(current, { shown, cursor });
  watcher.unobserve(more);
  more.hidden = cursor === null;
  notice.hidden = shown > 0 || cursor !== null;
  if (!notice.hidden) showNotice(...EMPTY[current.name]);
  if (!more.hidden) watcher.observe(more);
}

/** Load the list anew as far as it is shown, and exchange it in one go: focus and scrolling stay. */
async function reloadList() {
  const current = view;
  if (current.request || !current.isLoaded()) return;
  current.request = new AbortController();
  current.isStale = true; // until all of it has come
  try {
    const { cases, next } = await loadUpTo(current.shown, current);
    if (current !== view) return;
    const focused = list.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    list.replaceChildren(...cases.map(makeRow));
    if (focused) list.querySelector(`a[href="${focused}"]`)?.focus({ preventScroll: true });
    current.isStale = false;
    current.request = null;
    showEnd(current, cases.length, next);
    showProgress();
  } finally {
    current.request = null;
  }
}

/** Return as many of a list's cases as are shown, at least its first page, and where the rest begins. */
async function loadUpTo(shown, { name, request }) {
  const cases = [];
  let next = null;
  do {
    const page = await ask(pathOf(name, next), { signal: request.signal });
    cases.push(...page.cases);
    next = page.next;
  } while (next !== null && cases.length < shown);
  return { cases, next };
}

/** Ask whether anything has changed, and show what has. What fails is asked again the next time. */
async function refresh() {
  try {
    const [summary, page] = await Promise.all([
      ask("api/summary", { ifChanged: true }),
      view.isLoaded() ? ask(pathOf(view.name), { ifChanged: true }) : null,
    ]);
    if (summary) takeSummary(summary);
    if (summary || page || view.isStale) await reloadList();
    if (dialog.open) await Promise.all([refreshDetails(dialog.dataset.id), refreshConversation()]);
  } catch {
    // It shows what was there last.
  }
  refreshAges();
}

let refreshing; // the timer

/** Refresh from time to time; less often while nobody sees the page. */
function scheduleRefresh() {
  clearTimeout(refreshing);
  const seconds = document.hidden ? REFRESH_SECONDS_HIDDEN : REFRESH_SECONDS;
  refreshing = setTimeout(() => refresh().finally(scheduleRefresh), seconds * 1000);
}

let listening; // the timer of the conversation

/** Look for new messages while a conversation is open and seen. */
function scheduleListening() {
  clearTimeout(listening);
  if (!dialog.open || document.hidden) return;
  listening = setTimeout(() => refreshConversation().catch(() => {}).finally(scheduleListening),
    REFRESH_SECONDS_CONVERSATION * 1000);
}

function retry() {
  panel.focus({ preventScroll: true });
  if (counts.open === undefined) loadSummary();
  loadMore();
}

/** Show one of the lists, from the newest case on. */
function show(name) {
  view.request?.abort();
  view = { name, cursor: null, shown: 0, request: null, isLoaded: () => !$(".placeholder", list) };
  for (const tab of tabs) {
    const selected = tab.dataset.list === name;
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
  made.append(element("strong", "", label), moment(instant, timeFormat), age(instant));
  return made;
}

function makeDetails(found) {
  const made = $("#case-details").content.cloneNode(true);
  showState(made, found);
  $(".description", made).append(withLinks(found.description || "There is no description."));
  $(".facts", made).append(
    fact("Handled by", found.owner || "Not assigned yet"),
    ...(found.contact ? [fact("Came through", found.contact)] : []),
    ...(found.latest_messaging_channel
      ? [fact("Latest message by", CHANNELS[found.latest_messaging_channel] ?? found.latest_messaging_channel)] : []),
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
  beginConversation(id);
  if (!dialog.open) dialog.showModal();
  $("#details-title").focus();
  try {
    const [found, newest] = await Promise.all([ask(`api/cases/${id}`), ask(messagesPath(id))]);
    if (dialog.dataset.id === id) {
      fillDetails(found);
      showConversation(newest);
    }
  } catch (error) {
    if (dialog.dataset.id === id) showNoDetails(id, error.status === 404);
  }
  if (dialog.dataset.id === id) body.removeAttribute("aria-busy");
  scheduleListening();
}

function fillDetails(found) {
  $("#details-number").textContent = `Case #${found.case_number}`;
  $("#details-title").textContent = found.subject || "Without a subject";
  const made = makeDetails(found);
  // Where there is little room, the conversation comes first.
  $(".about", made).open = $(".about", dialog)?.open ?? !narrow.matches;
  const isFocused = $(".about summary", dialog) === document.activeElement;
  $("#details-body").replaceChildren(made);
  if (isFocused) $(".about summary", dialog).focus({ preventScroll: true });
  showClosed(found.status === "Closed");
}

/** Say that a case does not exist, or is not to be had right now. */
function showNoDetails(id, missing) {
  const told = element("div", "notice is-error");
  told.setAttribute("role", "alert");
  told.append(element("p", "", missing ? "There is no such case among yours." : "This case cannot be shown right now."));
  if (!missing) {
    const again = element("button", "button", "Try again");
    again.type = "button";
    again.onclick = () => showDetails(id);
    told.append(again);
  }
  $("#details-body").replaceChildren(told);
}

async function refreshDetails(id) {
  const found = await ask(`api/cases/${id}`, { ifChanged: true });
  if (found && dialog.dataset.id === id) fillDetails(found);
}

let conversation = { id: null }; // what is shown of the one that is open

const messagesPath = (id, cursor) => `api/cases/${id}/messages${cursor ? `?cursor=${encodeURIComponent(cursor)}` : ""}`;

function beginConversation(id) {
  conversation = { id, known: new Map(), older: null, isShown: false };
  $("#conversation").hidden = true;
  $("#conversation-news").textContent = "";
  messages.replaceChildren();
  if (changeState) changeState.hidden = true;
  if (!reply) return;
  $("#reply-error").textContent = "";
  $("#reply-text").value = draftOf(id).text ?? "";
}

function showConversation(newest) {
  $("#conversation").hidden = false;
  conversation.isShown = true;
  conversation.older = newest.older;
  takeMessages(newest.messages);
  const firstNew = $(".message:has(.new:not([hidden]))", messages);
  if (!narrow.matches) scroller.scrollTop = firstNew ? firstNew.offsetTop - scroller.offsetTop : scroller.scrollHeight;
  else firstNew?.scrollIntoView({ block: "center" });
  markRead();
}

/** Show messages among those that are shown already, each once and in the order of time. */
function takeMessages(found, { before = false } = {}) {
  const { known } = conversation;
  const given = found.map((message) => [message.id, message]);
  conversation.known = new Map(before ? [...given, ...known] : [...known, ...given]);
  const all = [...conversation.known.values()].sort(inTime);
  const rows = new Map([...messages.children].map((row) => [row.dataset.id, row]));
  const wanted = [];
  let day = null;
  for (const message of all) {
    const date = dateFormat.format(new Date(message.created_at));
    if (date !== day) wanted.push(rows.get(date) ?? makeDay(date));
    day = date;
    const row = rows.get(message.id) ?? makeMessage(message);
    $(".new", row).hidden = !message.is_unread;
    wanted.push(row);
  }
  // What stays is not touched: a selection in it, and where a screen reader is, stay as well.
  for (const row of messages.children) if (!wanted.includes(row)) row.remove();
  wanted.forEach((row, place) => {
    if (messages.children[place] !== row) messages.insertBefore(row, messages.children[place] ?? null);
  });
  $("#no-messages").hidden = all.length > 0;
  older.hidden = conversation.older === null;
}

/** The service orders by microseconds and id, and shows milliseconds: what it sent together keeps its order. */
function inTime(one, other) {
  return one.created_at < other.created_at ? -1 : Number(one.created_at > other.created_at);
}

function makeDay(date) {
  const made = element("li", "message-day", date);
  made.dataset.id = date;
  return made;
}

function makeMessage(message) {
  const row = $("#message").content.cloneNode(true).firstElementChild;
  row.dataset.id = message.id;
  row.dataset.side = message.sender_type;
  $("strong", row).textContent = nameOf(message);
  $("strong", row).after(" ", moment(message.created_at, clockFormat));
  $(".message-text", row).append(withLinks(message.text));
  return row;
}

function nameOf(message) {
  if (message.sender_type === "system") return "";
  return message.sender_type === "visitor" ? "You" : message.sender || "Our team";
}

/** Ask for new messages, and show them. */
async function refreshConversation() {
  const current = conversation;
  if (!current.isShown) return;
  const page = await ask(messagesPath(current.id), { ifChanged: true });
  if (current !== conversation) return;
  if (page) {
    const added = page.messages.filter(({ id }) => !current.known.has(id));
    if (added.length === page.messages.length) {
      // More may have come than a page holds: what lies between is behind the button, and not left out.
      current.known = new Map();
      current.older = page.older;
    }
    const atEnd = isAtEnd();
    takeMessages(page.messages);
    if (added.length) {
      announce(added.filter(({ sender_type: side }) => side !== "visitor"));
      if (atEnd) scrollToEnd();
      refreshDetails(current.id).catch(() => {});
    }
  }
  await markRead();
}

/** Tell who cannot see it what has been said. */
function announce(added) {
  if (added.length === 0) return;
  $("#conversation-news").textContent = added.map((message) => `${nameOf(message)}: ${message.text}`.trim()).join("\n");
}

const isAtEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;

function scrollToEnd() {
  if (narrow.matches) messages.lastElementChild?.scrollIntoView({ block: "nearest" });
  else scroller.scrollTop = scroller.scrollHeight;
}

/** Note that what is shown has been read, once somebody sees it. The marks in the conversation stay until the next look. */
async function markRead() {
  const { id, known, marked } = conversation;
  const last = [...known.values()].sort(inTime).filter((message) => message.is_unread).at(-1);
  if (!reply || !last || last.id === marked || document.hidden || !dialog.open) return;
  conversation.marked = last.id;
  try {
    await send("PUT", `api/cases/${id}/read`, { until: last.id });
    await refreshCounts();
  } catch {
    if (conversation.id === id) conversation.marked = null; // the next look tries it again
  }
}

async function refreshCounts() {
  await Promise.all([ask("api/summary").then(takeSummary), reloadList()]);
}

/** Load the messages before those that are shown; what is on the screen stays where it is. */
async function loadOlder() {
  const current = conversation;
  older.disabled = true;
  try {
    const page = await ask(messagesPath(current.id, current.older));
    if (current !== conversation) return;
    const first = $(".message", messages);
    const place = first?.getBoundingClientRect().top;
    current.older = page.older;
    takeMessages(page.messages, { before: true });
    const moved = first ? first.getBoundingClientRect().top - place : 0;
    (narrow.matches ? dialog : scroller).scrollTop += moved;
    $("#conversation-news").textContent = `${plural(page.messages.length, "older message", "older messages")} loaded`;
    if (older.hidden) scroller.focus({ preventScroll: true });
  } catch {
    $("#conversation-news").textContent = "Older messages cannot be shown right now.";
  } finally {
    older.disabled = false;
  }
}

// What is written and not sent outlives a reload and a new login in this tab; with the id that it was sent under, so that
// what may have arrived already is not said twice.
const drafts = new Map();
const draftKey = (id) => `draft ${id}`;

function draftOf(id) {
  try {
    return drafts.get(id) ?? JSON.parse(sessionStorage.getItem(draftKey(id))) ?? {};
  } catch {
    return {}; // a browser that keeps nothing
  }
}

function keepDraft(id, draft) {
  drafts.set(id, draft);
  try {
    if (draft.text) sessionStorage.setItem(draftKey(id), JSON.stringify(draft));
    else sessionStorage.removeItem(draftKey(id));
  } catch {
    // It is in the map.
  }
}

async function sendReply() {
  const { id } = conversation;
  const box = $("#reply-text");
  const text = box.value;
  const button = $("button", reply);
  if (!text.trim() || reply.dataset.busy) return;
  const { tried } = draftOf(id);
  // The message that was tried may have arrived: another text is another message.
  const message = tried?.text === text ? tried : { id: newId(), text };
  keepDraft(id, { text, tried: message });
  reply.dataset.busy = "true";
  button.setAttribute("aria-disabled", "true");
  $("#reply-error").textContent = "";
  try {
    const said = await send("POST", `api/cases/${id}/messages`, message);
    const isOpen = conversation.id === id;
    keepDraft(id, { text: isOpen && box.value !== text ? box.value : "" });
    if (!isOpen) return;
    box.value = draftOf(id).text;
    takeMessages([said]);
    scrollToEnd();
    $("#conversation-news").textContent = "Your message was sent.";
    await Promise.all([refreshDetails(id), refreshCounts()]).catch(() => {});
  } catch (error) {
    if (conversation.id !== id) return;
    $("#reply-error").textContent = FAILURES[error.code] ?? "Your message was not sent. Please try again in a moment.";
  } finally {
    delete reply.dataset.busy;
    button.removeAttribute("aria-disabled");
  }
}

function showClosed(isClosed) {
  conversation.isClosed = isClosed;
  if (!reply) return;
  changeState.hidden = false;
  changeState.textContent = isClosed ? "Reopen this case" : "Close this case";
  $("#reply-hint").textContent = isClosed ? "Your message reopens this case." : "";
}

function askWhetherToChange() {
  const { isClosed } = conversation;
  $("#confirmation-title").textContent = isClosed ? "Reopen this case?" : "Close this case?";
  $("#confirmation-text").textContent = isClosed
    ? "We look at it again." : "Nothing more is done about it. You can reopen it later.";
  $("#confirm").textContent = isClosed ? "Reopen case" : "Close case";
  $("#confirmation-error").textContent = "";
  confirmation.showModal();
}

async function changeWhetherClosed() {
  const { id, isClosed } = conversation;
  const button = $("#confirm");
  if (button.hasAttribute("aria-disabled")) return;
  button.setAttribute("aria-disabled", "true");
  try {
    const found = await send("PATCH", `api/cases/${id}`, { is_closed: !isClosed });
    confirmation.close();
    if (conversation.id === id) fillDetails(found);
    $("#conversation-news").textContent = isClosed ? "The case is open again." : "The case is closed.";
    await refreshCounts().catch(() => {});
  } catch (error) {
    $("#confirmation-error").textContent = FAILURES[error.code] ?? "That did not work. Please try again in a moment.";
  } finally {
    button.removeAttribute("aria-disabled");
  }
}

/** Show what the address names: a list, such as #open, and a case in it, so that Back closes and links lead to it. */
function route() {
  const [, name, id] = /^#(\w+)(?:\/([0-9a-f-]{36}))?$/.exec(location.hash) ?? [];
  const known = Object.hasOwn(EMPTY, name ?? "") ? name : "open";
  if (known !== view.name) show(known);
  if (id) showDetails(id);
  else if (dialog.open) dialog.close();
}

function goTo(hash) {
  history.replaceState(null, "", hash);
  route();
}

older.addEventListener("click", loadOlder);
if (reply) {
  reply.addEventListener("submit", (submit) => {
    submit.preventDefault();
    sendReply();
  });
  $("#reply-text").addEventListener("input", (input) => {
    keepDraft(conversation.id, { ...draftOf(conversation.id), text: input.target.value });
  });
  changeState.addEventListener("click", askWhetherToChange);
  $("#confirm").addEventListener("click", changeWhetherClosed);
}

dialog.addEventListener("close", () => {
  dialog.dataset.id = "";
  conversation = { id: null };
  confirmation?.close();
  if (!location.hash.includes("/")) return;
  if (opened) history.back();
  else goTo(`#${view.name}`);
});
dialog.addEventListener("click", (click) => {
  if (click.target === dialog || click.target.closest(".close")) dialog.close();
});
list.addEventListener("click", (click) => {
  if (click.target.closest("a")) opened = true;
});

for (const tab of tabs) {
  tab.addEventListener("click", () => goTo(`#${tab.dataset.list}`));
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
document.addEventListener("visibilitychange", () => {
  scheduleRefresh();
  scheduleListening();
  if (!document.hidden) refresh();
});
loadSummary();
route();
scheduleRefresh();
