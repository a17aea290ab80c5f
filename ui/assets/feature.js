// The page of a feature: a token's value on the histogram and in words, and copying.
(() => {
  const [LEFT, WIDE, TALL] = [8, 404, 100]; // of the histogram's picture
  const page = () => document.getElementById("feature-page");

  // an example as it stands in its document
  const written = (text) => {
    const nodes = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
    let said = "";
    for (let node = nodes.nextNode(); node; node = nodes.nextNode()) {
      const mark = node.parentElement.closest(".mark");
      if (!mark) said += node.data;
      else if (mark.classList.contains("br")) said += "\n";
      else if (node.data === "·") said += " ";
      else if (node.data === "␍") said += "\r";
    }
    return said;
  };
  const copy = async (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy"); // the only way where the address is not a secure one
    area.remove();
  };
  const mark = (value) => {
    const chart = page()?.querySelector(".histogram");
    chart?.querySelector(".here")?.remove();
    if (!chart || value === null) return;
    let [low, high, at] = [Number(chart.dataset.low), Number(chart.dataset.high), Math.abs(value)];
    if (chart.dataset.log === "1") [low, high, at] = [low, high, Math.max(at, low)].map(Math.log);
    const share = Math.min(Math.max((at - low) / (high - low || 1), 0), 1);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const x = LEFT + WIDE * share;
    for (const [key, value] of Object.entries({ class: "here", x1: x, x2: x, y1: 4, y2: TALL })) line.setAttribute(key, value);
    chart.querySelector("svg").append(line);
  };
  const point = (event) => {
    const token = event.target.closest?.("#feature-page .t[data-v]");
    mark(token ? Number(token.dataset.v) : null);
    const readout = page()?.querySelector("[data-readout]");
    if (readout) readout.textContent = token ? `“${token.textContent}” ${token.title}` : "";
  };

  document.addEventListener("pointerover", point);
  document.addEventListener("click", (event) => {
    point(event); // a finger does not hover
    const button = event.target.closest?.("[data-copy]");
    if (!button) return;
    copy(written(button.closest(".example").querySelector(".text"))).then(() => {
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1200);
    });
  });
})();
