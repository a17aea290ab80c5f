// The overview's density plot (a range by dragging, or with the arrow keys) and its map of features.
(() => {
  const glassbox = window.glassbox;
  const bars = (plot) => Array.from(plot.querySelectorAll("a[data-low]"));
  const between = (plot, from, to) => {
    const all = bars(plot);
    const [a, b] = [all.indexOf(from), all.indexOf(to)].sort((x, y) => x - y);
    return all.slice(a, b + 1);
  };
  let from = null;
  let range = [];
  const mark = (plot, chosen) => {
    range = chosen;
    for (const bar of bars(plot)) bar.classList.toggle("chosen", chosen.includes(bar));
  };
  const barAt = (event) => event.target.closest && event.target.closest("[data-density] a[data-low]");
  document.addEventListener("dragstart", (event) => { if (barAt(event)) event.preventDefault(); });
  document.addEventListener("pointerdown", (event) => {
    from = barAt(event);
    range = [];
  });
  document.addEventListener("pointermove", (event) => {
    if (!from || !event.buttons) return;
    const bar = barAt(event);
    const plot = from.closest("[data-density]");
    if (bar && plot.contains(bar) && bar !== from) mark(plot, between(plot, from, bar));
  });
  document.addEventListener("pointerup", () => {
    if (from && range.length > 1) {
      const [low, high] = [range[0].dataset.low, range[range.length - 1].dataset.high];
      mark(from.closest("[data-density]"), []);
      glassbox.go("features", { low, high });
    }
    from = null;
  });
  document.addEventListener("keydown", (event) => {
    const bar = barAt(event);
    if (!bar || !["ArrowLeft", "ArrowRight", "Enter"].includes(event.key)) return;
    const plot = bar.closest("[data-density]");
    if (event.key === "Enter") {
      if (range.length < 2) return;
      event.preventDefault();
      glassbox.go("features", { low: range[0].dataset.low, high: range[range.length - 1].dataset.high });
      return;
    }
    event.preventDefault();
    const all = bars(plot);
    const next = all[all.indexOf(bar) + (event.key === "ArrowRight" ? 1 : -1)];
    if (!next) return;
    if (event.shiftKey) {
      from ||= bar;
      mark(plot, between(plot, from, next));
    } else {
      from = null;
      mark(plot, []);
    }
    next.focus();
  });

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const GRID = 65535;
  const CELLS = 96;
  const drawings = new WeakSet();

  glassbox.drawMap = async (element, server) => {
    const box = element.querySelector("[data-map]");
    if (!box || drawings.has(box)) return;
    drawings.add(box);
    const canvas = box.querySelector("canvas");
    const told = box.querySelector(".map-told");
    const dictionary = box.dataset.dict;
    const data = await server.points(dictionary);
    if (!data.n || !box.isConnected) return;
    const n = data.n;
    const buffer = bytes(data.points);
    const features = new Int32Array(buffer, 0, n);
    const x = new Uint16Array(buffer, 4 * n, n);
    const y = new Uint16Array(buffer, 6 * n, n);
    const cluster = new Int16Array(buffer, 8 * n, n);

    const order = Uint32Array.from({ length: n }, (_, i) => i).sort((a, b) => cluster[a] - cluster[b]);
    const middles = new Map();
    const cells = new Map();
    for (let i = 0; i < n; i++) {
      if (cluster[i] >= 0) {
        const m = middles.get(cluster[i]) || [0, 0, 0];
        m[0] += x[i]; m[1] += y[i]; m[2] += 1;
        middles.set(cluster[i], m);
      }
      const cell = Math.floor((x[i] / (GRID + 1)) * CELLS) * CELLS + Math.floor((y[i] / (GRID + 1)) * CELLS);
      if (!cells.has(cell)) cells.set(cell, []);
      cells.get(cell).push(i);
    }

    let scale = 1, left = 0, top = 0, side = 1, width = 1, height = 1, near = -1, planned = false;
    const toX = (value) => (value / GRID - left) * scale * side + (width - side) / 2;
    const toY = (value) => (1 - value / GRID - top) * scale * side + (height - side) / 2;
    const fromX = (px) => (px - (width - side) / 2) / (scale * side) + left;
    const fromY = (py) => 1 - ((py - (height - side) / 2) / (scale * side) + top);

    const draw = () => {
      planned = false;
      const ratio = window.devicePixelRatio || 1;
      width = canvas.clientWidth; height = canvas.clientHeight;
      if (!width) return;
      side = Math.min(width, height) - 24;
      canvas.width = width * ratio; canvas.height = height * ratio;
      const pen = canvas.getContext("2d");
      const style = getComputedStyle(canvas);
      const colour = (name) => style.getPropertyValue(`--gb-${name}`).trim();
      const dark = box.closest(".dark") !== null;
      pen.scale(ratio, ratio);
      const size = Math.min(6, Math.max(1.4, (n > 20000 ? 1.6 : n > 2000 ? 2.6 : 4) * Math.sqrt(scale)));
      let shown = null;
      for (const i of order) {
        const px = toX(x[i]), py = toY(y[i]);
        if (px < -size || py < -size || px > width + size || py > height + size) continue;
        if (cluster[i] !== shown) {
          shown = cluster[i];
          pen.globalAlpha = shown < 0 ? 0.55 : 0.85;
          pen.fillStyle = shown < 0 ? colour("faint") : `hsl(${(shown * 137.5) % 360} 52% ${dark ? 62 : 44}%)`;
        }
        pen.fillRect(px - size / 2, py - size / 2, size, size);
      }
      pen.globalAlpha = 1;
      pen.font = "12px ui-sans-serif, system-ui, sans-serif";
      pen.textAlign = "center";
      pen.lineWidth = 3;
      pen.strokeStyle = colour("card");
      pen.fillStyle = colour("ink");
      const taken = [];
      for (const [which, [sx, sy, count]] of Array.from(middles).sort((a, b) => b[1][2] - a[1][2])) {
        if (taken.length >= 16 * Math.sqrt(scale)) break;
        const name = data.clusters[which];
        const px = toX(sx / count), py = toY(sy / count);
        const half = name ? pen.measureText(name).width / 2 + 4 : 0;
        if (!name || px < half || py < 16 || px > width - half || py > height - 4) continue;
        if (taken.some(([qx, qy, other]) => Math.abs(qx - px) < half + other && Math.abs(qy - py) < 18)) continue;
        taken.push([px, py, half]);
        pen.strokeText(name, px, py);
        pen.fillText(name, px, py);
      }
      if (near >= 0) {
        pen.beginPath();
        pen.arc(toX(x[near]), toY(y[near]), size / 2 + 4, 0, 7);
        pen.lineWidth = 2;
        pen.strokeStyle = colour("ink");
        pen.stroke();
      }
      box.dataset.drawn = String(n);
    };
    const plan = () => {
      if (planned) return;
      planned = true;
      requestAnimationFrame(draw);
    };
    const closest = (px, py, reach) => {
      const gx = fromX(px), gy = fromY(py), r = reach / (scale * side);
      let best = -1, least = r * r;
      for (let cx = Math.max(0, Math.floor((gx - r) * CELLS)); cx <= Math.min(CELLS - 1, Math.floor((gx + r) * CELLS)); cx++)
        for (let cy = Math.max(0, Math.floor((gy - r) * CELLS)); cy <= Math.min(CELLS - 1, Math.floor((gy + r) * CELLS)); cy++)
          for (const i of cells.get(cx * CELLS + cy) || []) {
            const far = (x[i] / GRID - gx) ** 2 + (y[i] / GRID - gy) ** 2;
            if (far < least) [best, least] = [i, far];
          }
      return best;
    };
    const names = new Map();
    let asking = 0;
    const tell = (i) => {
      if (i === near) return;
      near = i;
      plan();
      told.hidden = i < 0;
      canvas.style.cursor = i < 0 ? "grab" : "pointer";
      clearTimeout(asking);
      if (i < 0) return;
      const feature = features[i];
      const of = cluster[i] < 0 ? "in no cluster" : data.clusters[cluster[i]] || `cluster ${cluster[i]}`;
      const write = (name) => { told.textContent = `Feature ${feature}${name ? `: ${name}` : ""} · ${of}`; };
      write(names.get(feature));
      told.style.left = `${Math.min(Math.max(toX(x[i]), 8), Math.max(8, width - 260))}px`;
      told.style.top = `${Math.min(Math.max(toY(y[i]) + 12, 8), height - 60)}px`;
      if (!names.has(feature))
        asking = setTimeout(async () => {
          names.set(feature, await server.told([dictionary, feature]));
          if (near === i) write(names.get(feature));
        }, 60);
    };
    const zoom = (factor, px = width / 2, py = height / 2) => {
      const [gx, gy] = [fromX(px), 1 - fromY(py)];
      scale = Math.min(64, Math.max(1, scale * factor));
      left = gx - (px - (width - side) / 2) / (scale * side);
      top = gy - (py - (height - side) / 2) / (scale * side);
      if (scale === 1) left = top = 0;
      plan();
    };
    const open = (i) => { if (i >= 0) glassbox.go("feature", { feature: String(features[i]) }); };

    let held = null;
    let moved = false;
    canvas.addEventListener("pointerdown", (event) => {
      held = [event.offsetX, event.offsetY];
      moved = false;
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!held) return tell(closest(event.offsetX, event.offsetY, 10));
      const [dx, dy] = [event.offsetX - held[0], event.offsetY - held[1]];
      if (!moved && Math.hypot(dx, dy) < 4) return;
      moved = true;
      held = [event.offsetX, event.offsetY];
      left -= dx / (scale * side);
      top -= dy / (scale * side);
      plan();
    });
    canvas.addEventListener("pointerup", (event) => {
      if (held && !moved) open(closest(event.offsetX, event.offsetY, 12));
      held = null;
    });
    canvas.addEventListener("dblclick", (event) => zoom(2, event.offsetX, event.offsetY));
    canvas.addEventListener("pointerleave", () => { if (!held) tell(-1); });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 200), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = 0.08 / scale;
      const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
      if (moves[event.key]) {
        left += moves[event.key][0];
        top += moves[event.key][1];
        plan();
      } else if (event.key === "+" || event.key === "=") zoom(1.5);
      else if (event.key === "-") zoom(1 / 1.5);
      else if (event.key === "Enter") return open(closest(width / 2, height / 2, side));
      else return;
      event.preventDefault();
      tell(closest(width / 2, height / 2, side));
    });
    box.querySelector(".map-keys").addEventListener("click", (event) => {
      const how = event.target.dataset.zoom;
      if (how === "all") zoom(1 / 64);
      else if (how) zoom(how === "in" ? 1.5 : 1 / 1.5);
    });
    new ResizeObserver(plan).observe(canvas);
    new MutationObserver(plan).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    plan();
  };
})();
