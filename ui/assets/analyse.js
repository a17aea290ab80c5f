// The page of analyses: a click on a token chooses what is explained there; answers become files in the web browser.
(() => {
  window.glassboxAnalyse = {
    hand(kind, content) {
      if (!content) return "";
      window.glassbox.save(`glassbox-analysis.${kind}`, content, kind === "json" ? "application/json" : "text/html");
      return "";
    },
  };
  document.addEventListener("click", (event) => {
    const token = event.target.closest && event.target.closest("#analyse-result [data-at]");
    const field = token && document.querySelector("#analyse-position input, #analyse-position textarea");
    if (!field) return;
    field.value = token.dataset.at;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    for (const each of document.querySelectorAll("#analyse-result [data-at]")) {
      each.classList.toggle("picked", each.dataset.at === token.dataset.at);
    }
  });
})();
