// Stars on features, the buttons of lists, and downloads that never lie on the server.
(() => {
  const glassbox = window.glassbox;
  let offered = null;
  const server = new Promise((resolve) => { offered = resolve; }); // a click may come before the page is bound
  glassbox.stars = (functions) => offered({ functions });
  document.addEventListener("click", async (event) => {
    const off = event.target.closest && event.target.closest("button[data-unlist]");
    if (off) {
      const { dict, list, featureNumber } = off.dataset;
      glassbox.ask("lists-removed", { dict, list, feature: featureNumber });
      return;
    }
    const star = event.target.closest && event.target.closest("button[data-star]");
    if (!star) return;
    const { star: feature, dict } = star.dataset;
    const { functions } = await server;
    const answer = await functions.star([dict, Number(feature), star.getAttribute("aria-pressed") !== "true"]);
    if (answer.refused) {
      star.title = answer.refused;
      return;
    }
    for (const each of document.querySelectorAll(`button[data-star="${CSS.escape(feature)}"]`)) {
      if (each.dataset.dict !== dict) continue;
      each.setAttribute("aria-pressed", String(answer.on));
      each.textContent = answer.on ? "★" : "☆";
    }
    glassbox.forget("lists");
  });
  glassbox.listShown = () => {
    const shown = document.querySelector('#lists-index [aria-current="true"]');
    glassbox.note("lists", "list", shown ? shown.textContent : null);
  };
  glassbox.saveExport = (made) => {
    if (!made) return;
    const { name, data } = JSON.parse(made);
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    glassbox.save(name, bytes);
  };
})();
