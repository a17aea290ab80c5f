// Keys: / searches, j and k go on and back, ? shows help. None of them while somebody writes.
(() => {
  const writes = (element) => element?.closest?.("input:not([type=checkbox]):not([type=radio]), textarea, select, [contenteditable=true]");
  const help = () => document.getElementById("keys-help");
  const search = () => {
    const field = () => document.querySelector("#search textarea, #search input");
    const focus = () => { field()?.focus(); field()?.select(); };
    if (window.glassbox.page() === "features") return focus();
    window.glassbox.go("features", {});
    const wait = (left) => (field()?.checkVisibility() && window.glassbox.shown() ? focus() : left && setTimeout(wait, 50, left - 1));
    wait(200);
  };
  const step = (on) => {
    if (window.glassbox.page() === "feature") {
      document.querySelector(`#feature-page a[data-${on ? "next" : "previous"}]`)?.click();
    } else if (window.glassbox.page() === "features") {
      const rows = [...document.querySelectorAll("#feature-list tbody .id a")];
      const at = rows.findIndex((row) => row.closest("tr").contains(document.activeElement));
      rows[Math.min(Math.max(at + (on ? 1 : -1), 0), rows.length - 1)]?.focus();
    }
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || writes(event.target) || document.querySelector("dialog[open]")) return;
    const acts = { "/": search, j: () => step(true), k: () => step(false), "?": () => help()?.showModal() };
    if (!acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("[data-keys]")) help()?.showModal();
    else if (event.target.closest?.("[data-close]") || event.target === help()) help()?.close();
  });
})();
