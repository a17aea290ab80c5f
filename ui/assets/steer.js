// The Steer page: keys in the list of suggestions, the link to copy, the file to keep.
(() => {
  const glassbox = window.glassbox;
  if (glassbox.noteAll) return;

  // several words of the address at once
  glassbox.noteAll = (page, keys, values) => keys.forEach((key, place) => glassbox.note(page, key, values[place]));

  glassbox.copyAddress = async () => {
    const told = (words) => `<div class="gb"><span class="small" role="status">${words}</span></div>`;
    try {
      await navigator.clipboard.writeText(window.location.href);
      return told("The link is copied.");
    } catch {
      return told("This browser does not let pages copy: copy the address from its bar.");
    }
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("#steer-suggestions button[data-add]");
    if (button) glassbox.ask("steer-picked", { feature: button.dataset.add });
  });

  // what a chosen file says to Python
  const LARGEST_FILE = 1000000;
  glassbox.chosenFile = (element, trigger) => {
    element.addEventListener("change", async (event) => {
      const file = event.target.files && event.target.files[0];
      if (!file) return;
      const text = file.size > LARGEST_FILE ? "" : await file.text();
      trigger("click", { text, size: String(file.size) });
      event.target.value = "";
    });
  };

  document.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    const buttons = [...document.querySelectorAll("#steer-suggestions button[data-add]:not([disabled])")];
    const field = document.querySelector("#steer-find textarea, #steer-find input");
    const at = buttons.indexOf(document.activeElement);
    if (!buttons.length || (at < 0 && document.activeElement !== field)) return;
    event.preventDefault();
    const next = at + (event.key === "ArrowDown" ? 1 : -1);
    if (next < 0) field.focus();
    else if (next < buttons.length) buttons[next].focus();
  });
})();
