// The heat view of a reading: draws the cells in sight, colours the text by one feature, lets tokens be chosen.
(() => {
  if (window.glassboxText) return;
  const COLUMN = 17, ROW = 24, HEAD = 96, MARGIN = 24;
  const NAME = "text";

  const heats = () => Array.from(document.querySelectorAll("gb-heat"));
  const number = (value) => Number(Number(value).toPrecision(3)).toString();
  const shade = (share) => (0.12 + 0.78 * Math.min(1, Math.abs(share)) ** 0.8).toFixed(2);
  const lane = (button) => {
    const flat = button.dataset.cells ? button.dataset.cells.split(" ").map(Number) : [];
    const cells = [];
    for (let i = 0; i < flat.length; i += 2) cells.push([flat[i], flat[i + 1]]);
    return { feature: button.dataset.lane, scale: Number(button.dataset.scale) || 1, cells };
  };
  const pick = (token) => {
    window.glassbox.note(NAME, "token", token);
    window.glassbox.ask("text-token", { token }, true);
  };

  class Heat extends HTMLElement {
    static observedAttributes = ["data-made"];

    connectedCallback() {
      this.lay();
    }

    // Gradio puts another reading into the element that stands there, part by part, in one go
    attributeChangedCallback(_name, before) {
      if (before !== null) queueMicrotask(() => { if (this.isConnected) this.lay(); });
    }

    lay() {
      this.side = this.dataset.side;
      this.tokens = Array.from(this.querySelectorAll("[data-i]"));
      this.lanes = Array.from(this.querySelectorAll(".heat-names [data-lane]"), lane);
      this.scroll = this.querySelector(".heat-scroll");
      this.strip = this.querySelector(".heat-strip");
      this.coloured = [];
      this.drawn = [0, 0];
      this.token = this.dataset.token === undefined ? null : Number(this.dataset.token);
      this.strip.style.width = `${this.tokens.length * COLUMN}px`;
      this.strip.style.height = `${HEAD + this.lanes.length * ROW}px`;
      this.scroll.onscroll = () => this.draw();
      this.watch?.disconnect();
      this.watch = new ResizeObserver(() => this.draw());
      this.watch.observe(this.scroll);
      if (this.querySelector("[data-spaces]").checked) this.spaces(true);
      if (this.tokens.length) this.tokens[this.token ?? 0].tabIndex = 0;
      const wanted = this.dataset.feature;
      const first = this.lanes.find((each) => each.feature === wanted) || (wanted === undefined && this.lanes[0]);
      this.shown = null;
      if (first || wanted !== undefined) this.show(first || null);
      if (this.token !== null) {
        this.mark(this.token);
        this.reveal(this.token, "auto");
      }
      this.draw(true);
    }

    disconnectedCallback() {
      this.watch.disconnect();
    }

    // columns in sight and some beside them
    draw(again = false) {
      const width = this.scroll.clientWidth || 800;
      const from = Math.max(0, Math.floor(this.scroll.scrollLeft / COLUMN));
      const to = Math.min(this.tokens.length, Math.ceil((this.scroll.scrollLeft + width) / COLUMN));
      if (!again && from >= this.drawn[0] && to <= this.drawn[1]) return;
      const [low, high] = (this.drawn = [Math.max(0, from - MARGIN), Math.min(this.tokens.length, to + MARGIN)]);
      const parts = document.createDocumentFragment();
      const put = (kind, column, top, share, text) => {
        const part = document.createElement("i");
        part.className = kind;
        part.style.left = `${column * COLUMN}px`;
        if (top !== null) part.style.top = `${top}px`;
        if (share !== null) part.style.setProperty("--a", shade(share));
        if (text !== null) part.textContent = text;
        parts.append(part);
      };
      if (this.token !== null && this.token >= low && this.token < high) put("here", this.token, null, null, null);
      for (let column = low; column < high; column += 1) {
        const special = this.tokens[column].classList.contains("special") ? " special" : "";
        put(`col${special}`, column, null, null, this.tokens[column].textContent.replace(/ /g, "·"));
      }
      this.lanes.forEach((each, row) => {
        const cells = each.cells;
        let [a, b] = [0, cells.length];
        while (a < b) {
          const middle = (a + b) >> 1;
          if (cells[middle][0] < low) a = middle + 1;
          else b = middle;
        }
        for (; a < cells.length && cells[a][0] < high; a += 1)
          put(cells[a][1] < 0 ? "cell cold" : "cell", cells[a][0], HEAD + row * ROW, cells[a][1] / each.scale, null);
      });
      this.strip.replaceChildren(parts);
    }

    // one feature over the text
    show(each) {
      for (const span of this.coloured) {
        span.classList.remove("t", "cold");
        span.style.removeProperty("--a");
        span.removeAttribute("title");
      }
      this.coloured = [];
      const unit = this.dataset.unit;
      for (const [token, value] of each ? each.cells : []) {
        const span = this.tokens[token];
        const share = value / each.scale;
        span.classList.add("t");
        span.classList.toggle("cold", value < 0);
        span.style.setProperty("--a", shade(share));
        span.title = `${unit} ${number(value)} · ${Math.round(100 * Math.abs(share))}% of ${unit === "activation" ? "its maximum" : "the largest"}`;
        this.coloured.push(span);
      }
      this.shown = each ? each.feature : null;
      const told = each ? `Feature ${each.feature} colours ${each.cells.length.toLocaleString("en")} of ${this.tokens.length.toLocaleString("en")} tokens` : "The chosen feature is not active here";
      this.querySelector("[data-shown]").textContent = told;
      this.press();
    }

    press() {
      for (const button of document.querySelectorAll(`[data-lane][data-side="${this.side}"]`))
        button.setAttribute("aria-pressed", String(button.dataset.lane === this.shown));
    }

    // blanks in sight; the text's own dots stay what they are
    spaces(areShown) {
      const walk = document.createTreeWalker(this.querySelector(".reading"), NodeFilter.SHOW_TEXT);
      for (let node = walk.nextNode(); node; node = walk.nextNode()) {
        if (areShown && node.data.includes("·")) continue;
        node.data = areShown ? node.data.replace(/ /g, "·") : node.data.replace(/·/g, " ");
      }
    }

    mark(token) {
      const before = this.querySelector('[aria-selected="true"]');
      if (before) before.removeAttribute("aria-selected");
      if (token !== null) {
        this.tokens[token].setAttribute("aria-selected", "true");
        this.rove(token);
      }
      this.token = token;
      this.draw(true);
    }

    rove(token) {
      for (const span of this.querySelectorAll('[data-i][tabindex]')) span.removeAttribute("tabindex");
      this.tokens[token].tabIndex = 0;
    }

    reveal(token, behavior = "smooth") {
      const left = token * COLUMN;
      const { scrollLeft, clientWidth } = this.scroll;
      if (left < scrollLeft || left > scrollLeft + clientWidth - COLUMN)
        this.scroll.scrollTo({ left: Math.max(0, left - clientWidth / 2), behavior });
      const reading = this.querySelector(".reading");
      const span = this.tokens[token];
      if (span.offsetTop < reading.scrollTop || span.offsetTop > reading.scrollTop + reading.clientHeight - 30)
        reading.scrollTo({ top: Math.max(0, span.offsetTop - reading.clientHeight / 2), behavior });
    }

    choose(token) {
      for (const other of heats()) if (other !== this) other.mark(null);
      this.mark(token);
      this.reveal(token);
      pick(this.side === "b" ? `b${token}` : String(token));
    }
  }
  if (!customElements.get("gb-heat")) customElements.define("gb-heat", Heat);

  window.glassboxText = {
    asked(text) {
      if (text) for (const key of ["document", "at"]) window.glassbox.note(NAME, key, null);
      for (const key of ["token", "feature"]) window.glassbox.note(NAME, key, null);
      for (const heat of heats()) heat.mark(null);
    },
    // a file or the clipboard; nothing is kept on the server, and the hidden component forgets it
    hand(kind, content) {
      if (!content) return "";
      if (kind === "copy") navigator.clipboard.writeText(content).catch(() => window.glassboxText.hand("csv", content));
      else {
        const type = kind === "json" ? "application/json" : "text/csv";
        window.glassbox.save(`glassbox-text.${kind}`, content, type);
      }
      return "";
    },
  };

  document.addEventListener("click", (event) => {
    const target = event.target.closest ? event.target : null;
    if (!target) return;
    const button = target.closest("[data-lane]");
    if (button) {
      const own = heats().find((each) => each.side === button.dataset.side);
      const each = lane(button);
      window.glassbox.note(NAME, "feature", each.feature);
      for (const heat of heats()) {
        if (heat === own) heat.show(each);
        else if (own && heat.dataset.space === own.dataset.space)
          heat.show(heat.lanes.find((other) => other.feature === each.feature) || null);
      }
      return;
    }
    const heat = target.closest("gb-heat");
    if (!heat) return;
    const span = target.closest("[data-i]");
    if (span) heat.choose(Number(span.dataset.i));
    else if (target.closest(".heat-strip")) {
      const box = heat.strip.getBoundingClientRect();
      const token = Math.floor((event.clientX - box.left) / COLUMN);
      const row = Math.floor((event.clientY - box.top - HEAD) / ROW);
      if (row >= 0 && row < heat.lanes.length) heat.querySelectorAll(".heat-names [data-lane]")[row].click();
      if (token >= 0 && token < heat.tokens.length) heat.choose(token);
    }
  });

  document.addEventListener("keydown", (event) => {
    const span = event.target.closest && event.target.closest("gb-heat [data-i]");
    if (!span || event.ctrlKey || event.metaKey || event.altKey) return;
    const heat = span.closest("gb-heat");
    const at = Number(span.dataset.i);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: heat.tokens.length - 1 }[event.key];
    if (next !== undefined && next >= 0 && next < heat.tokens.length) {
      heat.rove(next);
      heat.tokens[next].focus();
    } else if (event.key === "Enter" || event.key === " ") heat.choose(at);
    else return;
    event.preventDefault();
  });

  document.addEventListener("change", (event) => {
    const box = event.target.closest && event.target.closest("gb-heat [data-spaces]");
    if (box) box.closest("gb-heat").spaces(box.checked);
  });

  // what a panel shows belongs to what the text shows
  new MutationObserver(() => { for (const heat of heats()) if (heat.tokens) heat.press(); }).observe(document.documentElement, { childList: true, subtree: true });
})();
