// Navigation without reloads: the address names what is shown; links, tabs, history and keys become one event for Python.
(() => {
  if (window.glassbox) return;
  const LONGEST_ADDRESS = 60000;
  const FIRST = window.glassboxFirst || "overview"; // the page without a name in its address
  const triggers = {};
  const waiting = {}; // bridge -> what it is to say, in turn, once it is there or has its answer
  const busy = {};
  let memory = {}; // page -> its words
  let filled = {}; // pages that show their words already
  let dictionary = null;
  let current = null;
  let touched = false; // since Python was last asked
  let pending = true; // until Python has answered what the address asked

  // a link with `add` adds a feature to those that its page shows already, and leaves the page's other words
  const joined = (page, words) => {
    if (words.add === undefined) return words;
    const have = ((memory[page] || words).features || "").split(",").filter(Boolean);
    if (!have.some((part) => part.split("=")[0] === words.add)) have.push(words.add);
    const { add, ...rest } = { ...(memory[page] || {}), ...words };
    return { ...rest, features: have.join(",") };
  };
  const read = () => {
    const words = Object.fromEntries(new URLSearchParams(window.location.search));
    const page = words.view || (words.feature !== undefined ? "feature" : FIRST);
    if (words.dict !== undefined) dictionary = words.dict;
    delete words.view;
    delete words.dict;
    return { page, words: joined(page, words) };
  };
  const address = () => {
    const query = new URLSearchParams();
    if (current !== FIRST) query.set("view", current);
    if (dictionary !== null) query.set("dict", dictionary);
    for (const [key, value] of Object.entries(memory[current] || {})) query.set(key, value);
    let next = "?" + query.toString();
    return next.length > LONGEST_ADDRESS ? `?view=${current}` : next;
  };
  const name = () => {
    const words = memory[current] || {};
    const tab = document.querySelector(`[data-tab-id="${current}"]`);
    const title = current === "feature" && words.feature !== undefined ? `Feature ${words.feature}` : tab?.textContent.trim();
    document.title = title && current !== FIRST ? `${title} · Glassbox` : "Glassbox";
  };
  const write = (method) => {
    if (address() !== (window.location.search || "?")) window.history[method]({}, "", address());
    name();
  };
  // One thing at a time: Gradio would drop what is said before it has answered, or say the first thing again. `instead`:
  // of what waits, the newest alone is still worth saying.
  const say = (bridge, data, instead = false) => {
    if (triggers[bridge] && !busy[bridge]) {
      busy[bridge] = true;
      triggers[bridge](data);
    } else waiting[bridge] = instead ? [data] : [...(waiting[bridge] || []), data];
  };
  const listen = (bridge) => {
    busy[bridge] = false;
    if (waiting[bridge]?.length) say(bridge, waiting[bridge].shift());
  };
  const send = () => {
    filled[current] = true;
    pending = true;
    touched = false;
    say(current, { ...(memory[current] || {}), ...(dictionary === null ? {} : { dict: dictionary }) }, true);
  };
  const open = (page, words, method) => {
    current = page;
    memory[page] = words;
    if (method) write(method);
    else name();
    send();
  };

  window.glassbox = {
    ready(page, trigger) {
      triggers[page] = trigger;
      listen(page);
    },
    // a page by its name, with its words, such as {feature: "12"}
    go(page, words) {
      open(page, joined(page, words), "pushState");
      window.scrollTo({ top: 0 });
    },
    // Gradio says this of the tabs that it opens itself, too
    selected(page) {
      if (page === current || !touched) return;
      current = page;
      write("pushState");
      if (!filled[page]) send();
    },
    // what a person gave to a component
    note(page, key, value) {
      const words = (memory[page] ||= {});
      if (value === null || value === undefined || value === "") delete words[key];
      else words[key] = typeof value === "string" ? value : JSON.stringify(value);
      if (page === current) write("replaceState");
    },
    // the dictionary that a person chose: what the pages showed was another's
    dictionary(name) {
      dictionary = name;
      memory = {};
      filled = {};
      open(current, {}, "pushState");
    },
    // Python has answered
    answered(page, shown) {
      if (dictionary === null) dictionary = shown;
      if (page === current) pending = Boolean(waiting[page]?.length);
      name();
      listen(page);
    },
    // a hidden component of a page that takes what a button in its HTML says, and tells when it is answered
    ask: say,
    heard: listen,
    // what a page shows is no longer so: it is asked again when it is next opened
    forget(page) {
      if (page !== current) delete filled[page];
    },
    // a file of the person's own, from text or bytes: it never lies on the server
    save(name, content, type = "application/octet-stream") {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([content], { type }));
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    },
    shown: () => !pending,
    page: () => current,
    words: () => ({ ...(memory[current] || {}) }),
  };

  // Gradio tells of a text box's `input` on a keypress, before the value is there: not of what is pasted, deleted,
  // dictated or composed. Here each change is one keypress, after it; of the keyboard's own, Enter alone goes through.
  const isBox = (element) => element.matches?.('[data-testid="textbox"]');
  const ofKeyboard = (event) => {
    if (event.isTrusted && event.key !== "Enter" && isBox(event.target)) event.stopPropagation();
  };
  document.addEventListener("keypress", ofKeyboard, { capture: true });
  document.addEventListener("input", ({ target }) => {
    if (isBox(target)) target.dispatchEvent(new KeyboardEvent("keypress", { key: "Unidentified" }));
  });

  for (const kind of ["pointerdown", "keydown"])
    document.addEventListener(kind, () => { touched = true; }, { capture: true });

  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("a[data-go]");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    const words = Object.fromEntries(new URL(link.getAttribute("href"), window.location.href).searchParams);
    const page = words.view || FIRST;
    if (words.dict !== undefined && words.dict !== dictionary) {
      dictionary = words.dict;
      memory = {};
      filled = {};
    }
    delete words.view;
    delete words.dict;
    window.glassbox.go(page, words);
  });

  window.addEventListener("popstate", () => {
    const before = dictionary;
    const { page, words } = read();
    if (dictionary !== before) [memory, filled] = [{}, {}];
    open(page, words, null);
  });

  const first = read();
  open(first.page, first.words, null);
})();
