// Navigation without reloads: links become events for Python, and the address always names what is shown.
(() => {
  if (window.glassbox) return;
  const state = { dict: null, feature: null, waiting: [], touched: false };

  const address = (parts) => {
    const query = new URLSearchParams(window.location.search);
    for (const key of ["dict", "feature", "tab"]) query.delete(key);
    for (const [key, value] of Object.entries(parts)) if (value !== null && value !== undefined) query.set(key, value);
    return "?" + query.toString();
  };
  const push = (parts) => {
    const next = address(parts);
    if (next !== window.location.search) window.history.pushState({}, "", next);
    document.title = parts.feature != null ? `Feature ${parts.feature} · Glassbox` : "Glassbox";
  };
  const send = (data) => (window.glassbox.trigger ? window.glassbox.trigger(data) : state.waiting.push(data));
  const read = () => {
    const query = new URLSearchParams(window.location.search);
    if (query.has("dict")) state.dict = query.get("dict");
    if (/^\d+$/.test(query.get("feature") || "")) state.feature = Number(query.get("feature"));
    return query;
  };

  window.glassbox = {
    trigger: null,
    ready(trigger) {
      window.glassbox.trigger = trigger;
      state.waiting.splice(0).forEach(trigger);
    },
    tab(name) {
      // Gradio also says this of the tabs that it opens itself
      const query = new URLSearchParams(window.location.search);
      if (!state.touched || name === (query.has("feature") ? "feature" : query.get("tab") || "features")) return;
      if (name === "feature" && state.feature !== null) push({ dict: state.dict, feature: state.feature });
      else push({ dict: state.dict, tab: name === "features" ? null : name });
    },
    dict(name) {
      state.dict = name;
      state.feature = null;
      push({ dict: name });
    },
  };

  for (const kind of ["pointerdown", "keydown"])
    document.addEventListener(kind, () => { state.touched = true; }, { capture: true, once: true });

  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("a[data-feature], a[data-steer]");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    if (link.dataset.steer !== undefined) {
      push({ dict: state.dict, tab: "steering" });
      send({ action: "steer", feature: Number(link.dataset.steer), dict: state.dict });
      return;
    }
    const dict = new URL(link.href, window.location.href).searchParams.get("dict");
    state.dict = dict;
    state.feature = Number(link.dataset.feature);
    push({ dict, feature: state.feature });
    send({ action: "open", feature: state.feature, dict });
    window.scrollTo({ top: 0 });
  });

  window.addEventListener("popstate", () => {
    const query = read();
    const feature = /^\d+$/.test(query.get("feature") || "") ? Number(query.get("feature")) : null;
    send({ action: feature === null ? "tab" : "open", feature, dict: state.dict, tab: query.get("tab") || "features" });
  });

  read();
})();
